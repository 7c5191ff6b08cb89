"""A checkpoint reader from FORMAT.md that needs only the zstd command line and a JSON parser.

python zstd_reader.py ROOT RUN      prints every tensor of the newest committed step

Slow and small: Python's standard library, ``zstd -d`` as a process per frame. It checks no blake3
(the standard library has none), so it trusts its input; numpy_reader.py checks every hash.
"""

import base64
import itertools
import json
import math
import struct
import subprocess
import sys
from pathlib import Path

SIZES = {
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "complex64": 8, "complex128": 16,
    "int8": 1, "int16": 2, "int32": 4, "int64": 8, "uint8": 1, "uint16": 2, "uint32": 4,
    "uint64": 8, "bool": 1, "float8_e4m3fn": 1, "float8_e5m2": 1,
}  # fmt: skip
LEVELS = {0: 0, 1: 0, 2: 0, 3: 1, 5: 1, 6: 2, 4: 3}
NUM_OPERANDS = {3: 1, 4: 1, 5: 3, 6: 3}


class Table:
    """One rank's chunk table, with the packs to read from."""

    def __init__(self, root: Path, record: dict, index: bytes) -> None:
        self.root, self.packs = root, record["packs"]
        header_len = int.from_bytes(index[:8], "little")
        self.header = json.loads(index[8 : 8 + header_len])
        self.body = index[8 + header_len :]
        self.raws: dict[int, bytes] = {}

    def __len__(self) -> int:
        return self.header["raw_len"]["shape"][0]

    def get(self, column: str, position: int) -> int:
        info = self.header[column]
        size = {"U8": 1, "U32": 4, "U64": 8}[info["dtype"]]
        start = info["data_offsets"][0] + size * position
        return int.from_bytes(self.body[start : start + size], "little")

    @property
    def num_bases(self) -> int:
        return self.get("bases", 0) if "bases" in self.header else 0

    def raw(self, row: int) -> bytes:
        if row not in self.raws:
            self.raws[row] = self.decoded(row)
            assert len(self.raws[row]) == self.get("raw_len", row)
        return self.raws[row]

    def decoded(self, row: int) -> bytes:
        pack = self.packs[self.get("pack", row)]["blake3"]
        start, length = self.get("offset", row), self.get("stored_len", row)
        blob = (self.root / "packs" / pack[:2] / f"{pack}.pack").read_bytes()[start:][:length]
        codec, width, raw_len = (self.get(name, row) for name in ("codec", "width", "raw_len"))
        size = 2 * raw_len if codec == 4 else raw_len
        operands = [self.operand(row, j, size) for j in range(NUM_OPERANDS.get(codec, 0))]
        return decode(blob, codec, width, raw_len, operands)

    def operand(self, row: int, j: int, size: int) -> bytes:
        at, skip, found = self.get("refs", 3 * row + j), self.get("skip", row), b""
        while len(found) < skip + size:
            assert LEVELS[self.get("codec", at)] < LEVELS[self.get("codec", row)], "a cycle"
            found += self.raw(at)
            at += 1
        return found[skip : skip + size]


def read_step(root: Path, run: str, step: int | None = None) -> tuple[dict, dict]:
    """Per tensor (dtype, shape, bytes in C order), and per rank the leaves, of a committed step."""
    commit = newest_commit(root, run, step)
    folder = (root / commit["manifest_key"]).parent
    manifest = json.loads((root / commit["manifest_key"]).read_bytes())
    assert manifest["format"] == "cloudshift-manifest" and manifest["version"] in (1, 2)
    tensors, leaves = {}, {}
    for ref in manifest["ranks"]:
        stem = f"rank-{ref['rank']}of{manifest['world_size']}"
        record = json.loads((folder / f"{stem}.{ref['blake3']}.json").read_bytes())
        assert record["format"] == "cloudshift-rank" and record["version"] in (1, 2)
        index = (folder / f"{stem}.{record['index']['blake3']}.index").read_bytes()
        read_boxes(record, Table(root, record, index), tensors)
        leaves[ref["rank"]] = leaf(record["leaves"])
    whole = {name: (dtype, shape, bytes(data)) for name, (dtype, shape, data) in tensors.items()}
    return whole, leaves


def newest_commit(root: Path, run: str, step: int | None) -> dict:
    records = [json.loads(p.read_bytes()) for p in sorted((root / "runs" / run / "log").iterdir())]
    return [r for r in records if r["kind"] == "commit" and step in (None, r["step"])][-1]


def read_boxes(record: dict, table: Table, tensors: dict) -> None:
    row = 0
    for box in record["boxes"]:
        shape, size = box["global_shape"], SIZES[box["dtype"]]
        empty = (box["dtype"], tuple(shape), bytearray(size * math.prod(shape)))
        data = tensors.setdefault(box["name"], empty)[2]
        for start, stop in pieces(box):
            raw, at = table.raw(row), 0
            for place, length in lines(shape, start, stop):
                data[size * place : size * (place + length)] = raw[at : at + size * length]
                at += size * length
            assert at == len(raw)
            row += 1
    assert row + table.num_bases == len(table), "boxes and chunk table do not fit"


def pieces(box: dict):
    """Start and stop of every chunk of a box in C order: cut at the multiples of the cell."""
    if 0 in box["shape"]:
        return
    axes = []
    for offset, length, cell in zip(box["offset"], box["shape"], box["cell"], strict=True):
        inner = [n for n in range(0, offset + length, cell) if n > offset]
        axes.append(list(itertools.pairwise([offset, *inner, offset + length])))
    for spans in itertools.product(*axes):
        yield [a for a, _ in spans], [z for _, z in spans]


