"""The plan's digest."""

from __future__ import annotations

import msgspec
import pytest

from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.plan import Closing, Fallback, Plan
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.migration import plan_digest, with_digest
from cloudshift_lab.sim.plans import sample_plan

OTHERS: dict[str, object] = {
    "verdict": "stay",
    "closing": "replay",
    "closings": (Closing("replay", pause_s=2.0, still_s=1.0, num_bytes=3),),
    "missing_nodes": "wait",
    "fallbacks": (Fallback(Placement("local", "here", "m"), "file:///elsewhere"),),
    "carrier": "push",
}


@pytest.mark.parametrize("field", [f for f in Plan.__struct_fields__ if f != "digest"])
def test_every_field_but_the_digest_itself_counts(field: str) -> None:
    plan = sample_plan()
    value = getattr(plan, field)
    other = OTHERS.get(field)
    if field in ("migration_id", "run_id", "source_url", "target_url"):
        other = value + "x"
    elif isinstance(value, int | float):
        other = value + 1
    elif field in ("source", "target"):
        other = msgspec.structs.replace(value, nodes=2)
    elif field == "bill":
        other = msgspec.structs.replace(value, pause_s=2.0)
    assert plan_digest(msgspec.structs.replace(plan, **{field: other})) != plan.digest


def test_the_digest_survives_storage_when_a_time_was_a_whole_number() -> None:
    plan = with_digest(msgspec.structs.replace(sample_plan(), created_at=1, expires_at=2))
    assert plan_digest(from_json(to_json(plan), Plan)) == plan.digest
