"""Coding a chunk as a delta: what it refers to, and when that is better than coding it alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from cloudshift_lab.checkpoint.boxes import Region
from cloudshift_lab.checkpoint.codecs import (
    DERIVED,
    LEVELS,
    WORDS,
    XOR_PLANES_ZSTD,
    Bytes1d,
    Encoded,
    encode,
    encode_sparse,
)
from cloudshift_lab.checkpoint.fetch import Piece, fetch_pieces
from cloudshift_lab.checkpoint.index import ChunkLocation, Operand
from cloudshift_lab.checkpoint.packer import OwnRun
from cloudshift_lab.checkpoint.share import ShareBox
from cloudshift_lab.checkpoint.step import BoxRequest, Checkpoint
from cloudshift_lab.core.errors import Corrupt, NotFound
from cloudshift_lab.storage.store import Store

Bases = tuple[ChunkLocation | None, ...]
Code = Callable[..., Encoded | None]


class Recipe(NamedTuple):
    """How a box is coded as a delta.

    Args:
        codec: Its codec.
        own: Boxes of the same share that it is decoded with, first.
        bases: Stored tensors that it is decoded with, then: a chunk per chunk of the box.
        code: Codes raw bytes, given those of the operands.
    """

    codec: int
    own: tuple[ShareBox, ...]
    bases: tuple[Bases, ...]
    code: Code

    @property
    def level(self) -> int:
        return LEVELS[self.codec]

    def stored(self, number: int) -> tuple[ChunkLocation, ...] | None:
        """The stored chunks that a chunk needs; None when the base lacks one."""
        found = tuple(chunks[number] for chunks in self.bases)
        present = tuple(chunk for chunk in found if chunk is not None)
        return present if len(present) == len(found) else None

    def without(self, packs: frozenset[str]) -> Recipe:
        """The same, but nothing in these packs is referred to."""
        bases = tuple(
            tuple(None if c is not None and c.pack in packs else c for c in chunks)
            for chunks in self.bases
        )
        return self._replace(bases=bases)

    def refs(self, box: ShareBox, number: int) -> tuple[OwnRun | Operand, ...]:
        """What the chunk will refer to."""
        start, stop = (self._scale * at for at in box.starts[number : number + 2])
        runs = [OwnRun(*source.rows_of(start, stop), stop - start) for source in self.own]
        stored = self.stored(number) or ()
        return (*runs, *(Operand((chunk,), 0, chunk.raw_len) for chunk in stored))

    def attempt(self, box: ShareBox, number: int, bases: Sequence[Bytes1d]) -> Encoded | None:
        """The chunk coded as a delta; None where that is impossible."""
        start, stop = (self._scale * at for at in box.starts[number : number + 2])
        own = [source.flat[start:stop] for source in self.own]
        return self.code(box.chunk(number), *own, *bases)

    @property
    def _scale(self) -> int:
        return 2 if self.codec == DERIVED else 1


def xor_recipe(box: ShareBox, bases: Bases) -> Recipe:
    """What differs from the same tensor in the base."""
    width = box.kind.width

    def code(raw: Bytes1d, base: Bytes1d) -> Encoded:
        return Encoded(XOR_PLANES_ZSTD, width, encode_xor(raw, base, width))

    return Recipe(XOR_PLANES_ZSTD, (), (bases,), code)


def encode_xor(raw: Bytes1d, base: Bytes1d, width: int) -> bytes:
    """The blob of ``xor-planes-zstd``."""
    return encode_sparse(raw.view(WORDS[width]) ^ base.view(WORDS[width]))


def smaller(
    box: ShareBox, number: int, recipe: Recipe, bases: Sequence[Bytes1d]
) -> tuple[Encoded, bool]:  # fmt: skip
    """A chunk as a delta or alone, whichever is smaller, and whether it is a delta.

    Coding it alone is left out where it can hardly win: the delta is a mere reference or a step
    without residual, or an eighth less than what the base took when it was coded alone.
    """
    raw = box.chunk(number)
    delta = recipe.attempt(box, number, bases)
    if delta is None:
        return encode(raw, box.kind), False
    stored = recipe.stored(number) or ()
    alone_at_least = min((chunk.stored_len for chunk in stored[-1:]), default=len(raw)) // 8 * 7
    if len(delta.blob) <= max(alone_at_least, _REFERENCE_BYTES * bool(recipe.own)):
        return delta, True
    alone = encode(raw, box.kind)
    return (delta, True) if len(delta.blob) < len(alone.blob) else (alone, False)


_REFERENCE_BYTES = 64


class BaseStep:
    """The chunks of a committed step that deltas may refer to, by tensor and place.

    Args:
        checkpoint: The step.
        avoid: Hashes of packs that must not be referred to.
    """

    def __init__(self, checkpoint: Checkpoint, avoid: frozenset[str]) -> None:
        self.checkpoint = checkpoint
        self._avoid = avoid
        self._names = frozenset(checkpoint.names())
        self._places: dict[str, dict[Region, ChunkLocation]] = {}

    def leaves(self, rank: int) -> object:
        """What the base knows of a rank besides tensors; of another one if it has none of it."""
        ranks = self.checkpoint.ranks
        return self.checkpoint.leaves(rank if rank in ranks else min(ranks))

    def step_numbers(self, names: Iterable[str]) -> dict[str, int]:
        """Values of the scalar float32 tensors with these names, as far as there are such."""
        specs = [self.checkpoint.spec(name) for name in names if name in self._names]
        scalars = [s.name for s in specs if (s.dtype, s.global_shape) == ("float32", ())]
        try:
            values = self.checkpoint.read_many([BoxRequest(name, (), ()) for name in scalars])
        except (Corrupt, NotFound):
            return {}  # a damaged base is no base
        return {name: int(float(v)) for name, v in zip(scalars, values, strict=True)}

    def bases(self, box: ShareBox) -> Bases:
        """Per chunk of a box the plain chunk of the base with the same place and length."""
        return self._bases(box, _plain)

    def keyframes(self, box: ShareBox) -> Bases:
        """The same, but where the base has a delta itself, what that is a delta to."""
        return self._bases(box, _keyframe)

    def _bases(self, box: ShareBox, usable: Callable[[ChunkLocation], ChunkLocation]) -> Bases:
        places = self._at(box)
        lens = np.diff(np.asarray(box.starts)).tolist()
        found: list[ChunkLocation | None] = []
        for region, length in zip(box.regions() if places else (), lens, strict=False):
            chunk = None if (at := places.get(region)) is None else usable(at)
            fits = (
                chunk is not None
                and chunk.raw_len == length
                and LEVELS.get(chunk.codec) == 0
                and chunk.pack not in self._avoid
            )
            found.append(chunk if fits else None)
        return tuple(found) or (None,) * box.num_chunks

    def _at(self, box: ShareBox) -> dict[Region, ChunkLocation]:
        name = box.entry.name
        if name not in self._names:
            return {}
        spec = self.checkpoint.spec(name)
        if (spec.dtype, spec.global_shape) != (box.entry.dtype, box.entry.global_shape):
            return {}
        if name not in self._places:
            self._places[name] = dict(self.checkpoint.chunks_of(name))
        return self._places[name]


def _plain(chunk: ChunkLocation) -> ChunkLocation:
    return chunk


def _keyframe(chunk: ChunkLocation) -> ChunkLocation:
    return chunk.refs[0].chunks[0] if chunk.codec == XOR_PLANES_ZSTD else chunk


def read_chunks(
    store: Store, locations: Iterable[ChunkLocation], concurrency: int
) -> dict[bytes, Bytes1d]:
    """Raw bytes of stored chunks, by id; none at all if the base turns out to be damaged.

    A save does not need its base: what cannot be read is coded in full instead.
    """
    wanted = {location.id: location for location in locations}
    found = {i: np.empty(c.raw_len, dtype=np.uint8) for i, c in wanted.items()}
    everything = (slice(None),)
    pieces = [Piece(c, (c.raw_len,), everything, found[i]) for i, c in wanted.items()]
    try:
        fetch_pieces(store, pieces, concurrency=concurrency, threads=1)
    except (Corrupt, NotFound):
        return {}
    return found
