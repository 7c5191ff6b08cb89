"""Opening steps through the log, and manifests that mean harm."""

import json

import numpy as np
import pytest
from blake3 import blake3
from safetensors.numpy import load, save

from cloudshift_lab.checkpoint import open_checkpoint, open_run
from cloudshift_lab.core.errors import CloudshiftError, Corrupt, NotFound, UsageError
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.memory import MemoryStore
from cloudshift_lab.storage.store import open_store

RUN = "run-1"


def commit(store, sealed, generation=1):
    log = RunLog(store, RUN)
    log.acquire(generation=generation, owner="me", nonce=f"a{generation}")
    return log.commit(
        generation=generation, step=sealed.step, manifest_key=sealed.manifest_key,
        manifest_digest=sealed.manifest_digest, nonce=f"c{sealed.step}.{generation}",
    )  # fmt: skip


def test_latest_is_the_newest_committed_step_and_not_the_newest_written(arrays, save):
    store = MemoryStore()
    for step in (1, 2):
        commit(store, save(store, {**arrays, "adam.step": np.array(float(step))}, step=step))
    save(store, arrays, step=3)
    assert open_run(store, RUN).step == 2
    assert open_run(store, RUN, 1).tensor("adam.step") == 1.0
    with pytest.raises(NotFound, match=r"no committed step 3 .*committed: \[1, 2\]"):
        open_run(store, RUN, 3)


def test_a_step_committed_again_by_a_newer_owner_is_read_from_there(arrays, save):
    store = MemoryStore()
    commit(store, save(store, arrays, step=4))
    other = {**arrays, "adam.step": np.array(-1.0)}
    commit(store, save(store, other, step=4, generation=2), generation=2)
    assert open_run(store, RUN).tensor("adam.step") == -1.0
    assert open_run(store, RUN, 4).tensor("adam.step") == -1.0


def test_a_run_opens_by_url_and_a_run_that_moved_says_where_to(arrays, save):
    store = open_store("memory://reader-test")
    commit(store, save(store, arrays, step=4))
    assert open_run("memory://reader-test", RUN).step == 4
    RunLog(store, RUN).handover(
        generation=1, to_url="memory://elsewhere", new_owner="you", migration_id="m", nonce="h"
    )
    with pytest.raises(NotFound, match="moved to memory://elsewhere"):
        open_run(store, RUN, 99)


def test_an_unknown_run_is_not_found():
    with pytest.raises(NotFound, match="check the run id"):
        open_run(MemoryStore(), "nobody")


def test_a_log_record_opens_its_step_and_a_key_needs_its_digest(arrays, save):
    store = MemoryStore()
    sealed = save(store, arrays)
    assert open_checkpoint(store, RUN, commit(store, sealed)).step == 1
    with pytest.raises(UsageError):
        open_checkpoint(store, RUN, sealed.manifest_key)


@pytest.mark.parametrize(
    "key",
    [
        "../../etc/passwd",
        "runs/../steps/00000001/g1/manifest.{d}.json",
        "runs/other/steps/00000001/g1/manifest.{d}.json",
        "runs/run-1/steps/00000001/g01/manifest.{d}.json",
        "runs/run-1/steps/000000001/g1/manifest.{d}.json",
        "runs/run-1/steps/00000001/g1/../manifest.{d}.json",
        "runs/run-1/steps/00000001/g1/manifest.json",
    ],
)
def test_a_manifest_key_from_a_hostile_log_reads_nothing(key):
    digest = "0" * 64

    class Untouchable(MemoryStore):
        def get(self, key, *, start=None, end=None):
            raise AssertionError(f"read {key}")

    with pytest.raises(Corrupt):
        open_checkpoint(Untouchable(), RUN, key.format(d=digest), digest=digest)


