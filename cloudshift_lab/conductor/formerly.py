"""Journal lines of earlier versions, rewritten as today's structs read them."""

from __future__ import annotations

import msgspec

_EVERY = "checkpoint_every"
_ALL = "all"


def modernised(line: bytes) -> bytes:
    """The line with ``checkpoint_every: N`` as ``save_policy: "N"``.

    A run of that time was told that nothing is deleted, so it goes on keeping every step.
    """
    if b'"checkpoint_every"' not in line:
        return line
    event: object = msgspec.json.decode(line)
    return msgspec.json.encode(_renamed(event))


def _renamed(value: object) -> object:
    if isinstance(value, list):
        return [_renamed(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: _renamed(item) for key, item in value.items() if key != _EVERY}
    if isinstance(value.get(_EVERY), int):
        found = {**found, "save_policy": str(value[_EVERY]), "keep": _ALL}
    return found