def lines(shape: list, start: list, stop: list):
    """Where the rows of a piece lie in the tensor: first element and number of elements."""
    if not shape:
        yield 0, 1
        return
    for prefix in itertools.product(*map(range, start[:-1], stop[:-1])):
        place = 0
        for position, length in zip((*prefix, start[-1]), shape, strict=True):
            place = place * length + position
        yield place, stop[-1] - start[-1]


def decode(blob: bytes, codec: int, width: int, raw_len: int, operands: list) -> bytes:
    if codec == 0:
        return blob
    if codec == 1:
        lengths = struct.unpack_from(f"<{width}I", blob)
        parts = cut(blob[4 * width :], lengths)
        return joined([section(part, raw_len // width) for part in parts], width, rotate=True)
    if codec == 2:
        flat, count = unzstd(blob, raw_len), raw_len // width
        return joined([flat[p * count : p * count + count] for p in range(width)], width)
    if codec == 3:
        return xor(sparse(blob, width, raw_len), operands[0])
    if codec == 4:
        return rounded(blob, operands[0])
    assert codec in (5, 6), f"unknown codec {codec}"
    order, *scalars = struct.unpack_from("<B3x4f", blob)
    arrays = [struct.unpack(f"<{raw_len // 4}f", operand) for operand in operands]
    predict = second_moment if codec == 5 else weight
    floats = [predict(order, scalars, *values) for values in zip(*arrays, strict=True)]
    return xor(sparse(blob[20:], width, raw_len), struct.pack(f"<{len(floats)}f", *floats))


def sparse(blob: bytes, width: int, raw_len: int) -> bytes:
    heads = struct.unpack_from(f"<{width + 1}I", blob)
    sections = cut(blob[4 * width + 4 :], [head % 2**31 for head in heads])
    flags = bits(sections[0], raw_len // width)
    parts = [
        split_plane(part, sum(flags)) if head >> 31 else section(part, sum(flags))
        for head, part in zip(heads[1:], sections[1:], strict=True)
    ]
    words, zero, at = joined(parts, width, rotate=True), bytes(width), itertools.count(0, width)
    return b"".join(words[(i := next(at)) : i + width] if flag else zero for flag in flags)


def split_plane(stored: bytes, count: int) -> bytes:
    length = int.from_bytes(stored[:4], "little")
    flags = bits(stored[4 : 4 + length], count)
    found = iter(section(stored[4 + length :], sum(flags)))
    return bytes(next(found) if flag else 0 for flag in flags)


def bits(stored: bytes, count: int) -> list[int]:
    packed = section(stored, -(-count // 8))
    return [packed[i >> 3] >> (i & 7) & 1 for i in range(count)]


def cut(data: bytes, lengths: list | tuple) -> list[bytes]:
    stops = list(itertools.accumulate(lengths))
    assert stops[-1] == len(data)
    return [data[stop - length : stop] for length, stop in zip(lengths, stops, strict=True)]


def joined(planes: list[bytes], width: int, *, rotate: bool = False) -> bytes:
    data = bytearray(width * len(planes[0]))
    for p, plane in enumerate(planes):
        data[p::width] = plane
    if not rotate:
        return bytes(data)
    letter, top = {1: "B", 2: "H", 4: "I", 8: "Q"}[width], 8 * width - 1
    words = struct.unpack(f"<{len(planes[0])}{letter}", data)
    return struct.pack(f"<{len(words)}{letter}", *((w >> 1) | (w & 1) << top for w in words))


def xor(a: bytes, b: bytes) -> bytes:
    assert len(a) == len(b)
    return (int.from_bytes(a, "little") ^ int.from_bytes(b, "little")).to_bytes(len(a), "little")


def rounded(blob: bytes, source: bytes) -> bytes:
    count = len(source) // 4
    if blob == b"\x02":
        floats = struct.unpack(f"<{count}f", source)
        return struct.pack(f"<{count}e", *floats)
    assert blob == b"\x01", "an unknown rounding"
    words = struct.unpack(f"<{count}I", source)
    return struct.pack(f"<{count}H", *((w + 0x7FFF + (w >> 16 & 1)) >> 16 for w in words))


def f4(value: float) -> float:
    """Rounded to float32; of one float64 operation on float32 values that is the float32 one."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def second_moment(order: int, scalars: list, m: float, old_m: float, old_v: float) -> float:
    a, b, c, _ = scalars
    assert order == 0
    g = f4((m - old_m) / a + old_m)
    return f4(f4(old_v * b) + f4(f4(g * c) * g))


def weight(order: int, scalars: list, m: float, v: float, old_w: float) -> float:
    a, b, c, d = scalars
    q = f4(f4(f4(math.sqrt(v)) / b) + c)
    assert order in (0, 1)
    change = f4(f4(m * d) / q) if order == 0 else f4(f4(m / q) * d)
    return f4(f4(old_w * a) + change)


def section(stored: bytes, size: int) -> bytes:
    return stored if len(stored) == size else unzstd(stored, size)


def unzstd(frame: bytes, size: int) -> bytes:
    command = ["zstd", "--decompress", "--stdout", "--quiet"]
    data = subprocess.run(command, input=frame, stdout=subprocess.PIPE, check=True).stdout
    assert len(data) == size, "a frame of the wrong size"
    return data


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
    for tensor_name, (dtype, shape, _) in read_step(Path(sys.argv[1]), sys.argv[2])[0].items():
        print(f"{tensor_name:40} {dtype} {shape}")
