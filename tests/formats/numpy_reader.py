"""A checkpoint reader written from FORMAT.md alone: numpy, zstd, blake3 and json, none of our code.

python numpy_reader.py ROOT RUN      prints every tensor of the newest committed step
"""

import base64
import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import zstandard
from blake3 import blake3

DTYPES = {
    "float16": "<f2", "bfloat16": "<u2", "float32": "<f4", "float64": "<f8", "complex64": "<c8",
    "complex128": "<c16", "int8": "<i1", "int16": "<i2", "int32": "<i4", "int64": "<i8",
    "uint8": "<u1", "uint16": "<u2", "uint32": "<u4", "uint64": "<u8", "bool": "?",
    "float8_e4m3fn": "<u1", "float8_e5m2": "<u1",
}  # fmt: skip
SAFETENSORS = {"U8": "<u1", "U32": "<u4", "U64": "<u8"}


def read_step(root: Path, run: str, step: int | None = None) -> tuple[dict, dict]:
    """All tensors and, per rank, the leaves of a committed step (the newest if None)."""
    commit = newest_commit(root, run, step)
    folder = (root / commit["manifest_key"]).parent
    manifest = json.loads(checked(root / commit["manifest_key"], commit["manifest_digest"]))
    assert manifest["format"] == "cloudshift-manifest" and manifest["version"] in (1, 2)
    tensors, filled, leaves = {}, {}, {}
    for ref in manifest["ranks"]:
        stem = f"rank-{ref['rank']}of{manifest['world_size']}"
        record = json.loads(checked(folder / f"{stem}.{ref['blake3']}.json", ref["blake3"]))
        assert record["format"] == "cloudshift-rank" and record["version"] in (1, 2)
        assert record["version"] <= manifest["version"]
        assert all(record[k] == manifest[k] for k in ("run_id", "step", "generation", "world_size"))
        digest = record["index"]["blake3"]
        index = safetensors_columns(checked(folder / f"{stem}.{digest}.index", digest))
        assert ("refs" in index) == (record["version"] == 2)
        read_boxes(root, record, index, tensors, filled)
        leaves[ref["rank"]] = leaf(record["leaves"])
    assert all(mask.all() for mask in filled.values()), "the step has holes"
    return tensors, leaves


def newest_commit(root: Path, run: str, step: int | None) -> dict:
    found = None
    for n in itertools.count():
        path = root / "runs" / run / "log" / f"{n:012d}.json"
        if not path.exists():
            break
        record = json.loads(path.read_bytes())
        if record["kind"] == "commit" and step in (None, record["step"]):
            found = record
    assert found is not None, "no committed step"
    return found


def checked(path: Path, digest: str) -> bytes:
    data = path.read_bytes()
    assert blake3(data).hexdigest() == digest, path
    return data


def safetensors_columns(data: bytes) -> dict:
    header_len = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + header_len]), data[8 + header_len :]
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(
            body[slice(*info["data_offsets"])], dtype=SAFETENSORS[info["dtype"]]
        ).reshape(info["shape"])
        for name, info in header.items()
    }


def read_boxes(root: Path, record: dict, index: dict, tensors: dict, filled: dict) -> None:
    row = 0
    for box in record["boxes"]:
        name, shape = box["name"], box["global_shape"]
        dtype = np.dtype(DTYPES[box["dtype"]])
        tensor = tensors.setdefault(name, np.zeros(shape, dtype))
        mask = filled.setdefault(name, np.zeros(shape, bool))
        for start, stop in pieces(box):
            raw = read_chunk(root, record, index, row)
            dims = [z - a for a, z in zip(start, stop, strict=True)]
            assert len(raw) == math.prod(dims) * dtype.itemsize
            where = tuple(slice(a, z) for a, z in zip(start, stop, strict=True))
            tensor[where] = np.frombuffer(raw, dtype).reshape(dims)
            mask[where] = True
            row += 1
    bases = int(index["bases"][0]) if "bases" in index else 0
    assert row + bases == len(index["raw_len"]), "boxes and chunk table do not fit"


def pieces(box: dict):
    """Start and stop of every chunk of a box in C order: cut at the multiples of the cell."""
    if 0 in box["shape"]:
        return
    axes = []
    for offset, length, cell in zip(box["offset"], box["shape"], box["cell"], strict=True):
        lines = [n for n in range(0, offset + length, cell) if n > offset]
        borders = [offset, *lines, offset + length]
        axes.append(list(itertools.pairwise(borders)))
    for spans in itertools.product(*axes):
        yield [a for a, _ in spans], [z for _, z in spans]


def read_chunk(root: Path, record: dict, index: dict, row: int) -> bytes:
    pack = record["packs"][int(index["pack"][row])]["blake3"]
    start, length = int(index["offset"][row]), int(index["stored_len"][row])
    with (root / "packs" / pack[:2] / f"{pack}.pack").open("rb") as file:
        file.seek(start)
        blob = file.read(length)
    codec, width, raw_len = (int(index[name][row]) for name in ("codec", "width", "raw_len"))
    operands = [
        operand(root, record, index, row, j, size)
        for j, size in enumerate(OPERANDS.get(codec, lambda n: [])(raw_len))
    ]
    raw = decode(blob, codec, width, raw_len, operands)
    assert blake3(raw).digest() == index["id"][row].tobytes(), "a chunk differs from its id"
    return raw


LEVELS = {0: 0, 1: 0, 2: 0, 3: 1, 5: 1, 6: 2, 4: 3}
OPERANDS = {
    3: lambda n: [n],
    4: lambda n: [2 * n],
    5: lambda n: [n, n, n],
    6: lambda n: [n, n, n],
}