class Forger:
    """Rewrites a sealed one-rank step with consistent hashes, as only an attacker would."""

    def __init__(self, store, sealed):
        self.store = store
        self.folder = sealed.manifest_key.rsplit("/", 1)[0]
        self.manifest = json.loads(store.get(sealed.manifest_key))
        (ref,) = self.manifest["ranks"]
        stem = f"{self.folder}/rank-0of1"
        self.record = json.loads(store.get(f"{stem}.{ref['blake3']}.json"))
        self.columns = dict(load(store.get(f"{stem}.{self.record['index']['blake3']}.index")))
        self.index = None
        self.listed = None

    def _put(self, name, data, suffix):
        digest = blake3(data).hexdigest()
        self.store.put(f"{self.folder}/{name}.{digest}.{suffix}", data)
        return {"blake3": digest, "size": len(data)}

    def open(self):
        index = self.index if self.index is not None else save(self.columns)
        self.record["index"] = {**self._put("rank-0of1", index, "index")}
        record = self._put("rank-0of1", json.dumps(self.record).encode(), "json")
        listed = self.record["index"] if self.listed is None else self.listed
        self.manifest["ranks"] = [{"rank": 0, **record, "index": listed or None}]
        digest = self._put("manifest", json.dumps(self.manifest).encode(), "json")["blake3"]
        return open_checkpoint(
            self.store, RUN, f"{self.folder}/manifest.{digest}.json", digest=digest
        )

    def read(self):
        checkpoint = self.open()
        for name in checkpoint.names():
            checkpoint.tensor(name)
        return checkpoint.leaves(0)


@pytest.fixture
def forger(save):
    store = MemoryStore()
    return Forger(store, save(store, {"w": np.arange(300_000, dtype=np.float32)}))


def test_the_forger_forges_well_enough_to_be_believed(forger):
    assert forger.read() == {"rank": 0}


def test_a_manifest_of_an_older_writer_names_no_chunk_tables(forger):
    forger.listed = {}
    assert forger.read() == {"rank": 0}


@pytest.mark.parametrize("size", [-1, 0, 7, 2**60])
def test_a_manifest_that_lists_another_chunk_table_is_refused(forger, size):
    forger.open()
    forger.listed = {**forger.record["index"], "size": size}
    assert_refused(forger)


def test_a_step_opens_in_two_rounds_of_requests(arrays, save, opened):
    class Rounds(MemoryStore):
        rounds = ()

        def get(self, key, *, start=None, end=None):
            self.rounds += (1,)
            return super().get(key, start=start, end=end)

        def get_many(self, requests, concurrency=8):
            self.rounds += (len(requests),) if requests else ()
            return [MemoryStore.get(self, key, start=a, end=z) for key, a, z in requests]

    store = Rounds()
    sealed = save(store, arrays, world_size=3)
    store.rounds = ()
    assert opened(store, sealed).ranks == (0, 1, 2)
    assert store.rounds == (1, 6)


def set_in(document, path, value):
    *way, last = path
    for part in way:
        document = document[part]
    document[last] = value


HOSTILE_MANIFESTS = [
    (["version"], 3), (["format"], "other"), (["step"], 7), (["generation"], 9), (["run_id"], "x"),
    (["world_size"], 0), (["world_size"], 2), (["packs"], []), (["packs", 0, "blake3"], "../../x"),
    (["packs", 0, "size"], -1), (["packs", 0, "size"], 2**50), (["coverage"], "whole"),
]  # fmt: skip
HOSTILE_RECORDS = [
    (["version"], 3), (["step"], 7), (["rank"], 3), (["boxes", 0, "dtype"], "pickle"),
    (["boxes", 0, "global_shape"], [2**62]), (["boxes", 0, "shape"], [2**40]),
    (["boxes", 0, "shape"], [299_999]), (["boxes", 0, "offset"], [-1]),
    (["boxes", 0, "offset"], [1]), (["boxes", 0, "cell"], [0]), (["boxes", 0, "cell"], [2**62]),
    (["boxes", 0, "cell"], [1]), (["boxes", 0, "cell"], [70_000]),
    (["boxes", 0, "cell"], [5, 5]), (["boxes", 0, "cell"], []),
    (["boxes"], []), (["packs"], []), (["packs", 0, "blake3"], "../" * 20 + "aaaa"),
    (["packs", 0, "blake3"], "0" * 64), (["leaves"], {"$x": 1}), (["leaves"], {"$b": "?"}),
    (["boxes", 0, "shape"], [0]),
]  # fmt: skip


