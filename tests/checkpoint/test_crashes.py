"""A save that dies at any request leaves the newest step whole, and saving again finishes it."""

from contextlib import suppress

import numpy as np
import pytest

from cloudshift_lab.checkpoint import KnownChunks, open_run, seal, stage_arrays, write_rank
from cloudshift_lab.checkpoint.gc import tombstoned
from cloudshift_lab.core.errors import NotFound
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.memory import MemoryStore

RUN = "run-1"
TABLE = np.random.default_rng(3).integers(0, 2**60, 200_000)


class Died(BaseException):
    """The process is gone: nothing handles this."""


class MortalStore(MemoryStore):
    """Dies at its n-th request: before its effect, in the middle of it, or after it."""

    def __init__(self, objects, lives, how):
        super().__init__()
        self._objects, self.lives, self.how = objects, lives, how

    def _meet(self, effect, torn=None):
        self.lives -= 1
        if self.lives:
            return effect()
        if self.how == "duplicate":
            with suppress(NotFound):
                effect()
        elif self.how == "torn" and torn is not None:
            torn()
        raise Died

    def get(self, key, *, start=None, end=None):
        return self._meet(lambda: super(MortalStore, self).get(key, start=start, end=end))

    def size(self, key):
        return self._meet(lambda: super(MortalStore, self).size(key))

    def list(self, prefix):
        return self._meet(lambda: super(MortalStore, self).list(prefix))

    def create(self, key, data):
        return self._meet(lambda: super(MortalStore, self).create(key, data))

    def put(self, key, data):
        put = super().put
        self._meet(lambda: put(key, data), lambda: put(key, data[: len(data) // 2]))


def state(step):
    moving = np.random.default_rng(step).integers(0, 2**60, 60_000)
    return {"table": TABLE, "weights": moving, "step": np.array(step)}


def save(store, step):
    """What an agent and its saver do for one incremental save; returns the bytes uploaded."""
    log = RunLog(store, RUN)
    found = log.sync()
    if found.owner is None:
        log.acquire(generation=1, owner="a", nonce="acquire")
        found = log.sync()
    doomed = tombstoned(store)
    known = KnownChunks.from_checkpoint(open_run(store, RUN)) if found.commits else None
    written = write_rank(
        store, RUN, stage_arrays(state(step), step=step), generation=1, known=known,
        dead_packs=doomed,
    )  # fmt: skip
    sealed = seal(store, RUN, step, generation=1, world_size=1, written=[written])
    log.commit(
        generation=1, step=step, manifest_key=sealed.manifest_key,
        manifest_digest=sealed.manifest_digest, nonce=f"commit-{step}", since=found.next_seq,
    )  # fmt: skip
    return written.new_bytes


def check(store, steps):
    """The newest step is one of ``steps`` and every element of it is right."""
    newest = open_run(store, RUN)
    assert newest.step in steps
    for name, array in state(newest.step).items():
        assert newest.tensor(name).tobytes() == array.tobytes()
    return newest.step


@pytest.mark.parametrize("how", ["clean", "torn", "duplicate"])
def test_a_save_that_dies_at_any_request_is_finished_by_the_next_one(how):
    first = MemoryStore()
    full_bytes = save(first, 1)
    deaths = 0
    while True:
        store = MemoryStore()
        store._objects = dict(first._objects)
        mortal = MortalStore(store._objects, deaths + 1, how)
        try:
            save(mortal, 2)
        except Died:
            deaths += 1
        else:
            break
        landed = check(store, {1, 2})
        new_bytes = save(store, 2)
        assert check(store, {2}) == 2, f"death {deaths}"
        assert landed == 2 or new_bytes < 0.5 * full_bytes, f"death {deaths}"
        assert new_bytes == 0 if landed == 2 else new_bytes > 0
    assert deaths > 12
