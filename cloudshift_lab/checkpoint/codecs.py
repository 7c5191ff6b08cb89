"""Chunk codecs: what needs nothing but the blob, and the sparse planes of a delta (FORMAT.md 8)."""

from __future__ import annotations

import struct
import threading
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zstandard

from cloudshift_lab.checkpoint.dtypes import ElementType
from cloudshift_lab.core.errors import Corrupt

Bytes1d = npt.NDArray[np.uint8]
Bytes2d = npt.NDArray[np.uint8]
Words = npt.NDArray[np.unsignedinteger[Any]]
STORE, PLANES_ZSTD, SHUFFLE_ZSTD, XOR_PLANES_ZSTD, DERIVED, ADAMW_V, ADAMW_W = range(7)
# A chunk may only refer to chunks of a lower level: nothing can refer to itself, and three steps
# down everything is plain.
LEVELS = {
    STORE: 0, PLANES_ZSTD: 0, SHUFFLE_ZSTD: 0, XOR_PLANES_ZSTD: 1,
    ADAMW_V: 1, ADAMW_W: 2, DERIVED: 3,
}  # fmt: skip
WORDS: dict[int, np.dtype[Any]] = {
    1: np.dtype("<u1"),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
    8: np.dtype("<u8"),
}
_SHIFTS = [np.array(bits, dtype=np.uint8) for bits in range(64)]
_SIGNED = {size: np.dtype(f"<i{size}") for size in WORDS}
HEAD_BYTES = 4 * max(WORDS)
"""How much longer than its chunk a blob may get before it turns out not to be shorter."""
_PROBE_BLOCK, _PROBE_BLOCKS = 64, 16
# Share of equal pairs in random bytes is 1/256; at 7.9 bits of order-0 entropy it is 15 % more.
_RANDOM_PAIRS, _CODED_PAIRS = 1.15 / 256, 2 / 256
_SPLIT = 2**31
_SCRATCH_BYTES = 2**20 + 64
_local = threading.local()


class Encoded(NamedTuple):
    """A chunk as it is stored; never longer than its raw bytes, of which it may be a view."""

    codec: int
    width: int
    blob: bytes | memoryview


class Verdict(IntEnum):
    """What a sample of a byte plane says: not worth a compressor's time, perhaps, certainly."""

    STORED = 0
    UNSURE = 1
    CODED = 2


Verdicts = tuple[Verdict, ...]
"""Of each byte plane, the least significant first; empty: nothing is known."""


class _Zstd(NamedTuple):
    literals: Any
    matching: Any
    decompressor: Any


def _zstd() -> _Zstd:
    """This thread's compressors: they are not safe to share, and making one costs more than use."""
    found: _Zstd | None = getattr(_local, "zstd", None)
    if found is None:
        # No matches, only Huffman: the rotated exponent plane has no repetitions worth searching.
        # target_length > 0 would turn literal coding off.
        literals = zstandard.ZstdCompressionParameters(
            window_log=17, chain_log=6, hash_log=7, search_log=1, min_match=7, target_length=0,
            strategy=zstandard.STRATEGY_FAST, write_content_size=1, write_checksum=0,
        )  # fmt: skip
        found = _local.zstd = _Zstd(
            zstandard.ZstdCompressor(compression_params=literals),
            zstandard.ZstdCompressor(level=1),
            zstandard.ZstdDecompressor(),
        )
    return found


def encode(
    raw: Bytes1d, kind: ElementType, *, room: memoryview | None = None, verdicts: Verdicts = ()
) -> Encoded:
    """Compress one chunk with the codec of its element type, or store it where that is smaller.

    Args:
        raw: The chunk's bytes, contiguous.
        kind: Its element type.
        room: Memory that the blob may be made in, from its beginning; as long as the chunk and
            ``HEAD_BYTES`` at least. None: in memory of its own.
        verdicts: What ``judge`` said of the bytes around.
    """
    if len(raw) <= 64:
        return Encoded(STORE, 1, raw.tobytes())
    if kind.is_float:
        blob = _encode_planes(raw, kind.width, room, verdicts)
        return _smaller(raw, Encoded(PLANES_ZSTD, kind.width, blob))
    if not _worth_trying(raw):
        return Encoded(STORE, 1, raw.data)
    planes = np.ascontiguousarray(raw.reshape(-1, kind.width).T)
    return _smaller(raw, Encoded(SHUFFLE_ZSTD, kind.width, _zstd().matching.compress(planes)))


