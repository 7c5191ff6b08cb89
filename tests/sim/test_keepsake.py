"""What must stay: objects of living commits and of checked pins."""

from __future__ import annotations

import pytest

from cloudshift_lab.checkpoint.gc import Pin
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.sim.faulty_store import Mutation
from cloudshift_lab.sim.keepsake import Keepsake
from cloudshift_lab.storage.log import LogRecord

A, B = "memory://a", "memory://b"


def commit(step: int) -> LogRecord:
    return LogRecord(
        seq=step, kind="commit", generation=1, owner="ada", nonce=str(step), at=0.0, step=step,
        manifest_key=f"m{step}", manifest_digest="d",
    )  # fmt: skip


@pytest.fixture
def kept() -> Keepsake:
    kept = Keepsake()
    for step in (1, 2):
        kept.learn(A, f"m{step}", ["shared", f"pack-{step}"])
        kept.keep(A, "run-1", commit(step))
    return kept


def pinned(step: int, *, checked: bool) -> Mutation:
    pin = Pin("base", "run-1", step, f"m{step}", "d", 0.0, checked)
    return Mutation(A, "pins/base.json", to_json(pin), None, "test")


def test_what_a_living_commit_names_stays_in_its_store(kept: Keepsake) -> None:
    assert kept.names(A, "pack-1")
    assert not kept.names(B, "pack-1")
    assert not kept.names(A, "pack-3")


def test_a_forgotten_step_keeps_nothing_but_what_others_share(kept: Keepsake) -> None:
    kept.forget(A, "run-2", [1])
    assert kept.names(A, "pack-1")
    kept.forget(A, "run-1", [1])
    assert not kept.names(A, "pack-1")
    assert kept.names(A, "shared")


def test_only_a_checked_pin_keeps_a_forgotten_step(kept: Keepsake) -> None:
    kept.see_pin(pinned(1, checked=False))
    kept.forget(A, "run-1", [1])
    assert not kept.names(A, "pack-1")
    kept.see_pin(pinned(1, checked=True))
    assert kept.names(A, "pack-1")
    kept.see_pin(Mutation(A, "pins/base.json", None, b"{}", "test"))
    assert not kept.names(A, "pack-1")
