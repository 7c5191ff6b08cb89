"""How values travel between processes: deterministic JSON of frozen structs, never pickle."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from cloudshift_lab.core.errors import Corrupt

T = TypeVar("T")
_ENCODER = msgspec.json.Encoder(order="deterministic")


def to_json(value: object) -> bytes:
    """Encode a struct (or builtins) as JSON with a stable key order."""
    return _ENCODER.encode(value)


def from_json(data: bytes | str, kind: type[T], *, what: str = "message") -> T:
    """Decode and validate JSON.

    Raises:
        Corrupt: The bytes are not valid JSON or do not fit ``kind``; names ``what`` and the field.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"{what} is not readable ({error}); restore it from another copy") from error