def judge(run: Bytes1d, kind: ElementType) -> Verdicts:
    """Look at samples of neighbouring chunks at once: of weights, most planes are noise in all.

    Args:
        run: The bytes of the chunks, contiguous.
        kind: Their element type; only floats are split into planes that are coded one by one.
    """
    if not kind.is_float:
        return ()
    words = _sample(run.view(WORDS[kind.width]))
    plane = np.empty(len(words), dtype=np.uint8)
    found = []
    for p in range(kind.width):
        _take_plane(words, p, plane)
        share = _equal_pairs(plane)
        found.append(Verdict((share >= _RANDOM_PAIRS) + (share >= _CODED_PAIRS)))
    return tuple(found)


def _smaller(raw: Bytes1d, encoded: Encoded) -> Encoded:
    return encoded if len(encoded.blob) < len(raw) else Encoded(STORE, 1, raw.data)


def _encode_planes(
    raw: Bytes1d, width: int, room: memoryview | None, verdicts: Verdicts
) -> bytes | memoryview:
    """Rotate, split and compress where the blob will lie, or else in scratch memory.

    Every fresh page costs more than its use.
    """
    words = raw.view(WORDS[width])
    num_words, at = len(words), 4 * width
    where = _scratch("blob", len(raw) + at).data if room is None else room
    blob: Bytes1d = np.frombuffer(where, dtype=np.uint8)
    upper = None if width != 4 else _upper_half(words)
    lengths = []
    for p in range(width):
        plane = blob[at : at + num_words]
        if p < 2 or upper is None:
            _take_plane(words, p, plane)
        else:
            np.right_shift(upper, _SHIFTS[8 * p - 16], out=plane, casting="unsafe")
        lengths.append(_shrink(plane, verdicts[p] if verdicts else Verdict.UNSURE))
        at += lengths[-1]
    struct.pack_into(f"<{width}I", where, 0, *lengths)
    return where[:at].tobytes() if room is None else where[:at]


def _upper_half(words: Words) -> Words:
    """The upper two bytes of four-byte words rotated left by one bit: half as much to read."""
    upper = _scratch("upper", 2 * len(words)).view(WORDS[2])
    np.right_shift(words, _SHIFTS[15], out=upper, casting="unsafe")
    return upper


def _take_plane(words: Words, p: int, plane: Bytes1d) -> None:
    """Byte ``p`` of every word rotated left by one bit."""
    if p:
        np.right_shift(words, _SHIFTS[8 * p - 1], out=plane, casting="unsafe")
        return
    signs = _scratch("signs", len(words)).view(np.bool_)
    np.less(words.view(_SIGNED[words.itemsize]), 0, out=signs)
    np.copyto(plane, words, casting="unsafe")
    np.add(plane, plane, out=plane)
    np.bitwise_or(plane, signs, out=plane)


def _shrink(plane: Bytes1d, verdict: Verdict) -> int:
    """Compress a plane where it lies if that makes it shorter; its new length in bytes."""
    if verdict == Verdict.STORED or (verdict == Verdict.UNSURE and not _worth_trying(plane)):
        return len(plane)
    frame: bytes = _zstd().literals.compress(plane)
    if len(frame) >= len(plane):
        return len(plane)
    plane[: len(frame)] = np.frombuffer(frame, dtype=np.uint8)
    return len(frame)


def _scratch(name: str, num_bytes: int) -> Bytes1d:
    """Memory of this thread, used again by the next chunk: fresh pages cost more than coding."""
    arenas: dict[str, Bytes1d] = _local.__dict__.setdefault("arenas", {})
    found = arenas.get(name)
    if found is None or len(found) < num_bytes:
        found = arenas[name] = np.empty(max(num_bytes, _SCRATCH_BYTES), dtype=np.uint8)
    return found[:num_bytes]


def _worth_trying(data: Bytes1d) -> bool:
    """Collision entropy of a sample: random bytes are not worth a compressor's time."""
    return _equal_pairs(_sample(data)) >= _RANDOM_PAIRS