def assert_refused(forger):
    with pytest.raises((Corrupt, NotFound)) as caught:
        forger.read()
    assert isinstance(caught.value, CloudshiftError)


@pytest.mark.parametrize("path, value", HOSTILE_MANIFESTS)
def test_a_hostile_manifest_is_refused(forger, path, value):
    set_in(forger.manifest, path, value)
    assert_refused(forger)


@pytest.mark.parametrize("path, value", HOSTILE_RECORDS)
def test_a_hostile_record_is_refused(forger, path, value):
    set_in(forger.record, path, value)
    assert_refused(forger)


@pytest.mark.parametrize(
    "column, value",
    [
        ("raw_len", 2**32 - 1), ("raw_len", 0), ("raw_len", 17 * 2**20), ("codec", 9),
        ("codec", 0), ("codec", 2), ("width", 0), ("width", 3), ("width", 8), ("pack", 5),
        ("offset", 2**63), ("offset", 2**64 - 1), ("offset", 1), ("stored_len", 2**32 - 1),
        ("stored_len", 0), ("stored_len", 5), ("id", 0),
    ],
)  # fmt: skip
def test_a_hostile_chunk_table_is_refused(forger, column, value):
    changed = forger.columns[column].copy()
    changed[0] = value
    forger.columns[column] = changed
    assert_refused(forger)


@pytest.mark.parametrize("column", ["id", "raw_len", "codec", "pack", "offset", "stored_len"])
def test_missing_short_or_mistyped_columns_are_refused(forger, column):
    sound = forger.columns[column]
    for wrong in (sound[:-1], sound.astype(np.float32), np.zeros((0,), sound.dtype)):
        forger.columns[column] = wrong
        assert_refused(forger)
    del forger.columns[column]
    assert_refused(forger)


def test_a_pack_hash_that_is_a_path_is_refused_even_when_all_agree_on_it(forger):
    for document in (forger.manifest, forger.record):
        document["packs"][0]["blake3"] = "../" * 20 + "aaaa"
    with pytest.raises(Corrupt, match="is not a blake3 hash"):
        forger.open()


def test_a_chunk_that_reaches_beyond_its_pack_is_refused_before_it_is_read(forger):
    size = forger.record["packs"][0]["size"]
    for offset in (size - 1, size, size + 1, 2**64 - 1):
        forger.columns["offset"] = np.full_like(forger.columns["offset"], offset)
        with pytest.raises(Corrupt, match="points outside its packs"):
            forger.open()


@pytest.mark.parametrize(
    "data", [b"", b"pickle", (2**60).to_bytes(8, "little") + b"{}", b"\x80\x04\x95" + bytes(60)]
)
def test_an_index_that_is_no_safetensors_file_is_refused(forger, data):
    forger.index = data
    assert_refused(forger)


def test_pickle_bytes_in_place_of_json_are_refused(forger):
    import_bomb = b"\x80\x04\x95\x1c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94"
    reference = forger._put("manifest", import_bomb, "json")["blake3"]
    with pytest.raises(Corrupt, match="not readable"):
        open_checkpoint(
            forger.store, RUN, f"{forger.folder}/manifest.{reference}.json", digest=reference
        )


def test_deeply_nested_json_is_refused(forger):
    bomb = b'{"leaves":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    reference = forger._put("manifest", bomb, "json")["blake3"]
    with pytest.raises(Corrupt):
        open_checkpoint(
            forger.store, RUN, f"{forger.folder}/manifest.{reference}.json", digest=reference
        )
