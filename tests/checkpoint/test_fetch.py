"""Fetching by a plan: ranges in any order, deltas with their bases, damage on the way."""

import threading
import tracemalloc

import numpy as np
import pytest
from blake3 import blake3

from cloudshift_lab.checkpoint import (
    BoxRequest,
    open_checkpoint,
    packer,
    seal,
    stage_arrays,
    write_rank,
)
from cloudshift_lab.checkpoint.boxes import whole
from cloudshift_lab.checkpoint.codecs import ADAMW_V, ADAMW_W, DERIVED, STORE
from cloudshift_lab.checkpoint.derived import round_half
from cloudshift_lab.checkpoint.fetch import (
    IN_FLIGHT_BYTES,
    MAX_REQUEST_BYTES,
    MAX_WASTE_BYTES,
    MIN_REQUEST_BYTES,
    Piece,
    bytes_per_request,
    fetch_pieces,
)
from cloudshift_lab.checkpoint.index import ChunkLocation, Operand
from cloudshift_lab.checkpoint.layout import pack_key
from cloudshift_lab.checkpoint.replay import Step, replayed_w, w_scalars
from cloudshift_lab.core.errors import Corrupt
from cloudshift_lab.storage.memory import MemoryStore


class Way(MemoryStore):
    """Answers in the order ``turn`` puts them in; what it was asked for is kept."""

    def __init__(self, turn=list):
        super().__init__()
        self.turn = turn
        self.asked = []
        self.flips = {}

    def get(self, key, *, start=None, end=None):
        self.asked.append((key, start, end))
        body = super().get(key, start=start, end=end)
        if self.flips.get(key, 0):
            self.flips[key] -= 1
            return bytes([body[0] ^ 1]) + body[1:]
        return body

    def get_each(self, requests, concurrency=8):
        for number in self.turn(range(len(requests))):
            key, start, end = requests[number]
            yield number, self.get(key, start=start, end=end)


def put_pack(store, blobs):
    """Each blob's chunk location in one pack; blobs are (id, raw length, codec, bytes, refs)."""
    data = b"".join(blob for _, _, _, blob, _ in blobs)
    digest = blake3(data).hexdigest()
    MemoryStore.put(store, pack_key(digest), data)
    rows, at = [], 0
    for chunk_id, raw_len, codec, blob, refs in blobs:
        width = 2 if codec == DERIVED else 1
        rows.append(
            ChunkLocation(
                chunk_id, raw_len, codec, width, digest, len(data), at, len(blob), 0, refs
            )
        )
        at += len(blob)
    return rows


def plain(raw):
    return (blake3(raw).digest(), len(raw), STORE, raw, ())


def rounded(raw, base):
    copy = round_half(np.frombuffer(raw, np.float32), "bfloat16").tobytes()
    refs = (Operand((base,), 0, len(raw)),)
    return copy, (blake3(copy).digest(), len(copy), DERIVED, b"\x01", refs)


def wanted(rows):
    """Pieces that take whole chunks, and where they land."""
    targets = [np.zeros(row.raw_len, np.uint8) for row in rows]
    pieces = [
        Piece(row, (row.raw_len,), (slice(None),), target)
        for row, target in zip(rows, targets, strict=True)
    ]
    return pieces, targets


@pytest.fixture(params=[list, reversed, lambda n: [*n][1::2] + [*n][::2]], ids=str)
def masters(request):
    """A store with chunks in one pack and rounded copies of them in another."""
    store = Way(request.param)
    draw = np.random.default_rng(3)
    raws = [draw.standard_normal(100_000).astype(np.float32).tobytes() for _ in range(12)]
    bases = put_pack(store, [plain(raw) for raw in raws])
    copies = [rounded(raw, base) for raw, base in zip(raws, bases, strict=True)]
    rows = put_pack(store, [blob for _, blob in copies])
    return store, raws, bases, [copy for copy, _ in copies], rows


@pytest.mark.parametrize("threads", [1, 3])
def test_deltas_come_back_whether_they_arrive_before_or_after_their_bases(masters, threads):
    store, _, _, copies, rows = masters
    pieces, targets = wanted(rows)
    fetch_pieces(store, pieces, concurrency=4, threads=threads)
    assert [target.tobytes() for target in targets] == copies


def test_a_base_that_is_also_wanted_or_shared_is_fetched_once(masters):
    store, raws, bases, copies, rows = masters
    pieces, targets = wanted([*rows, *bases, *rows])
    fetch_pieces(store, pieces, concurrency=2, threads=2)
    assert [target.tobytes() for target in targets] == [*copies, *raws, *copies]
    asked = sum(end - start for _, start, end in store.asked)
    assert asked == sum(row.stored_len for row in [*bases, *rows])


def test_a_base_damaged_on_its_way_is_read_again_and_its_delta_waits_for_it(masters):
    store, _, bases, copies, rows = masters
    store.flips[pack_key(bases[0].pack)] = 1
    pieces, targets = wanted(rows)
    fetch_pieces(store, pieces, threads=2)
    assert [target.tobytes() for target in targets] == copies