def _sample(data: Words) -> Words:
    """Blocks of neighbours, all over the data; all of it where that is not more."""
    if len(data) <= _PROBE_BLOCK * _PROBE_BLOCKS:
        return data
    stride = len(data) // _PROBE_BLOCKS
    blocks = data[: stride * _PROBE_BLOCKS].reshape(_PROBE_BLOCKS, stride)
    return blocks[:, :_PROBE_BLOCK].reshape(-1)


def _equal_pairs(data: Bytes1d) -> float:
    """Share of the pairs of bytes in which both are equal."""
    counts = np.bincount(data, minlength=256)
    pairs = len(data) * (len(data) - 1)
    return (int(counts @ counts) - len(data)) / max(1, pairs)


def entropy_floor(raw: Bytes1d, kind: ElementType) -> float:
    """Bytes below which no coding of single bytes of the planes can get: what a bench compares.

    The sum over the byte planes (floats rotated by one bit, as ``planes-zstd`` splits them) of
    their order-0 entropy over the whole of ``raw``. Pass one tensor at a time, or the XOR of two
    for the floor of their delta. What repeats (whole rows of zeros) can be coded in less.

    Args:
        raw: Bytes of a tensor, contiguous.
        kind: Its element type.
    """
    words = raw.view(WORDS[kind.width])
    plane = np.empty(len(words), dtype=np.uint8)
    total = 0.0
    for p in range(kind.width):
        if kind.is_float:
            _take_plane(words, p, plane)
        else:
            np.copyto(plane, raw[p :: kind.width])
        counts = np.bincount(plane, minlength=256)
        shares = counts[counts > 0] / max(1, len(plane))
        total -= float(shares @ np.log2(shares)) * len(plane) / 8
    return total


def decode(blob: bytes | memoryview, codec: int, width: int, raw_len: int) -> Bytes1d:
    """Undo ``encode``; allocates nothing that ``raw_len`` does not allow.

    Args:
        blob: The stored bytes.
        codec: Codec number.
        width: Bytes per word.
        raw_len: Expected raw bytes; the caller has bounded it.

    Raises:
        Corrupt: The blob does not decode to exactly ``raw_len`` bytes, or the codec is unknown.
    """
    if codec == STORE:
        if len(blob) != raw_len:
            raise Corrupt(f"stored chunk has {len(blob)} bytes instead of {raw_len}; {_ADVICE}")
        return np.frombuffer(blob, dtype=np.uint8)
    if codec == PLANES_ZSTD and width in (2, 4, 8) and raw_len % width == 0:
        return _decode_planes(blob, width, raw_len)
    if codec == SHUFFLE_ZSTD and width in WORDS and raw_len % width == 0:
        flat = np.frombuffer(_decompress(blob, raw_len), dtype=np.uint8)
        return np.ascontiguousarray(flat.reshape(width, -1).T).reshape(-1)
    raise Corrupt(f"chunk codec {codec} with width {width} is unknown; update cloudshift-lab")


def _decode_planes(blob: bytes | memoryview, width: int, raw_len: int) -> Bytes1d:
    num_words, at = raw_len // width, 4 * width
    if len(blob) < at:
        raise Corrupt(f"chunk is cut off; {_ADVICE}")
    lengths = struct.unpack_from(f"<{width}I", blob)
    if sum(lengths) + at != len(blob):
        raise Corrupt(f"chunk's planes do not add up; {_ADVICE}")
    columns = np.empty((num_words, width), dtype=np.uint8)
    for p, length in enumerate(lengths):
        columns[:, p] = _read_section(memoryview(blob)[at : at + length], num_words)
        at += length
    return _rotated_back(columns).view(np.uint8)


def _rotated_back(columns: Bytes2d) -> Words:
    """Words from their bytes, one row each, rotated right by one bit; changes ``columns``."""
    width = columns.shape[1]
    words = columns.reshape(-1).view(WORDS[width])
    restored = words >> words.dtype.type(1)
    words <<= words.dtype.type(8 * width - 1)
    np.bitwise_or(restored, words, out=restored)
    rotated: Words = restored
    return rotated


