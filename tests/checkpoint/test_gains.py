"""Bases are not read again and again for tensors that gain nothing from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cloudshift_lab.checkpoint.gains import RETRIED_AFTER_SAVES, PastGains, role_of
from cloudshift_lab.checkpoint.known import KnownChunks
from cloudshift_lab.checkpoint.reader import open_checkpoint
from cloudshift_lab.checkpoint.seal import seal
from cloudshift_lab.checkpoint.step import Checkpoint
from cloudshift_lab.checkpoint.write import WrittenRank, stage_arrays, write_rank
from cloudshift_lab.storage.memory import MemoryStore
from cloudshift_lab.storage.store import Request

ROLE = role_of("model/layers.3.weight", "float32")
Arrays = dict[str, npt.NDArray[np.float32]]


def test_layers_have_one_role_and_dtypes_have_their_own() -> None:
    assert role_of("model/layers.11.weight", "float32") == ROLE
    assert role_of("model/layers.3.bias", "float32") != ROLE
    assert role_of("model/layers.3.weight", "bfloat16") != ROLE


def test_a_role_without_gain_rests_until_the_tenth_save_after() -> None:
    gains = PastGains()
    gains.begin(100)
    assert gains.is_worth_sampling(ROLE)
    gains.found(ROLE, pays=False)
    for _ in range(RETRIED_AFTER_SAVES - 1):
        gains.begin(100)
        assert not gains.is_worth_sampling(ROLE)
    gains.begin(100)
    assert gains.is_worth_sampling(ROLE)


def test_a_role_is_sampled_again_when_the_base_is_much_nearer() -> None:
    gains = PastGains()
    gains.begin(2)
    gains.found(ROLE, pays=False)
    gains.begin(2)
    assert not gains.is_worth_sampling(ROLE)
    gains.begin(1)
    assert gains.is_worth_sampling(ROLE)


def test_a_role_that_pays_again_no_longer_rests() -> None:
    gains = PastGains()
    gains.begin(5)
    gains.found(ROLE, pays=False)
    gains.found(ROLE, pays=True)
    assert gains.is_worth_sampling(ROLE)


class Counting(MemoryStore):
    """Counts the requests for parts of packs."""

    num_reads = 0

    def get_each(self, requests: Sequence[Request], concurrency: int = 8):
        self.num_reads += sum(key.startswith("packs/") for key, _, _ in requests)
        return super().get_each(requests, concurrency)


def _save(
    store: Counting, step: int, arrays: Arrays, base: Checkpoint | None, gains: PastGains
) -> tuple[WrittenRank, Checkpoint]:
    staged = stage_arrays(arrays, step=step)
    known = None if base is None else KnownChunks.from_checkpoint(base)
    written = write_rank(store, "run", staged, generation=1, base=base, known=known, gains=gains)
    sealed = seal(store, "run", step, generation=1, world_size=1, written=[written])
    return written, open_checkpoint(
        store, "run", sealed.manifest_key, digest=sealed.manifest_digest
    )


def _layers(seed: int) -> Arrays:
    random = np.random.default_rng(seed)
    return {f"model/{n}.weight": random.standard_normal(30_000, np.float32) for n in range(12)}


def test_the_second_save_of_unlike_tensors_reads_nothing_of_its_base() -> None:
    store, gains = Counting("memory://gains"), PastGains()
    _, base = _save(store, 10, _layers(0), None, gains)
    _, base = _save(store, 20, _layers(1), base, gains)
    assert 0 < store.num_reads <= 4
    store.num_reads = 0
    _save(store, 30, _layers(2), base, gains)
    assert store.num_reads == 0


def test_layers_that_were_not_tried_first_become_deltas_when_those_promise_much() -> None:
    store, gains = Counting("memory://gains"), PastGains()
    before = _layers(0)
    after = {name: np.nextafter(value, np.float32(9)) for name, value in before.items()}
    _, base = _save(store, 10, before, None, gains)
    written, _ = _save(store, 20, after, base, gains)
    assert written.new_bytes < 0.2 * written.raw_bytes


def test_tensors_that_gain_a_little_but_not_enough_are_not_tried_again_at_once() -> None:
    store, gains = Counting("memory://gains"), PastGains()
    steps = [_layers(0)]
    for seed in (1, 2):
        random = np.random.default_rng(seed)
        drift = {n: 0.2 * random.standard_normal(len(v), np.float32) for n, v in steps[0].items()}
        steps.append({name: value * (1 + drift[name]) for name, value in steps[-1].items()})
    _, base = _save(store, 10, steps[0], None, gains)
    written, base = _save(store, 20, steps[1], base, gains)
    assert written.new_bytes > 0.8 * written.raw_bytes, "no delta was worth it"
    assert store.num_reads > 4, "the first ones promised something, so all were tried"
    store.num_reads = 0
    _save(store, 30, steps[2], base, gains)
    assert store.num_reads == 0
