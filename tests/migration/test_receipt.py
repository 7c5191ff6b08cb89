"""Receipts and the view of a saga."""

from __future__ import annotations

import msgspec
import pytest

from cloudshift_lab.core.errors import Corrupt, UsageError
from cloudshift_lab.core.plan import FINAL_PHASES, MigrationView
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.migration import (
    GENESIS,
    Decided,
    Receipt,
    Saga,
    check_chain,
    fold,
    make_receipt,
    start,
    view,
)
from cloudshift_lab.sim.plans import sample_decision, sample_plan


def rejected(migration_id: str) -> Saga:
    plan = sample_plan(migration_id)
    return fold(plan, [Decided(sample_decision(plan, "reject"), at=1_001)])


def chain_of(*names: str) -> list[Receipt]:
    receipts: list[Receipt] = []
    for name in names:
        previous = receipts[-1].digest if receipts else GENESIS
        receipts.append(make_receipt(rejected(name), previous, at=2_000))
    return receipts


def test_a_chain_of_receipts_holds_and_survives_storage() -> None:
    receipts = chain_of("a", "b", "c")
    stored = [from_json(to_json(receipt), Receipt) for receipt in receipts]
    assert check_chain(stored) == receipts[-1].digest
    assert check_chain([]) == GENESIS


def test_an_altered_receipt_is_found() -> None:
    receipts = chain_of("a", "b")
    receipts[0] = msgspec.structs.replace(receipts[0], bytes_moved=1)
    with pytest.raises(Corrupt, match="altered"):
        check_chain(receipts)


@pytest.mark.parametrize("order", [(0, 2), (1, 2), (0, 2, 1)])
def test_a_missing_or_moved_receipt_is_found(order: tuple[int, ...]) -> None:
    receipts = chain_of("a", "b", "c")
    with pytest.raises(Corrupt, match="missing"):
        check_chain([receipts[index] for index in order])


def test_an_open_move_has_no_receipt() -> None:
    with pytest.raises(UsageError, match="still proposed"):
        make_receipt(start(sample_plan()), at=2_000.0)


def test_a_view_shows_what_the_saga_knows() -> None:
    saga = rejected("a")
    shown = view(saga, run_name="gpt", as_of=3.0, bytes_state=7, receipt="runs/r/receipts/a.json")
    assert shown.phase in FINAL_PHASES
    assert (shown.run_id, shown.migration_id, shown.decision) == ("run-1", "a", saga.decision)
    assert from_json(to_json(shown), MigrationView) == shown
