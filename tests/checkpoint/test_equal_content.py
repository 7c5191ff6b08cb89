"""The same content as a delta and alone, in one step: every reader takes the plain chunk."""

import numpy as np
import pytest
from blake3 import blake3

from cloudshift_lab.checkpoint import KnownChunks, verify
from cloudshift_lab.checkpoint.codecs import LEVELS, STORE, XOR_PLANES_ZSTD
from cloudshift_lab.checkpoint.delta import to_read
from cloudshift_lab.checkpoint.fetch import Piece, fetch_pieces
from cloudshift_lab.checkpoint.index import (
    ChunkLocation,
    Operand,
    add_bases,
    pack_table,
    read_index,
    write_index,
)
from cloudshift_lab.checkpoint.layout import pack_key
from cloudshift_lab.checkpoint.recipe import encode_xor
from cloudshift_lab.checkpoint.repair import repair
from cloudshift_lab.checkpoint.verify import apart
from cloudshift_lab.core.errors import Corrupt
from cloudshift_lab.core.world import RealWorld
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.memory import MemoryStore

DRAW = np.random.default_rng(11)
EVERYTHING = (slice(None),)


def weights(rows):
    return (DRAW.standard_normal((rows, 1024)) * 0.02).astype(np.float32)


def touched(array, share=0.05):
    changed = array.copy()
    changed.view("<u4")[...] ^= DRAW.random(array.shape) < share
    return changed


def two_saves(save, opened, known_of, first, second):
    store = MemoryStore()
    sealed = save(store, first, step=1)
    base = opened(store, sealed)
    after = save(store, second, step=5, base=base, known=known_of(store, sealed))
    return store, after, opened(store, after)


def assert_reads(store, sealed, step, arrays):
    for name, array in arrays.items():
        assert step.tensor(name).tobytes() == array.tobytes()
    report = verify(store, "run-1", sealed.manifest_key, sealed.manifest_digest)
    assert report.ok, report.problems


def refers_to_itself(location):
    return any(chunk.id == location.id for operand in location.refs for chunk in operand.chunks)


def test_an_unchanged_chunk_of_a_pack_used_little_is_pointed_at(save, opened, known_of):
    before = weights(1280)
    after = touched(before)
    after[:256] = before[:256]
    store, sealed, step = two_saves(save, opened, known_of, {"w": before}, {"w": after})
    assert XOR_PLANES_ZSTD in {row.codec for row in step.locations()}
    assert not any(refers_to_itself(row) for row in step.locations())
    assert_reads(store, sealed, step, {"w": after})


def test_tensors_that_exchange_their_content_can_be_read(save, opened, known_of):
    ping, large = weights(64), weights(1024)
    pong = touched(ping)
    before = {"large": large, "ping": ping, "pong": pong}
    after = {"large": touched(large), "ping": pong, "pong": ping}
    store, sealed, step = two_saves(save, opened, known_of, before, after)
    assert XOR_PLANES_ZSTD in {row.codec for row in step.locations()}
    assert_reads(store, sealed, step, after)


@pytest.fixture
def careless_writer(monkeypatch):
    """One that writes deltas also to what a base's pack has as it is."""
    monkeypatch.setattr(KnownChunks, "and_also", lambda self, _: self)


@pytest.fixture
def to_itself(careless_writer, save, opened, known_of):
    """A step in which some unchanged content is a delta to itself; its pack's key and that row."""
    before = weights(1280)
    after = touched(before)
    after[:256] = before[:256]
    store, sealed, step = two_saves(save, opened, known_of, {"w": before}, {"w": after})
    log = RunLog(store, "run-1", RealWorld())
    log.acquire(generation=1, owner="o", nonce="a")
    log.commit(
        generation=1, step=5, manifest_key=sealed.manifest_key,
        manifest_digest=sealed.manifest_digest, nonce="b",
    )  # fmt: skip
    row = next(row for row in step.locations() if refers_to_itself(row))
    return store, sealed, step, after, row


def test_a_delta_to_itself_is_read_and_found_whole(to_itself):
    store, sealed, step, after, _ = to_itself
    assert_reads(store, sealed, step, {"w": after})
    assert repair(store, "run-1", dry_run=True).newest_whole == 5


