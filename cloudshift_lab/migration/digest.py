"""The digest that binds a decision to exactly the plan that was shown."""

from __future__ import annotations

from typing import Any

import msgspec
from blake3 import blake3

from cloudshift_lab.core.plan import Plan
from cloudshift_lab.core.wire import from_json, to_json


def plan_digest(plan: Plan) -> str:
    """blake3 hex over all fields of the plan but ``digest``; see ``struct_digest``."""
    return struct_digest(plan, "plan")


def with_digest(plan: Plan) -> Plan:
    """The same plan carrying its digest; call it last, after every other field is set."""
    return msgspec.structs.replace(plan, digest=plan_digest(plan))


def struct_digest(value: msgspec.Struct, what: str) -> str:
    """blake3 hex over all fields of a struct but its ``digest``.

    The struct goes through JSON once first, so that a whole number in a float field has the same
    digest before and after it was stored. Fields that were declared after ``digest`` are younger
    than the format: at their default they do not count, so that what an older version wrote keeps
    its digest. That holds for a plan inside of a receipt, too.

    Args:
        value: A struct with a field ``digest``.
        what: For the message of an error.
    """
    bare = msgspec.structs.replace(value, digest="")
    stored = from_json(to_json(bare), type(value), what=what)
    return blake3(msgspec.json.encode(_counted(stored))).hexdigest()


def _counted(value: msgspec.Struct) -> dict[str, Any]:
    """The fields that count, in their declared order."""
    fields = msgspec.structs.fields(value)
    young = [field.name for field in fields].index("digest") + 1
    counted: dict[str, Any] = {}
    for index, field in enumerate(fields):
        found = getattr(value, field.name)
        if index >= young and found == field.default:
            continue
        counted[field.name] = _counted(found) if isinstance(found, Plan) else found
    return counted
