"""Random damage anywhere in a store is found or changes nothing; hostile documents are refused."""

import json
import random

import msgspec
import numpy as np
import pytest

from cloudshift_lab.checkpoint import KnownChunks, open_run
from cloudshift_lab.checkpoint.gc import collect, pin
from cloudshift_lab.checkpoint.layout import MAX_DOCUMENT_BYTES, blake3_hex, pack_key
from cloudshift_lab.core.errors import CloudshiftError, Corrupt
from cloudshift_lab.storage.log import RunLog, log_key
from cloudshift_lab.storage.memory import MemoryStore

RUN = "run-1"
SEED = 20_261_123
NUM_DAMAGES = 400


def tensors(step):
    rng = np.random.default_rng(step)
    return {
        "weight": rng.standard_normal((300, 70)).astype(np.float32),
        "tokens": rng.integers(0, 50_000, 900),
        "scale": np.array(step, dtype=np.float64),
    }


@pytest.fixture
def store(save):
    store = MemoryStore()
    log = RunLog(store, RUN)
    log.acquire(generation=1, owner="a", nonce="a")
    for step in (10, 20, 30):
        sealed = save(store, tensors(step), step=step, world_size=2)
        log.commit(
            generation=1, step=step, manifest_key=sealed.manifest_key,
            manifest_digest=sealed.manifest_digest, nonce=f"c{step}",
        )  # fmt: skip
    return store


def damage(data, rng):
    if rng.random() < 0.3:
        return data[: rng.randrange(len(data))]
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def test_random_damage_in_any_object_is_never_silent(store):
    rng = random.Random(SEED)
    keys = store.list("")
    found = {"log": 0, "steps": 0, "packs": 0}
    for _ in range(NUM_DAMAGES):
        key = rng.choice(keys)
        sound = store.get(key)
        store.put(key, damage(sound, rng))
        try:
            newest = open_run(store, RUN)
            for name, array in tensors(30).items():
                assert newest.tensor(name).tobytes() == array.tobytes(), f"{key}, seed {SEED}"
            assert newest.step == 30, f"{key}, seed {SEED}"
        except CloudshiftError as error:
            part = next(part for part in found if part in key)
            found[part] += 1
            assert not isinstance(error, AssertionError)
        store.put(key, sound)
    assert min(found.values()) > 10


def test_a_commit_that_names_another_steps_manifest_is_refused(store):
    log = RunLog(store, RUN)
    older, newer = log.sync().commits[0], log.sync().commits[-1]
    forged = msgspec.structs.replace(newer, manifest_key=older.manifest_key,
                                     manifest_digest=older.manifest_digest, check="")  # fmt: skip
    store.put(log_key(RUN, newer.seq), msgspec.json.encode(forged))
    with pytest.raises(Corrupt, match="another step"):
        open_run(store, RUN)


def recommitted(store, forge):
    """The newest step's manifest as ``forge`` makes it, under its right hash, committed."""
    newest = RunLog(store, RUN).sync().last_commit
    manifest = json.loads(store.get(newest.manifest_key))
    body = forge(manifest)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    digest = blake3_hex(data)
    key = newest.manifest_key.replace(newest.manifest_digest, digest)
    store.put(key, data)
    record = msgspec.structs.replace(newest, manifest_key=key, manifest_digest=digest, check="")
    store.put(log_key(RUN, newest.seq), msgspec.json.encode(record))


HOSTILE = {
    "pickle bytes": lambda m: b"\x80\x04cposix\nsystem\n(S'true'\ntR.",
    "an unknown version": lambda m: {**m, "version": 99},
    "another format": lambda m: {**m, "format": "cloudshift-rank"},
    "another run": lambda m: {**m, "run_id": "run-2"},
    "a pack beyond the limit": lambda m: {**m, "packs": [{**m["packs"][0], "size": 2**60}]},
    "a pack outside the layout": lambda m: {**m, "packs": [{**m["packs"][0], "blake3": "../log"}]},
    "a record beyond the limit": lambda m: {
        **m, "ranks": [{**m["ranks"][0], "size": MAX_DOCUMENT_BYTES + 1}]},
    "a rank twice": lambda m: {**m, "ranks": [m["ranks"][0]] * 2},
    "nothing": lambda m: b"",
    "deep nesting": lambda m: b"[" * 100_000,
    "a negative size": lambda m: {**m, "packs": [{**m["packs"][0], "size": -1}]},
    "no world": lambda m: {**m, "world_size": 0},
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_manifest_is_refused_and_collects_nothing(store, what):
    before = set(store.list("packs"))
    recommitted(store, HOSTILE[what])
    with pytest.raises(CloudshiftError):
        newest = open_run(store, RUN)
        newest.tensor("weight")
    RunLog(store, RUN).forget(steps=[10, 20], nonce="f")
    if what not in ("a rank twice", "a record beyond the limit"):
        with pytest.raises(CloudshiftError):
            collect(store, grace_s=0)
        assert set(store.list("packs")) == before


def test_a_pack_that_ends_too_early_is_told_from_one_that_is_gone(store):
    newest = open_run(store, RUN)
    key = next(iter(newest.packs()))
    store.put(key, store.get(key)[:3])
    with pytest.raises(Corrupt):
        newest.tensor("weight")


def test_known_chunks_come_from_a_step_whose_every_document_was_checked(store):
    index = next(key for key in open_run(store, RUN).object_keys() if key.endswith(".index"))
    store.put(index, damage(store.get(index), random.Random(1)))
    with pytest.raises(Corrupt):
        KnownChunks.from_checkpoint(open_run(store, RUN))


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "x" * 200])
def test_a_name_that_leads_elsewhere_makes_no_pin(store, name):
    with pytest.raises(CloudshiftError):
        pin(store, name, RUN, 30)
    assert store.list("pins") == []


@pytest.mark.parametrize("digest", ["../../etc/passwd", "a" * 63, "A" * 64, "g" * 64, ""])
def test_a_key_is_built_from_a_hash_or_not_at_all(digest):
    with pytest.raises(Corrupt):
        pack_key(digest)