def damage(store, row):
    data = bytearray(store.get(pack_key(row.pack)))
    data[row.offset + row.stored_len // 2] ^= 1
    store.put(pack_key(row.pack), bytes(data))


def test_repair_says_whole_where_only_a_delta_is_damaged_that_nobody_reads(to_itself):
    store, _, step, after, row = to_itself
    damage(store, row)
    assert step.tensor("w").tobytes() == after.tobytes()
    assert repair(store, "run-1", dry_run=True).newest_whole == 5


def test_repair_says_damaged_where_the_plain_chunk_is(to_itself):
    store, _, step, _, row = to_itself
    damage(store, row.refs[0].chunks[0])
    with pytest.raises(Corrupt, match="differs from its hash"):
        step.tensor("w")
    assert repair(store, "run-1", dry_run=True).steps[0].lost == ("w",)


def test_an_exchange_that_a_careless_writer_stored_can_be_read(
    careless_writer, save, opened, known_of
):
    ping, large = weights(64), weights(1024)
    pong = touched(ping)
    before = {"large": large, "ping": ping, "pong": pong}
    after = {"large": touched(large), "ping": pong, "pong": ping}
    store, sealed, step = two_saves(save, opened, known_of, before, after)
    small = {row for name in ("ping", "pong") for _, row in step.chunks_of(name)}
    plain = {row.id for row in step.locations() if not row.refs}
    assert any(row.refs for row in small)
    assert {row.id for row in small} <= plain
    assert_reads(store, sealed, step, after)


# -- written by somebody else ---------------------------------------------------------------------


def pack(store, blobs):
    """Rows in one pack; blobs are (raw bytes, codec, blob, operands' chunks)."""
    data = b"".join(blob for _, _, blob, _ in blobs)
    digest, rows, at = blake3(data).hexdigest(), [], 0
    store.put(pack_key(digest), data)
    for raw, codec, blob, bases in blobs:
        refs = tuple(Operand((base,), 0, base.raw_len) for base in bases)
        rows.append(
            ChunkLocation(
                blake3(raw).digest(), len(raw), codec, 4, digest, len(data), at, len(blob), 0, refs
            )
        )
        at += len(blob)
    return rows


def xor(raw, base):
    return encode_xor(np.frombuffer(raw, np.uint8), np.frombuffer(base, np.uint8), 4)


def exchanged(store):
    """A and B alone, a delta of each to the other, and one of A to A."""
    a = weights(4).tobytes()
    b = touched(np.frombuffer(a, np.float32)).tobytes()
    plain_a, plain_b = pack(store, [(a, STORE, a, ()), (b, STORE, b, ())])
    deltas = [
        (a, XOR_PLANES_ZSTD, xor(a, b), (plain_b,)),
        (b, XOR_PLANES_ZSTD, xor(b, a), (plain_a,)),
        (a, XOR_PLANES_ZSTD, xor(a, a), (plain_a,)),
    ]
    return [(raw, row) for (raw, *_), row in zip(deltas, pack(store, deltas), strict=True)]


@pytest.mark.parametrize("chosen", [(0, 1), (1, 0), (2,), (0, 1, 2), (0,), (2, 0, 1, 2)])
@pytest.mark.parametrize("threads", [1, 3])
def test_deltas_that_form_a_ring_by_their_ids_are_read_by_their_plain_chunks(chosen, threads):
    store = MemoryStore()
    found = exchanged(store)
    rows = [found[i][1] for i in chosen]
    placed = add_bases(rows)
    packs = pack_table(placed)
    assert read_index(write_index(rows, packs), packs, "x.index").rows() == placed
    targets = [np.zeros(row.raw_len, np.uint8) for row in rows]
    pieces = [
        Piece(row, (row.raw_len,), EVERYTHING, target)
        for row, target in zip(rows, targets, strict=True)
    ]
    fetch_pieces(store, pieces, threads=threads)
    assert [target.tobytes() for target in targets] == [found[i][0] for i in chosen]


def test_what_is_read_refers_only_to_lower_levels_and_everything_is_there():
    rows = [row for _, row in exchanged(MemoryStore())]
    chosen = to_read(rows)
    levels = {row.id: LEVELS[row.codec] for row in chosen}
    assert len(levels) == len(chosen) == 2
    for row in chosen:
        assert all(levels[c.id] < levels[row.id] for operand in row.refs for c in operand.chunks)


def test_verification_decodes_every_delta_that_a_reader_may_decode():
    rows = [row for _, row in exchanged(MemoryStore())]
    groups = list(apart(rows))
    assert [row for group in groups for row in group] == rows[:2]
    for group in groups:
        assert set(group) <= set(to_read(group))


def test_verification_tells_of_its_progress_with_the_deltas_too(save, opened, known_of):
    before = weights(600)
    store, sealed, step = two_saves(save, opened, known_of, {"w": before}, {"w": touched(before)})
    seen = []
    report = verify(
        store, "run-1", sealed.manifest_key, sealed.manifest_digest,
        progress=lambda *told: seen.append(told),
    )  # fmt: skip
    deltas = sum({row: row.stored_len for row in step.locations() if row.refs}.values())
    assert len(seen) == len(step.packs()) + 1
    assert seen[-1] == (report.num_bytes + deltas,) * 2
    assert deltas > 0


def test_a_ring_without_any_plain_chunk_is_refused_and_does_not_hang():
    store = MemoryStore()
    raw = weights(1).tobytes()
    (end,) = pack(store, [(raw, XOR_PLANES_ZSTD, xor(raw, raw), ())])
    ring = end._replace(refs=(Operand((end,), 0, len(raw)),))
    target = np.zeros(len(raw), np.uint8)
    with pytest.raises(Corrupt, match="use another step"):
        fetch_pieces(store, [Piece(ring, (len(raw),), EVERYTHING, target)])
