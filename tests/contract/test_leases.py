"""On every store: processes race for a run, sleep and die, and nobody publishes behind a back."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from cloudshift_lab.sim.lease_contract import LeaseContract, racing
from cloudshift_lab.sim.racers import Place, Promise, violations
from cloudshift_lab.storage.log import LogRecord

KINDS = ["file", "s3", "gs", "az", "etcd", "split"]
Address = Callable[[str], tuple[str, dict[str, object]]]


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, store_address: Address) -> Place:
    if request.param == "split":
        return Place(store_address("file")[0], log_url=store_address("etcd")[0])
    url, options = store_address(request.param)
    return Place(url, {name: msgspec.Raw(msgspec.json.encode(v)) for name, v in options.items()})


class TestLease(LeaseContract):
    pass


def test_a_store_that_ignores_create_if_absent_is_caught(store_address: Address) -> None:
    with racing(Place(store_address("file")[0]), is_careless=True) as race:
        race.wait(lambda: len(race.all("acquired")) >= 3, "several take the run")
        race.wait(lambda: len(race.all("committed")) >= 3, "several commits")
        wrong = race.end()
    assert any("which is gone" in line for line in wrong)


def record(seq: int, kind: str, generation: int, owner: str, **more: object) -> LogRecord:
    return LogRecord(
        seq=seq, kind=kind, generation=generation, owner=owner, nonce=f"n{seq}", at=0.0,  # type: ignore[arg-type]
        **more,  # type: ignore[arg-type]
    )  # fmt: skip


HONEST = (
    record(0, "acquire", 1, "a"),
    record(1, "commit", 1, "a", step=10),
    record(2, "acquire", 2, "b"),
    record(3, "commit", 2, "b", step=20),
)


def test_an_honest_history_has_nothing_wrong() -> None:
    told = [Promise("a", "committed", 1, 1, "n1", 1.0, 2.0)]
    assert violations(HONEST, told) == []


@pytest.mark.parametrize(
    ("records", "promise", "words"),
    [
        (HONEST[:3], Promise("b", "committed", 2, 3, "n3"), "promised record 3, which is gone"),
        (HONEST, Promise("a", "committed", 1, 2, "n2x"), "promised record 2, which is gone"),
        ((*HONEST, record(4, "commit", 1, "a", step=30)), None, "a wrote, b owned"),
        ((*HONEST, record(4, "acquire", 2, "a")), None, "generation 2 came again"),
        ((*HONEST, record(4, "commit", 2, "b", step=15)), None, "step 15 after 20"),
        ((*HONEST, HONEST[3]), None, "a request left two records"),
    ],
)
def test_each_kind_of_harm_is_named(
    records: tuple[LogRecord, ...], promise: Promise | None, words: str
) -> None:
    assert any(words in line for line in violations(records, [promise] if promise else []))


def test_a_promise_to_a_zombie_is_named() -> None:
    taken = Promise("b", "acquired", 2, 2, "n2", 3.0, 4.0)
    late = Promise("a", "committed", 1, 1, "n1", 5.0, 6.0)
    assert violations(HONEST, [taken, late]) == ["a committed after b had taken the run over"]
    in_time = msgspec.structs.replace(late, asked_at=3.5)
    assert violations(HONEST, [taken, in_time]) == []