def test_a_base_that_stays_damaged_is_refused(masters):
    store, _, bases, _, rows = masters
    store.flips[pack_key(bases[0].pack)] = 1000
    with pytest.raises(Corrupt, match="differs from its hash"):
        fetch_pieces(store, wanted(rows)[0], threads=2)


def test_a_piece_of_another_size_than_its_chunk_is_refused():
    store = Way()
    (row,) = put_pack(store, [plain(bytes(100))])
    target = np.zeros(50, np.uint8)
    with pytest.raises(Corrupt, match="has 100 bytes and stands for 50"):
        fetch_pieces(store, [Piece(row, (50,), (slice(None),), target)])


def test_little_is_read_that_nobody_wants():
    store = Way()
    draw = np.random.default_rng(4)
    rows = put_pack(store, [plain(draw.bytes(40_000)) for _ in range(100)])
    pieces, _ = wanted(rows[::2])
    fetch_pieces(store, pieces)
    wasted = sum(end - start for _, start, end in store.asked) - 50 * 40_000
    assert wasted <= MAX_WASTE_BYTES * len(store.asked)
    assert len(store.asked) < 50


def test_only_the_callers_thread_asks_the_store():
    class Watched(Way):
        threads = frozenset()

        def get(self, key, *, start=None, end=None):
            self.threads |= {threading.get_ident()}
            return super().get(key, start=start, end=end)

    store = Watched()
    rows = put_pack(store, [plain(np.random.default_rng(5).bytes(2**20)) for _ in range(8)])
    store.flips[pack_key(rows[0].pack)] = 1
    fetch_pieces(store, wanted(rows)[0], threads=4)
    assert store.threads == {threading.get_ident()}


# -- memory ---------------------------------------------------------------------------------------


def trained(state, number):
    """The state one AdamW step later, with noise for a gradient, and leaves that say so."""
    draw = np.random.default_rng(number)
    step = Step(1e-3, 0.9, 0.999, 1e-8, 0.01, number)
    after, names = {}, [name.removeprefix("model/") for name in state if name[:6] == "model/"]
    for name in names:
        m, v = (state[f"optimizer/{name}/exp_avg{part}"] for part in ("", "_sq"))
        grad = (draw.standard_normal(m.shape) * 1e-3).astype(np.float32)
        m = m + np.float32(0.1) * (grad - m)
        v = v * np.float32(0.999) + (grad * np.float32(1 - 0.999)) * grad
        after |= {
            f"model/{name}": replayed_w(m, v, state[f"model/{name}"], w_scalars(step), 0),
            f"optimizer/{name}/exp_avg": m,
            f"optimizer/{name}/exp_avg_sq": v,
            f"optimizer/{name}/step": np.array(number, np.float32),
        }
    values = {
        "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "amsgrad": False,
        "decoupled_weight_decay": True,
    }  # fmt: skip
    return after, {"optimizer": {"groups": [{"names": names, "values": values}]}}


def replayed_step(store):
    """A step that is a replay of the one before, its state, and how many bytes that has."""
    state = {}
    for number in range(48):
        zeros = np.zeros((512, 128), np.float32)
        draw = np.random.default_rng(100 + number)
        state[f"model/{number:02}"] = draw.standard_normal(zeros.shape).astype(np.float32)
        state |= {f"optimizer/{number:02}/exp_avg{part}": zeros for part in ("", "_sq")}
    base = None
    for number in (1, 2):
        state, leaves = trained(state, number)
        staged = stage_arrays(state, step=number, leaves=leaves)
        written = write_rank(store, "r", staged, generation=1, base=base)
        sealed = seal(store, "r", number, generation=1, world_size=1, written=[written])
        base = open_checkpoint(store, "r", sealed.manifest_key, digest=sealed.manifest_digest)
    assert {ADAMW_V, ADAMW_W} <= {row.codec for row in base.locations()}
    return base, state


@pytest.mark.parametrize("backwards", [False, True])
def test_a_replayed_step_is_restored_without_holding_all_its_bases(backwards, monkeypatch):
    monkeypatch.setattr(packer, "PACK_BYTES", 3_000_000)
    step, state = replayed_step(MemoryStore())
    names = sorted(state, reverse=backwards)
    out = [np.empty(state[name].nbytes, np.uint8) for name in names]
    requests = [BoxRequest(name, *whole(state[name].shape)) for name in names]
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    step.read_many(requests, out=out, threads=1)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [found.tobytes() for found in out] == [state[name].tobytes() for name in names]
    assert most - before < 0.4 * sum(found.nbytes for found in out)


def test_requests_under_way_are_bounded_in_bytes():
    for concurrency in (1, 4, 32, 96):
        assert concurrency * bytes_per_request(2**50, concurrency) <= IN_FLIGHT_BYTES
    assert bytes_per_request(2**50, 4) == MAX_REQUEST_BYTES
    assert bytes_per_request(2**20, 32) == MIN_REQUEST_BYTES
