import contextlib
import struct

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cloudshift_lab.checkpoint.codecs import (
    HEAD_BYTES,
    PLANES_ZSTD,
    SHUFFLE_ZSTD,
    STORE,
    Verdict,
    decode,
    encode,
    judge,
)
from cloudshift_lab.checkpoint.dtypes import ELEMENT_TYPES
from cloudshift_lab.core.errors import Corrupt

RNG = np.random.default_rng(3)


def as_bytes(array):
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def round_trip(raw, dtype):
    encoded = encode(raw, ELEMENT_TYPES[dtype])
    assert len(encoded.blob) <= len(raw)
    back = decode(encoded.blob, encoded.codec, encoded.width, len(raw))
    assert back.tobytes() == raw.tobytes()
    return encoded


@given(st.sampled_from(sorted(ELEMENT_TYPES)), st.binary(min_size=1, max_size=300), st.data())
def test_any_bytes_of_any_dtype_come_back_exactly(dtype, seed, data):
    itemsize = ELEMENT_TYPES[dtype].itemsize
    times = data.draw(st.sampled_from([1, 7, 200]))
    raw = np.frombuffer((seed * times * itemsize), dtype=np.uint8)
    round_trip(raw, dtype)


@pytest.mark.parametrize("dtype", sorted(ELEMENT_TYPES))
def test_weights_zeros_and_noise_of_every_dtype_come_back_exactly(dtype):
    kind = ELEMENT_TYPES[dtype]
    noise = RNG.integers(0, 256, 64 * 1024, dtype=np.uint8)
    for raw in (noise, np.zeros_like(noise), as_bytes(noise.reshape(-1, 16) // 16)):
        assert len(raw) % kind.itemsize == 0
        round_trip(raw, dtype)


def test_float_weights_shrink_to_the_exponent_entropy_wall():
    weights = (RNG.standard_normal(1 << 18) * 0.02).astype(np.float32)
    encoded = round_trip(as_bytes(weights), "float32")
    assert encoded.codec == PLANES_ZSTD
    assert len(encoded.blob) / weights.nbytes < 0.84
    halves = as_bytes(weights).view(np.uint16)[1::2]
    encoded = round_trip(as_bytes(halves), "bfloat16")
    assert len(encoded.blob) / (2 * len(halves)) < 0.68


def test_noise_is_stored_as_it_is():
    noise = RNG.integers(0, 256, 1 << 18, dtype=np.uint8)
    for dtype in ("uint8", "int64", "float32"):
        assert encode(noise, ELEMENT_TYPES[dtype]).codec == STORE


def _weights(count):
    return (RNG.standard_normal(count) * 0.02).astype(np.float32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_a_blob_made_in_its_place_is_the_same_as_one_made_elsewhere(dtype):
    kind = ELEMENT_TYPES[dtype]
    raw = as_bytes(_weights(1 << 16).astype("f8") if dtype == "float64" else _weights(1 << 16))
    room = memoryview(bytearray(len(raw) + HEAD_BYTES))
    placed = encode(raw, kind, room=room)
    assert placed == encode(raw, kind)
    assert room[: len(placed.blob)] == placed.blob
    assert placed.blob.obj is room.obj


def test_of_weights_only_the_exponent_is_worth_coding():
    raw = as_bytes(_weights(1 << 18))
    kind = ELEMENT_TYPES["float32"]
    verdicts = judge(raw, kind)
    assert verdicts == (Verdict.STORED,) * 3 + (Verdict.CODED,)
    assert encode(raw, kind, verdicts=verdicts) == encode(raw, kind)


def test_one_quiet_chunk_among_eight_noisy_ones_is_seen():
    weights = _weights(8 << 16)
    weights[3 << 16 : 4 << 16] = 0.0
    assert judge(as_bytes(weights), ELEMENT_TYPES["float32"]) == (Verdict.CODED,) * 4


def test_integers_are_not_judged_by_planes():
    assert judge(as_bytes(np.arange(1 << 16)), ELEMENT_TYPES["int64"]) == ()


def test_counters_shrink_to_almost_nothing():
    counters = np.arange(1 << 16, dtype=np.int64)
    encoded = round_trip(as_bytes(counters), "int64")
    assert encoded.codec == SHUFFLE_ZSTD
    assert len(encoded.blob) < counters.nbytes / 100


def test_the_blob_of_planes_is_laid_out_as_the_format_says():
    words = np.array([0x80000001] * 100, dtype="<u4")  # rotated left: 0x00000003
    encoded = encode(as_bytes(words), ELEMENT_TYPES["float32"])
    lengths = struct.unpack_from("<4I", encoded.blob)
    frame = encoded.blob[16 : 16 + lengths[0]]
    assert zstandard.ZstdDecompressor().decompress(frame) == b"\x03" * 100
    last = encoded.blob[16 + sum(lengths[:3]) :]
    assert zstandard.ZstdDecompressor().decompress(last) == b"\x00" * 100


def test_a_frame_that_would_unpack_to_gigabytes_is_refused_before_it_does():
    bomb = zstandard.ZstdCompressor().compress(bytes(64 * 2**20))
    with pytest.raises(Corrupt, match="announce"):
        decode(bomb, SHUFFLE_ZSTD, 1, 1024)
    with pytest.raises(Corrupt, match="announce"):
        decode(struct.pack("<2I", len(bomb), 0) + bomb, PLANES_ZSTD, 2, 1024)


def test_a_frame_without_its_size_is_refused():
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1024))
    with pytest.raises(Corrupt):
        decode(frame, SHUFFLE_ZSTD, 1, 1024)


def test_bytes_after_the_frame_are_refused():
    frame = zstandard.ZstdCompressor().compress(bytes(1024))
    with pytest.raises(Corrupt):
        decode(frame + b"x", SHUFFLE_ZSTD, 1, 1024)


@pytest.mark.parametrize(
    "codec, width, raw_len", [(7, 1, 8), (PLANES_ZSTD, 3, 9), (PLANES_ZSTD, 4, 10), (STORE, 1, 9)]
)
def test_unknown_codecs_and_impossible_widths_are_corrupt(codec, width, raw_len):
    with pytest.raises(Corrupt):
        decode(b"12345678", codec, width, raw_len)


@given(st.data())
def test_a_damaged_blob_decodes_to_the_right_length_or_is_corrupt(data):
    dtype = data.draw(st.sampled_from(["float32", "bfloat16", "int64", "uint8"]))
    raw = as_bytes((np.arange(4096) % 50).astype(np.float32))
    encoded = encode(raw, ELEMENT_TYPES[dtype])
    blob = bytearray(encoded.blob)
    for _ in range(data.draw(st.integers(1, 3))):
        blob[data.draw(st.integers(0, len(blob) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.sampled_from([len(blob), len(blob) - 1, 3, 0]))
    with contextlib.suppress(Corrupt):
        assert len(decode(bytes(blob[:cut]), encoded.codec, encoded.width, len(raw))) == len(raw)
