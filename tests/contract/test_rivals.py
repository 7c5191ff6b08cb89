"""Owners that fight for one run over a bad network: the log stays one history that nobody forks."""

import random
from collections.abc import Callable
from functools import partial

import pytest

from cloudshift_lab.core.errors import Fenced
from cloudshift_lab.sim.contracts import at_once
from cloudshift_lab.sim.proxy import FaultyProxy
from cloudshift_lab.storage.log import LogRecord, RunLog
from cloudshift_lab.storage.store import Store, open_store

SEED = 20261123
NUM_OWNERS = 4
TURNS = 4
COMMITS = 3
Address = Callable[[str], tuple[str, dict[str, object]]]


def rival(store: Store, name: str, seed: str, disturb: Callable[[random.Random], None]) -> set[str]:
    """Take the run over and commit, again and again. Returns the nonces that were acknowledged."""
    dice, acknowledged = random.Random(seed), set()
    for turn in range(TURNS):
        log = RunLog(store, "r")
        try:
            generation = log.sync().generation + 1
            disturb(dice)
            log.acquire(generation=generation, owner=name, nonce=f"{name}/{turn}")
            for step in range(COMMITS):
                nonce = f"{name}/{turn}/{step}"
                disturb(dice)
                log.commit(
                    generation=generation,
                    step=generation * COMMITS + step,
                    manifest_key="m",
                    manifest_digest="d",
                    nonce=nonce,
                )
                acknowledged.add(nonce)
        except Fenced:
            continue
    return acknowledged


def check_history(records: tuple[LogRecord, ...], acknowledged: set[str]) -> None:
    generation, owner = 0, ""
    for record in records:
        if record.kind == "acquire":
            assert record.generation > generation
            generation, owner = record.generation, record.owner
        else:
            assert (record.generation, record.owner) == (generation, owner), record
    nonces = [record.nonce for record in records]
    assert len(nonces) == len(set(nonces)), "a record landed twice"
    assert acknowledged <= set(nonces), "an acknowledged commit is gone"


def fight(store: Store, disturb: Callable[[random.Random], None]) -> None:
    names = [f"owner-{number}" for number in range(NUM_OWNERS)]
    rivals = [partial(rival, store, name, f"{SEED} {name}", disturb) for name in names]
    acknowledged = set().union(*at_once(rivals))
    records = RunLog(store, "r").sync().records
    check_history(records, acknowledged)
    assert len(acknowledged) >= COMMITS
    assert sum(record.kind == "acquire" for record in records) > 1


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_rivals_leave_one_history_with_every_acknowledged_commit(
    kind: str, fresh_store: Callable[[str], Store]
) -> None:
    fight(fresh_store(kind), lambda dice: None)


@pytest.mark.parametrize("kind", ["s3", "gs", "az"])
def test_rivals_over_a_bad_network_leave_one_history_too(kind: str, store_address: Address) -> None:
    print(f"seed {SEED}")
    url, options = store_address(kind)

    def throw(dice: random.Random) -> None:
        if dice.random() < 0.4:
            proxy.inject(dice.choice(["lose", "busy"]))

    with FaultyProxy(int(str(options["endpoint_url"]).rpartition(":")[2])) as proxy:
        fight(open_store(url, {**options, "endpoint_url": f"http://127.0.0.1:{proxy.port}"}), throw)
        assert proxy.num_faults > 5
