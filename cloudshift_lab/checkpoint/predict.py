"""How many bytes a move or the next save of *this* job will take, from its last commits."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec

from cloudshift_lab.checkpoint.boxes import Region
from cloudshift_lab.checkpoint.choice import MIN_BOX_BYTES, MIN_GAIN
from cloudshift_lab.checkpoint.codecs import LEVELS, encode
from cloudshift_lab.checkpoint.dtypes import ELEMENT_TYPES
from cloudshift_lab.checkpoint.index import ChunkLocation
from cloudshift_lab.checkpoint.recipe import encode_xor, read_chunks
from cloudshift_lab.checkpoint.replay import find_params
from cloudshift_lab.checkpoint.step import Checkpoint
from cloudshift_lab.core.money import format_bytes

How = Literal["unchanged", "replayed", "difference", "compressed"]
NUM_SAMPLES = 12
"""Pairs of chunks, of at most 1 MiB each, that a prediction reads per kind of tensor."""
REPLAYED = (0.002, 0.02, 0.08)
"""Share of a replayed tensor that its residual takes: low, expected, high (measured on CPUs)."""
_ORDER: tuple[How, ...] = ("unchanged", "replayed", "difference", "compressed")
_COMPRESSED_SPREAD = 0.02


class PredictedKind(msgspec.Struct, frozen=True):
    """One way in which a part of the state travels; sizes in bytes."""

    how: How
    full_bytes: int
    expected_bytes: int
    low: int
    high: int


class Prediction(msgspec.Struct, frozen=True):
    """Bytes that will travel, of a state of ``full_bytes``; ``low`` and ``high`` bound them.

    ``basis`` says in words what it rests on. ``by_kind`` adds up to the whole.
    """

    full_bytes: int
    expected_bytes: int
    low: int
    high: int
    basis: str
    by_kind: tuple[PredictedKind, ...] = ()

    @property
    def saved(self) -> float:
        """Share of the state that need not travel, 0 to 1."""
        return 1 - self.expected_bytes / self.full_bytes if self.full_bytes else 0.0


class _Chunk(NamedTuple):
    name: str
    dtype: str
    region: Region
    location: ChunkLocation
    is_repeated: bool


class _Commits(NamedTuple):
    newest: Checkpoint
    older: Checkpoint | None
    concurrency: int


class _Ratio(NamedTuple):
    """Stored by raw bytes."""

    low: float
    expected: float
    high: float


def predict_move(newest: Checkpoint) -> Prediction:
    """What copying the whole state to a store that has none of it takes. Reads no chunk.

    Args:
        newest: The run's newest commit; the state at the time of the move will be much like it.
    """
    packs = sum(size for _, size in newest.packs().values())
    spread = round(_COMPRESSED_SPREAD * packs)
    full = newest.manifest.raw_bytes
    kind = PredictedKind("compressed", full, packs, packs - spread, packs + spread)
    basis = f"step {newest.step} as it is stored: {_percent(packs, full)} of its size"
    return Prediction(full, packs, kind.low, kind.high, basis, (kind,))


def predict_step(
    newest: Checkpoint, older: Checkpoint | None = None, *, steps_later: int = 1,
    concurrency: int = 8,
) -> Prediction:  # fmt: skip
    """What a step costs that is saved where the newest commit already is: the gap of a move.

    Reads at most ``NUM_SAMPLES`` pairs of chunks per dtype and role (weight, first moment, …).
    Chunks that did not change between the two commits are expected not to change again; of the
    others a sample is coded directly and as a difference. One step later, what AdamW steps is
    expected to be replayed.

    Args:
        newest: The run's newest commit.
        older: A commit before it; None: then everything is expected to change.
        steps_later: Optimizer steps after the newest commit.
        concurrency: Requests at a time.
    """
    before = frozenset[bytes]() if older is None else older.chunk_ids()
    replayed, moments = _replayable(newest) if steps_later == 1 else (frozenset(), frozenset())
    groups: dict[tuple[How, str, str], list[_Chunk]] = defaultdict(list)
    for chunk in _chunks(newest):
        how: How = "difference"
        if chunk.is_repeated or chunk.location.id in before:
            how = "unchanged"
        elif chunk.name in replayed and LEVELS.get(chunk.location.codec) == 0:
            how = "replayed"
        elif chunk.name in moments:
            how = "compressed"  # what is replayed refers to it
        groups[how, chunk.dtype, _role(chunk.name)].append(chunk)
    commits = _Commits(newest, older, concurrency)
    parts = [_predicted(how, chunks, commits) for (how, _, _), chunks in groups.items()]
    return _total(newest, older, parts)


def _chunks(step: Checkpoint) -> Iterator[_Chunk]:
    seen = set[bytes]()
    for name in step.names():
        dtype = step.spec(name).dtype
        for region, location in step.chunks_of(name):
            yield _Chunk(name, dtype, region, location, location.id in seen)
            seen.add(location.id)


def _role(name: str) -> str:
    """``exp_avg`` of ``optimizer/layer.weight/exp_avg``; nothing for weights."""
    return name.rsplit("/", 1)[-1] if name.startswith("optimizer/") else ""


def _replayable(step: Checkpoint) -> tuple[frozenset[str], frozenset[str]]:
    """Weights and second moments that a step can replay, and the first moments it does it with."""
    leaves = step.leaves(min(step.ranks))
    known = set(step.names())
    params = [
        p
        for p in find_params(leaves, leaves)
        if {p.weight, p.exp_avg, p.exp_avg_sq} <= known and step.spec(p.weight).dtype == "float32"
    ]
    replayed = frozenset(name for p in params for name in (p.weight, p.exp_avg_sq))
    return replayed, frozenset(p.exp_avg for p in params)


def _predicted(how: How, chunks: Sequence[_Chunk], commits: _Commits) -> PredictedKind:
    full = sum(chunk.location.raw_len for chunk in chunks)
    if how == "unchanged":
        return PredictedKind(how, full, 0, 0, 0)
    if how == "replayed":
        return _kind(how, full, _Ratio(*REPLAYED))
    difference = _difference(chunks, commits) if how == "difference" else None
    if difference is not None:
        return _kind("difference", full, difference)
    return _kind("compressed", full, _stored_ratio(chunks))


def _kind(how: How, full: int, ratio: _Ratio) -> PredictedKind:
    sizes = (round(full * min(1.0, max(0.0, share))) for share in ratio)
    low, expected, high = sizes
    return PredictedKind(how, full, expected, low, high)


def _stored_ratio(chunks: Sequence[_Chunk]) -> _Ratio:
    """How the same chunks are stored now; deltas among them say nothing about that."""
    plain = [c.location for c in chunks if not c.location.refs] or [c.location for c in chunks]
    share = sum(c.stored_len for c in plain) / max(1, sum(c.raw_len for c in plain))
    return _Ratio(share - _COMPRESSED_SPREAD, share, share + _COMPRESSED_SPREAD)


def _difference(chunks: Sequence[_Chunk], commits: _Commits) -> _Ratio | None:
    """What a difference to the newest commit would take, if the one to the older one pays."""
    newest, older, concurrency = commits
    pairs = [] if older is None else list(_pairs(chunks, older))
    if older is None or not pairs:
        return None
    last = len(pairs) - 1
    numbers = {round(i * last / (NUM_SAMPLES - 1)) for i in range(NUM_SAMPLES)}
    chosen = [pairs[i] for i in sorted(numbers)]
    raws = read_chunks(newest.store, (new for new, _ in chosen), concurrency)
    old_raws = read_chunks(older.store, (old for _, old in chosen), concurrency)
    if not raws or not old_raws:
        return None
    kind = ELEMENT_TYPES[chunks[0].dtype]
    shares, gains = [], []
    for new, old in chosen:
        raw = raws[new.id]
        size = len(encode_xor(raw, old_raws[old.id], kind.width)) / len(raw)
        shares.append(size)
        gains.append(len(encode(raw, kind).blob) / len(raw) - size)
    if statistics.mean(gains) < MIN_GAIN:
        return None
    mean = statistics.mean(shares)
    error = 2 * statistics.pstdev(shares) / math.sqrt(len(shares)) + _COMPRESSED_SPREAD
    return _Ratio(mean - error, mean, mean + error)


def _pairs(
    chunks: Iterable[_Chunk], older: Checkpoint
) -> Iterator[tuple[ChunkLocation, ChunkLocation]]:
    """Chunks with what stood in their place in the older step."""
    names = frozenset(older.names())
    places: dict[str, dict[Region, ChunkLocation]] = {}
    for chunk in chunks:
        if chunk.name not in names or chunk.location.raw_len < MIN_BOX_BYTES:
            continue
        if chunk.name not in places:
            places[chunk.name] = dict(older.chunks_of(chunk.name))
        old = places[chunk.name].get(chunk.region)
        if old is not None and old.raw_len == chunk.location.raw_len:
            yield chunk.location, old


def _total(
    newest: Checkpoint, older: Checkpoint | None, parts: Sequence[PredictedKind]
) -> Prediction:
    by_kind = tuple(
        PredictedKind(
            how, sum(p.full_bytes for p in mine), sum(p.expected_bytes for p in mine),
            sum(p.low for p in mine), sum(p.high for p in mine),
        )
        for how in _ORDER
        if (mine := [p for p in parts if p.how == how])
    )  # fmt: skip
    words = ", ".join(
        f"{format_bytes(k.full_bytes)} {k.how}"
        + (f" to {_percent(k.expected_bytes, k.full_bytes)}" if k.how != "unchanged" else "")
        for k in by_kind
    )
    steps = f"step {newest.step}" if older is None else f"steps {older.step} and {newest.step}"
    return Prediction(
        newest.manifest.raw_bytes, sum(k.expected_bytes for k in by_kind),
        sum(k.low for k in by_kind), sum(k.high for k in by_kind), f"{steps}: {words}", by_kind,
    )  # fmt: skip


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "0 %"
