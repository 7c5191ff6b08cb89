"""The digest that binds a decision to exactly the plan that was shown."""

from __future__ import annotations

import msgspec
from blake3 import blake3

from cloudshift_lab.core.plan import Plan
from cloudshift_lab.core.wire import from_json, to_json


def plan_digest(plan: Plan) -> str:
    """blake3 hex over all fields of the plan but ``digest``.

    The plan goes through JSON once first, so that a whole number in a float field has the same
    digest before and after it was stored.
    """
    bare = from_json(to_json(msgspec.structs.replace(plan, digest="")), Plan, what="plan")
    return blake3(to_json(bare)).hexdigest()


def with_digest(plan: Plan) -> Plan:
    """The same plan carrying its digest; call it last, after every other field is set."""
    return msgspec.structs.replace(plan, digest=plan_digest(plan))
