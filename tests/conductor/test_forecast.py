"""What a move will carry, forecast from real saves."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from cloudshift_lab.checkpoint import Staged, TensorBox, TensorSpec, seal, write_rank
from cloudshift_lab.checkpoint.known import KnownChunks
from cloudshift_lab.checkpoint.reader import open_checkpoint
from cloudshift_lab.conductor import forecast as module
from cloudshift_lab.conductor.forecast import Forecaster, forecast
from cloudshift_lab.conductor.pricing import Measured, Place, Terms, plan_move
from cloudshift_lab.core.money import format_bytes
from cloudshift_lab.core.placement import Cloud, Offer, Placement
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.memory import MemoryStore
from cloudshift_lab.storage.store import Store

FROZEN = np.random.default_rng(1).standard_normal((2000, 500)).astype(np.float32)


def save(store: Store, step: int, *, known: KnownChunks | None = None) -> KnownChunks:
    """A frozen tensor of 4 MB, and one of 0.4 MB that is new at every step."""
    moving = np.random.default_rng(step).standard_normal((200, 500)).astype(np.float32)
    arrays = {"model/frozen": FROZEN, "model/moving": moving}
    specs = tuple(TensorSpec(name, "float32", a.shape) for name, a in arrays.items())
    boxes = tuple(TensorBox(n, "float32", a.shape, (0, 0), a.shape) for n, a in arrays.items())
    data = tuple(a.reshape(-1).view(np.uint8) for a in arrays.values())
    staged = Staged(step, 0, 1, boxes, data, {}, specs)
    written = write_rank(store, "run-1", staged, generation=1, known=known)
    sealed = seal(store, "run-1", step, generation=1, world_size=1, written=[written])
    log = RunLog(store, "run-1")
    log.acquire(generation=1, owner="o", nonce="a")
    commit = log.commit(
        generation=1, step=step, manifest_key=sealed.manifest_key,
        manifest_digest=sealed.manifest_digest, nonce=f"c{step}",
    )  # fmt: skip
    return KnownChunks.from_checkpoint(open_checkpoint(store, "run-1", commit))


@pytest.fixture
def source() -> MemoryStore:
    return MemoryStore("memory://source")


@pytest.fixture
def target() -> MemoryStore:
    return MemoryStore("memory://target")


def test_nothing_stored_is_nothing_known(source: Store, target: Store) -> None:
    assert forecast(source, target, "run-1") is None
    assert Forecaster().ask(source, target, "run-1").why_not == "nothing is stored yet"


def test_the_newest_checkpoint_is_carried_and_then_what_changes(
    source: Store, target: Store
) -> None:
    known = save(source, 10)
    save(source, 20, known=known)
    made = forecast(source, target, "run-1")
    assert made is not None
    packs = sum(source.size(key) or 0 for key in source.list("packs"))
    assert packs * 0.85 < made.before <= packs
    assert 0.5 * 400_000 < made.within < 400_000
    assert format_bytes(made.num_bytes) in made.reason
    assert "measured on this run (steps 10 and 20: 4.0 MB unchanged" in made.reason


def test_what_the_target_has_already_is_not_carried_again(source: Store, target: Store) -> None:
    known = save(source, 10)
    save(source, 20, known=known)
    empty = forecast(source, target, "run-1")
    for key in source.list("packs"):
        target.put(key, source.get(key))
    made = forecast(source, target, "run-1")
    assert made is not None
    assert empty is not None
    assert made.before == 0
    assert made.within == empty.within


def test_a_store_that_hangs_does_not_hold_the_plan_up(
    source: Store, target: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = threading.Event()

    class Hanging(MemoryStore):
        def get(self, key: str, **named: Any) -> bytes:
            let_go.wait(30)
            return super().get(key, **named)

    monkeypatch.setattr(module, "DEADLINE_S", 0.05)
    found = Forecaster().ask(Hanging("memory://hanging"), target, "run-1")
    let_go.set()
    assert found.forecast is None
    assert "did not tell within" in found.why_not


def test_a_damaged_checkpoint_is_no_reason_to_refuse_a_plan(source: Store, target: Store) -> None:
    save(source, 10)
    (manifest,) = [key for key in source.list("runs/run-1/steps") if "manifest" in key]
    source.put(manifest, b"{}")
    found = Forecaster().ask(source, target, "run-1")
    assert found.forecast is None
    assert "differs from its hash" in found.why_not


def plan(**measured: Any) -> Any:
    places = [
        Place(
            cloud=Cloud(name=name, title=name, store_url=f"memory://{name}"),
            offer=Offer(cloud=name, region="r", instance_type="m", price_micro_usd_per_h=1_000_000),
            placement=Placement(name, "r", "m"),
            url=f"memory://{name}",
        )
        for name in ("a", "b")
    ]
    return plan_move(
        ("mig-1", "run-1"), *places, Measured(stored_bytes=70, state_bytes=100, **measured),
        generation=1, now=0.0, terms=Terms(expires_s=60.0),
    ).plan  # fmt: skip


def test_the_bill_counts_what_was_measured_and_says_so() -> None:
    made = plan(
        carried=module.Forecast(
            1_000_000_000, 500_000_000, "1 GB before the pause", "To carry about 1.5 GB."
        )
    )
    assert made.bill.transfer_bytes == 1_500_000_000
    assert "To carry about 1.5 GB." in made.bill.reasons
    (note,) = [item for item in made.bill.items if item.label == "bytes to carry"]
    assert (note.basis, note.kind, note.amount_micro_usd) == ("1 GB before the pause", "note", 0)
    assert made.bill.pause_s == pytest.approx(500e6 / 50e6 + 500e6 / 50e6 + 0.1 + 4.0)


def test_the_bill_without_a_measurement_counts_one_checkpoint_and_says_so() -> None:
    made = plan(not_measured="the stores did not tell within 5 s")
    assert made.bill.transfer_bytes == 70
    (said,) = [reason for reason in made.bill.reasons if "not measured" in reason]
    assert "(the stores did not tell within 5 s)" in said