def encode_sparse(words: Words) -> bytes:
    """Code words that are mostly zero: which are not, one bit each, then the planes of those.

    A byte plane of a delta has far less than one bit per word, which no Huffman code reaches;
    bits packed by eight do. Planes that are mostly zero themselves are split in the same way.
    """
    mask = words != 0
    changed = words if mask.all() else words[mask]
    plane = _scratch("blob", len(changed))
    sections = [_bits_section(mask)]
    heads = [len(sections[0])]
    for p in range(words.itemsize):
        _take_plane(changed, p, plane)
        section, is_split = _sparse_plane(plane)
        heads.append(len(section) | _SPLIT * is_split)
        sections.append(section)
    return b"".join((struct.pack(f"<{len(heads)}I", *heads), *sections))


def _sparse_plane(plane: Bytes1d) -> tuple[bytes, bool]:
    """A plane as one section, or as which bytes are not zero and those; whichever is shorter."""
    alone = _section(plane)
    mask = plane != 0
    if 2 * int(np.count_nonzero(mask)) > len(plane) or len(alone) < 64:
        return alone, False
    bits = _bits_section(mask)
    split = struct.pack("<I", len(bits)) + bits + _section(plane[mask])
    return (split, True) if len(split) < len(alone) else (alone, False)


def _bits_section(mask: npt.NDArray[np.bool_]) -> bytes:
    return _section(np.packbits(mask, bitorder="little"))


def _section(data: Bytes1d) -> bytes:
    """One zstd frame where that is shorter, else the bytes as they are."""
    if not _worth_trying(data):
        return data.tobytes()
    frame: bytes = _zstd().literals.compress(data)
    return frame if len(frame) < len(data) else data.tobytes()


def decode_sparse(blob: bytes | memoryview, width: int, raw_len: int) -> Words:
    """Undo ``encode_sparse``; allocates nothing that ``raw_len`` does not allow.

    Raises:
        Corrupt: The blob does not decode to exactly ``raw_len`` bytes.
    """
    at = 4 * (width + 1)
    if width not in WORDS or raw_len % width or len(blob) < at:
        raise Corrupt(f"delta of {len(blob)} bytes is cut off; {_ADVICE}")
    heads = struct.unpack_from(f"<{width + 1}I", blob)
    lengths = [heads[0], *(head & ~_SPLIT for head in heads[1:])]
    if at + sum(lengths) != len(blob):
        raise Corrupt(f"delta's planes do not add up; {_ADVICE}")
    sections = []
    for length in lengths:
        sections.append(memoryview(blob)[at : at + length])
        at += length
    words = np.zeros(raw_len // width, dtype=WORDS[width])
    mask = _bits(sections[0], len(words))
    columns = np.empty((int(np.count_nonzero(mask)), width), dtype=np.uint8)
    for p, section in enumerate(sections[1:]):
        columns[:, p] = _read_plane(section, len(columns), is_split=bool(heads[p + 1] & _SPLIT))
    words[mask] = _rotated_back(columns)
    return words


def _read_plane(section: memoryview, num_bytes: int, *, is_split: bool) -> Bytes1d:
    if not is_split:
        return _read_section(section, num_bytes)
    if len(section) < 4:
        raise Corrupt(f"delta is cut off; {_ADVICE}")
    (length,) = struct.unpack_from("<I", section)
    mask = _bits(section[4 : 4 + length], num_bytes)
    plane = np.zeros(num_bytes, dtype=np.uint8)
    plane[mask] = _read_section(section[4 + length :], int(np.count_nonzero(mask)))
    return plane


def _bits(section: memoryview, count: int) -> npt.NDArray[np.bool_]:
    packed = _read_section(section, -(-count // 8))
    return np.unpackbits(packed, count=count, bitorder="little").view(np.bool_)


def _read_section(section: memoryview, num_bytes: int) -> Bytes1d:
    data = section if len(section) == num_bytes else _decompress(section, num_bytes)
    return np.frombuffer(data, dtype=np.uint8)


_ADVICE = "restore this object from another copy or use another step"


def _decompress(frame: bytes | memoryview, raw_len: int) -> bytes:
    try:
        if zstandard.frame_content_size(frame) != raw_len:
            raise Corrupt(f"zstd frame does not announce {raw_len} bytes; {_ADVICE}")
        data: bytes = _zstd().decompressor.decompress(
            frame, max_output_size=raw_len, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise Corrupt(f"zstd frame does not decode ({error}); {_ADVICE}") from error
    if len(data) != raw_len:
        raise Corrupt(f"zstd frame decodes to {len(data)} bytes instead of {raw_len}; {_ADVICE}")
    return data
