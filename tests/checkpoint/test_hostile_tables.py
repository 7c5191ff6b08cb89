"""Small chunk tables that ask for more time or memory than their size deserves."""

import numpy as np
import pytest
from safetensors.numpy import save

from cloudshift_lab.checkpoint import index
from cloudshift_lab.checkpoint.codecs import (
    ADAMW_V,
    ADAMW_W,
    DERIVED,
    PLANES_ZSTD,
    XOR_PLANES_ZSTD,
)
from cloudshift_lab.checkpoint.index import ChunkLocation, read_index
from cloudshift_lab.checkpoint.layout import MAX_CHUNK_BYTES, ObjectRef
from cloudshift_lab.core.errors import Corrupt

NOTHING = 2**32 - 1
PACKS = (ObjectRef("ab" * 32, 10),)


def table(rows, num_bases=0):
    """A table of (raw length, codec, first rows of operands, skip)."""
    count = len(rows)
    refs = [[*firsts, *[NOTHING] * (3 - len(firsts))] for _, _, firsts, _ in rows]
    columns = {
        "id": np.zeros((count, 32), "u1"),
        "raw_len": np.array([row[0] for row in rows], "<u4"),
        "codec": np.array([row[1] for row in rows], "u1"),
        "width": np.full(count, 4, "u1"),
        "pack": np.zeros(count, "<u4"),
        "offset": np.zeros(count, "<u8"),
        "stored_len": np.ones(count, "<u4"),
        "xxh3": np.zeros(count, "<u8"),
        "refs": np.array(refs, "<u4"),
        "skip": np.array([row[3] for row in rows], "<u4"),
        "bases": np.array([num_bases], "<u4"),
    }
    return bytes(save(columns))


def bomb(fan_out, num_top):
    """Rows on the third level that are decoded with fan_out**3 * 9 others, all in few rows."""
    low = [(4, PLANES_ZSTD, (), 0)] * fan_out
    first = [(4 * fan_out, ADAMW_V, (0, 0, 0), 0)] * fan_out
    second = [(4 * fan_out**2, ADAMW_W, (fan_out,) * 3, 0)] * fan_out
    top = [(2 * fan_out**3, DERIVED, (2 * fan_out,), 0)] * num_top
    return table(low + first + second + top)


@pytest.fixture
def resolved(monkeypatch):
    """How many locations are made; far too many end the test instead of the machine."""
    made = []
    whole = index.ChunkLocation

    def counted(*fields):
        made.append(None)
        assert len(made) < 100_000, "a table is resolved row by row"
        return whole(*fields)

    monkeypatch.setattr(index, "ChunkLocation", counted)
    return made


@pytest.mark.parametrize("num_top", [0, 1, 64])
def test_a_small_table_that_unfolds_into_millions_of_chunks_is_refused_at_once(resolved, num_top):
    data = bomb(64, num_top)
    assert len(data) < 32_768
    with pytest.raises(Corrupt, match="use another step"):
        read_index(data, PACKS, "x.index")
    assert len(resolved) <= 4 * 64


def test_each_row_is_resolved_once_however_many_refer_to_it(resolved):
    rows = [(64, PLANES_ZSTD, (), 0), *[(64, XOR_PLANES_ZSTD, (0,), 0)] * 500]
    found = read_index(table(rows), PACKS, "x.index")
    assert found.row(7).refs[0].chunks[0] is found.rows()[0]
    assert isinstance(found.row(7), ChunkLocation)
    assert len(resolved) <= 2 * len(rows)


def test_what_a_training_step_needs_is_within_the_bound():
    """Every weight replayed, with a rounded copy that spans three chunks of it."""
    size = MAX_CHUNK_BYTES // 8
    plain = [(size, PLANES_ZSTD, (), 0)] * 99
    v = [(size, ADAMW_V, (n, n, n), 0) for n in range(99)]
    w = [(size, ADAMW_W, (n, 99 + n, n), 0) for n in range(99)]
    half = [(size, DERIVED, (198 + n,), 4) for n in range(96)]
    assert len(read_index(table(plain + v + w + half), PACKS, "x.index").rows()) == 393


@pytest.mark.parametrize("codec", [XOR_PLANES_ZSTD, PLANES_ZSTD])
def test_only_a_rounded_copy_may_skip_bytes(codec):
    firsts = (0,) if codec == XOR_PLANES_ZSTD else ()
    rows = [(64, PLANES_ZSTD, (), 0), (32, codec, firsts, 8)]
    with pytest.raises(Corrupt, match="skips"):
        read_index(table(rows), PACKS, "x.index")


def test_a_whole_chunk_is_not_skipped():
    size = MAX_CHUNK_BYTES
    rows = [*[(size, PLANES_ZSTD, (), 0)] * 64, (4, DERIVED, (0,), 64 * size - 8)]
    with pytest.raises(Corrupt, match="skips"):
        read_index(table([*rows[:64], (4, DERIVED, (0,), size)]), PACKS, "x.index")
    with pytest.raises(Corrupt, match="skips"):
        read_index(table([*rows[:64], (4, DERIVED, (0,), 2**32 - 9)]), PACKS, "x.index")
    fits = read_index(table([*rows[:64], (4, DERIVED, (0,), size - 4)]), PACKS, "x.index")
    assert len(fits.row(64).refs[0].chunks) == 2
