"""Chunk codecs: what needs nothing but the blob, and the sparse planes of a delta (FORMAT.md 8)."""

from __future__ import annotations

import struct
import threading
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zstandard

from cloudshift_lab.checkpoint.dtypes import ElementType
from cloudshift_lab.core.errors import Corrupt

Bytes1d = npt.NDArray[np.uint8]
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
_PROBE_BLOCK, _PROBE_BLOCKS = 1024, 4
# Share of equal pairs in random bytes is 1/256; at 7.9 bits of order-0 entropy it is 15 % more.
_RANDOM_PAIRS = 1.15 / 256
_SCRATCH_BYTES = 2**20 + 64
_local = threading.local()


class Encoded(NamedTuple):
    """A chunk as it is stored; never longer than its raw bytes."""

    codec: int
    width: int
    blob: bytes


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


def encode(raw: Bytes1d, kind: ElementType) -> Encoded:
    """Compress one chunk with the codec of its element type, or store it where that is smaller.

    Args:
        raw: The chunk's bytes, contiguous.
        kind: Its element type.
    """
    if len(raw) <= 64:
        return Encoded(STORE, 1, raw.tobytes())
    if kind.is_float:
        blob = _encode_planes(raw, kind.width)
        return _smaller(raw, Encoded(PLANES_ZSTD, kind.width, blob))
    if not _worth_trying(raw):
        return Encoded(STORE, 1, raw.tobytes())
    planes = np.ascontiguousarray(raw.reshape(-1, kind.width).T)
    return _smaller(raw, Encoded(SHUFFLE_ZSTD, kind.width, _zstd().matching.compress(planes)))


def _smaller(raw: Bytes1d, encoded: Encoded) -> Encoded:
    return encoded if len(encoded.blob) < len(raw) else Encoded(STORE, 1, raw.tobytes())


def _encode_planes(raw: Bytes1d, width: int) -> bytes:
    """Rotate, split and compress in scratch memory: every fresh page costs more than its use."""
    words = raw.view(WORDS[width])
    num_words, at = len(words), 4 * width
    blob = _scratch("blob", len(raw) + at)
    lengths = []
    for p in range(width):
        plane = blob[at : at + num_words]
        _take_plane(words, p, plane)
        lengths.append(_shrink(plane))
        at += lengths[-1]
    blob[: 4 * width] = np.frombuffer(struct.pack(f"<{width}I", *lengths), dtype=np.uint8)
    return blob[:at].tobytes()


def _take_plane(words: Words, p: int, plane: Bytes1d) -> None:
    """Byte ``p`` of every word rotated left by one bit."""
    if p:
        np.right_shift(words, 8 * p - 1, out=plane, casting="unsafe")
        return
    signs = _scratch("signs", len(words))
    np.right_shift(words, 8 * words.itemsize - 1, out=signs, casting="unsafe")
    np.left_shift(words, 1, out=plane, casting="unsafe")
    plane |= signs


def _shrink(plane: Bytes1d) -> int:
    """Compress a plane where it lies if that makes it shorter; its new length in bytes."""
    if not _worth_trying(plane):
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
    if len(data) > _PROBE_BLOCK * _PROBE_BLOCKS:
        stride = len(data) // _PROBE_BLOCKS
        blocks = data[: stride * _PROBE_BLOCKS].reshape(_PROBE_BLOCKS, stride)
        data = blocks[:, :_PROBE_BLOCK].reshape(-1)
    counts = np.bincount(data, minlength=256)
    pairs = len(data) * (len(data) - 1)
    equal_pairs = int(counts @ counts) - len(data)
    return equal_pairs >= _RANDOM_PAIRS * pairs


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
        part = memoryview(blob)[at : at + length]
        plane = part if length == num_words else _decompress(part, num_words)
        columns[:, p] = np.frombuffer(plane, dtype=np.uint8)
        at += length
    words = columns.reshape(-1).view(WORDS[width])
    one, top = words.dtype.type(1), words.dtype.type(8 * width - 1)
    restored = words >> one
    words <<= top
    restored |= words
    flat: Bytes1d = restored.view(np.uint8)
    return flat


def encode_sparse(words: Words) -> bytes:
    """Code words that are mostly zero: which are not, one bit each, then the planes of those.

    A byte plane of a delta has far less than one bit per word, which no Huffman code reaches;
    bits packed by eight do.
    """
    mask = words != 0
    bits = np.packbits(mask, bitorder="little")
    frame: bytes = _zstd().literals.compress(bits)
    if len(frame) >= len(bits):
        frame = bits.tobytes()
    changed = words if mask.all() else words[mask]
    head = struct.pack("<I", len(frame))
    return head + frame + _encode_planes(changed.view(np.uint8), words.itemsize)


def decode_sparse(blob: bytes | memoryview, width: int, raw_len: int) -> Words:
    """Undo ``encode_sparse``; allocates nothing that ``raw_len`` does not allow.

    Raises:
        Corrupt: The blob does not decode to exactly ``raw_len`` bytes.
    """
    num_words = raw_len // width
    num_bits = -(-num_words // 8)
    if width not in (2, 4, 8) or raw_len % width or len(blob) < 4:
        raise Corrupt(f"delta of {len(blob)} bytes is cut off; {_ADVICE}")
    (length,) = struct.unpack_from("<I", blob)
    part = memoryview(blob)[4 : 4 + length]
    if len(part) != length:
        raise Corrupt(f"delta is cut off; {_ADVICE}")
    bits = part if length == num_bits else _decompress(part, num_bits)
    packed = np.frombuffer(bits, dtype=np.uint8)
    mask = np.unpackbits(packed, count=num_words, bitorder="little").view(np.bool_)
    num_changed = int(np.count_nonzero(mask))
    changed = _decode_planes(memoryview(blob)[4 + length :], width, num_changed * width)
    words = np.zeros(num_words, dtype=WORDS[width])
    words[mask] = changed.view(WORDS[width])
    return words


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
