"""The plan's digest."""

from __future__ import annotations

import msgspec
import pytest

from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.plan import Closing, Fallback, Plan
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.migration import Decided, fold, make_receipt, plan_digest, with_digest
from cloudshift_lab.sim.plans import sample_decision, sample_plan

OTHERS: dict[str, object] = {
    "verdict": "stay",
    "closing": "replay",
    "closings": (Closing("replay", pause_s=2.0, still_s=1.0, num_bytes=3),),
    "missing_nodes": "wait",
    "fallbacks": (Fallback(Placement("local", "here", "m"), "file:///elsewhere"),),
    "carrier": "push",
}


OTHERS: dict[str, object] = {
    "verdict": "stay",
    "closing": "replay",
    "missing_nodes": "wait",
    "carrier": "push",
    "closings": (Closing(kind="copy", pause_s=1.0, still_s=1.0, num_bytes=1),),
    "fallbacks": (Fallback(placement=sample_plan().target, url="memory://x"),),
}


def changed(plan: Plan, field: str) -> object:
    """Another value than the plan's own."""
    value = getattr(plan, field)
    if field in OTHERS:
        return OTHERS[field]
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, int | float):
        return value + 1
    if field == "bill":
        return msgspec.structs.replace(value, pause_s=2.0)
    return msgspec.structs.replace(value, nodes=2)


@pytest.mark.parametrize("field", [f for f in Plan.__struct_fields__ if f != "digest"])
def test_every_field_but_the_digest_itself_counts(field: str) -> None:
    plan = sample_plan()
    other = msgspec.structs.replace(plan, **{field: changed(plan, field)})
    assert plan_digest(other) != plan.digest


def test_plans_and_receipts_of_the_version_before_keep_their_digests() -> None:
    plan = sample_plan()
    assert plan.digest == "aa16041c6ce5f4a3020dcbc19903eb2068d7e8f156e016b4c13f88f88ed57d19"
    saga = fold(plan, [Decided(sample_decision(plan, "reject"), at=1_001)])
    receipt = make_receipt(saga, at=2_000)
    assert receipt.digest == "4f7ce50f0e1dcdc0dd9546f9b49d0420fe5361eeb8a29a988ef06caa13229ed0"


def test_the_digest_survives_storage_when_a_time_was_a_whole_number() -> None:
    plan = with_digest(msgspec.structs.replace(sample_plan(), created_at=1, expires_at=2))
    assert plan_digest(from_json(to_json(plan), Plan)) == plan.digest