def operand(root: Path, record: dict, index: dict, row: int, j: int, size: int) -> bytes:
    first, skip = int(index["refs"][row, j]), int(index["skip"][row])
    found = b""
    for at in range(first, first + 64):
        if len(found) >= skip + size:
            break
        assert LEVELS[int(index["codec"][at])] < LEVELS[int(index["codec"][row])], "a cycle"
        found += read_chunk(root, record, index, at)
    assert len(found) >= skip + size, "a base that is too short"
    return found[skip : skip + size]


def decode(blob: bytes, codec: int, width: int, raw_len: int, operands: list) -> bytes:
    if codec == 0:
        return blob
    if codec == 1:
        return planes(blob, width, raw_len)
    if codec == 2:
        return unshuffle([unzstd(blob, raw_len)], width).tobytes()
    if codec == 3:
        return xor(sparse(blob, width, raw_len), operands[0])
    if codec == 4:
        return rounded(blob, operands[0])
    assert codec in (5, 6), f"unknown codec {codec}"
    predict = second_moments if codec == 5 else weights
    scalars = np.frombuffer(blob[4:20], "<f4")
    arrays = [np.frombuffer(operand, "<f4") for operand in operands]
    return xor(sparse(blob[20:], width, raw_len), predict(blob[0], scalars, *arrays).tobytes())


def planes(blob: bytes, width: int, raw_len: int) -> bytes:
    lengths, at, parts = np.frombuffer(blob[: 4 * width], "<u4").tolist(), 4 * width, []
    for length in lengths:
        parts.append(section(blob[at : at + length], raw_len // width))
        at += length
    return rotated_right(unshuffle(parts, width).view(f"<u{width}")).tobytes()


def sparse(blob: bytes, width: int, raw_len: int) -> bytes:
    heads = np.frombuffer(blob[: 4 * width + 4], "<u4").tolist()
    at, sections = 4 * width + 4, []
    for head in heads:
        sections.append(blob[at : at + head % 2**31])
        at += head % 2**31
    assert at == len(blob)
    mask = bits(sections[0], raw_len // width)
    parts = [
        split_plane(part, mask.sum()) if head >> 31 else section(part, mask.sum())
        for head, part in zip(heads[1:], sections[1:], strict=True)
    ]
    words = np.zeros(raw_len // width, f"<u{width}")
    words[mask] = rotated_right(unshuffle(parts, width).view(f"<u{width}"))
    return words.tobytes()


def split_plane(stored: bytes, count: int) -> bytes:
    length = int.from_bytes(stored[:4], "little")
    mask = bits(stored[4 : 4 + length], count)
    plane = np.zeros(count, np.uint8)
    plane[mask] = np.frombuffer(section(stored[4 + length :], mask.sum()), np.uint8)
    return plane.tobytes()


def bits(stored: bytes, count: int) -> np.ndarray:
    packed = np.frombuffer(section(stored, -(-count // 8)), np.uint8)
    return np.unpackbits(packed, count=count, bitorder="little").astype(bool)


def section(stored: bytes, size: int) -> bytes:
    return stored if len(stored) == size else unzstd(stored, size)


def xor(a: bytes, b: bytes) -> bytes:
    return (np.frombuffer(a, np.uint8) ^ np.frombuffer(b, np.uint8)).tobytes()


def rounded(blob: bytes, source: bytes) -> bytes:
    if blob == b"\x02":
        return np.frombuffer(source, "<f4").astype("<f2").tobytes()
    assert blob == b"\x01", "an unknown rounding"
    word = np.frombuffer(source, "<u4").astype("<u8")
    return ((word + 0x7FFF + ((word >> 16) & 1)) >> 16).astype("<u2").tobytes()


def second_moments(order: int, scalars: np.ndarray, m: np.ndarray, *old: np.ndarray) -> np.ndarray:
    a, b, c, _ = scalars
    assert order == 0
    old_m, old_v = old
    g = (m.astype("f8") - old_m.astype("f8")) / np.float64(a) + old_m
    g = g.astype("<f4")
    return old_v * b + (g * c) * g


def weights(order: int, scalars: np.ndarray, m: np.ndarray, *others: np.ndarray) -> np.ndarray:
    a, b, c, d = scalars
    v, old_w = others
    q = np.sqrt(v) / b + c
    assert order in (0, 1)
    return old_w * a + ((m * d) / q if order == 0 else (m / q) * d)


def rotated_right(words: np.ndarray) -> np.ndarray:
    one, top = words.dtype.type(1), words.dtype.type(8 * words.itemsize - 1)
    return (words >> one) | (words << top)


def unshuffle(planes: list[bytes], width: int) -> np.ndarray:
    flat = np.frombuffer(b"".join(planes), np.uint8)
    return np.ascontiguousarray(flat.reshape(width, -1).T).reshape(-1)


def unzstd(frame: bytes, size: int) -> bytes:
    assert zstandard.frame_content_size(frame) == size, "a frame of the wrong size"
    return zstandard.ZstdDecompressor().decompress(frame)


TAGS = {
    "$t": lambda items: tuple(leaf(item) for item in items),
    "$b": base64.b64decode,
    "$f": float,
    "$i": int,
    "$d": lambda pairs: {leaf(key): leaf(item) for key, item in pairs},
}


def leaf(value: object) -> object:
    if isinstance(value, list):
        return [leaf(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1 and next(iter(value)) in TAGS:
        ((tag, body),) = value.items()
        return TAGS[tag](body)
    return {key: leaf(item) for key, item in value.items()}


if __name__ == "__main__":
    for tensor_name, array in read_step(Path(sys.argv[1]), sys.argv[2])[0].items():
        print(f"{tensor_name:40} {array.dtype} {array.shape}")
