"""Everything of a state that is not a tensor, as typed JSON (FORMAT.md section 9)."""

from __future__ import annotations

import base64
import math

import msgspec

from cloudshift_lab.core.errors import Corrupt, UsageError

MAX_DEPTH = 64
_EXACT_INT = 2**53
_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def encode_leaves(value: object, path: str = "leaves") -> bytes:
    """Turn a tree of plain Python values into JSON that keeps their types and order.

    Args:
        value: None, bool, int, float, str, bytes, list, tuple or dict of such.
        path: How to call the root in messages.

    Raises:
        UsageError: A value of another type, or nesting beyond 64; names its path.
    """
    try:
        return msgspec.json.encode(_encode(value, path, 0))
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{path} has a string that is not Unicode ({error}); store bytes"
        ) from error


def _encode(value: object, path: str, depth: int) -> object:
    if depth > MAX_DEPTH:
        raise UsageError(f"{path} is nested deeper than {MAX_DEPTH}; flatten the state")
    if value is None or type(value) in (bool, str, int, bytes) or isinstance(value, float):
        return _encode_scalar(value)
    if type(value) is list:
        return [_encode(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value)]
    if type(value) is tuple:
        return {"$t": [_encode(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value)]}
    if isinstance(value, dict):
        return _encode_dict(value, path, depth + 1)
    raise UsageError(
        f"{path} is a {type(value).__name__}, which a checkpoint cannot hold; "
        "turn it into numbers, strings, bytes, lists, tuples or dictionaries"
    )


def _encode_scalar(value: object) -> object:
    if isinstance(value, bytes):
        return {"$b": base64.b64encode(value).decode()}
    if type(value) is int and abs(value) >= _EXACT_INT:
        return {"$i": str(value)}
    return _encode_float(float(value)) if isinstance(value, float) else value


def _encode_float(value: float) -> object:
    if math.isfinite(value):
        return value
    return {"$f": "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"}


def _encode_dict(value: dict[object, object], path: str, depth: int) -> object:
    if all(type(key) is str and not key.startswith("$") for key in value):
        return {key: _encode(item, f"{path}.{key}", depth) for key, item in value.items()}
    pairs = [
        [_encode(key, f"{path} key", depth), _encode(item, f"{path}[{key!r}]", depth)]
        for key, item in value.items()
    ]
    return {"$d": pairs}


def decode_leaves(data: bytes | msgspec.Raw) -> object:
    """Undo ``encode_leaves``.

    Raises:
        Corrupt: An unknown tag or a malformed value.
    """
    try:
        return _decode(msgspec.json.decode(data), 0)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise Corrupt(
            f"leaves of a rank record are malformed ({error}); use another step"
        ) from error


def _decode(value: object, depth: int) -> object:
    if depth > 2 * MAX_DEPTH + 8:
        raise ValueError("nested too deeply")
    if isinstance(value, list):
        return [_decode(item, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1 and (tag := next(iter(value))).startswith("$"):
        return _decode_tagged(tag, value[tag], depth + 1)
    if any(key.startswith("$") for key in value):
        raise ValueError("an unknown tag")
    return {key: _decode(item, depth + 1) for key, item in value.items()}


def _decode_tagged(tag: str, body: object, depth: int) -> object:
    if tag in ("$t", "$d"):
        if not isinstance(body, list):
            raise TypeError(f"{tag} without a list")
        items = [_decode(item, depth) for item in body]
        return tuple(items) if tag == "$t" else dict(items)  # type: ignore[arg-type]
    if not isinstance(body, str):
        raise TypeError(f"{tag} without a string")
    if tag == "$b":
        return base64.b64decode(body, validate=True)
    if tag == "$f":
        return _FLOATS[body]
    if tag == "$i":
        return int(body)
    raise ValueError(f"unknown tag {tag}")
