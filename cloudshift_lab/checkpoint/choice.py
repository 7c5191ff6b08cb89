"""Which tensors of a share are coded as deltas: only those where a sample shows a clear gain."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy.typing as npt

from cloudshift_lab.checkpoint.boxes import Region
from cloudshift_lab.checkpoint.codecs import ADAMW_V, ADAMW_W, DERIVED, Bytes1d, Encoded, encode
from cloudshift_lab.checkpoint.derived import ROUNDINGS, encode_derived, round_half
from cloudshift_lab.checkpoint.gains import PastGains, Role, role_of
from cloudshift_lab.checkpoint.index import ChunkLocation
from cloudshift_lab.checkpoint.known import KnownChunks, little_used
from cloudshift_lab.checkpoint.recipe import (
    Bases,
    BaseStep,
    Code,
    Recipe,
    encode_xor,
    read_chunks,
    xor_recipe,
)
from cloudshift_lab.checkpoint.replay import ORDERS, Param, Step, encode_v, encode_w, find_params
from cloudshift_lab.checkpoint.share import ShareBox, Staged
from cloudshift_lab.storage.store import Store

MIN_GAIN = 0.10
"""Share of the raw bytes that a delta must save beyond direct coding, in a sample."""
MIN_GAIN_OF_A_STEP = 0.01
"""The same against the step before, as in a cut-over: then bytes count more than processor time."""
MIN_BOX_BYTES = 1024
SAMPLE_BYTES = 128 * 1024
_BATCH_BYTES = 64 * 2**20
_PROBES = 256
_SAMPLED_PARAMS = 4
_SAMPLED_BOXES = 4
Recipes = dict[int, Recipe]


class Sample(NamedTuple):
    """One chunk of a box with what it is compared with."""

    box: ShareBox
    number: int
    bases: tuple[ChunkLocation, ...]


def choose(
    store: Store, staged: Staged, boxes: Sequence[ShareBox], base: BaseStep | None, *,
    ids: Sequence[bytes], known: KnownChunks, concurrency: int, gains: PastGains | None = None,
) -> Recipes:  # fmt: skip
    """Recipes of the boxes that are worth a delta, by the boxes' first rows.

    Args:
        store: Where the base lies.
        staged: The share.
        boxes: The same, cut.
        base: What deltas may refer to; None: only tensors of the share itself.
        ids: Per row the chunk's id; only needed with a base.
        known: Chunks that will be reused as they are.
        concurrency: Requests at a time.
        gains: What earlier saves found out about deltas; takes in what this one does.
    """
    boxes = [box for box in boxes if box.num_chunks]  # an empty one has its neighbour's first row
    chosen = _derived(boxes)
    if base is None:
        return chosen
    if staged.step == base.checkpoint.step + 1:
        chosen |= _replayed(store, staged, boxes, base, concurrency)
    needed_plain = {box.first_row for recipe in chosen.values() for box in recipe.own}
    others = [b for b in boxes if b.first_row not in chosen and b.first_row not in needed_plain]
    gains = PastGains() if gains is None else gains
    distance = staged.step - base.checkpoint.step
    gains.begin(distance)
    chosen |= _xored(
        store, others, base, ids, gains=gains, concurrency=concurrency,
        min_gain=MIN_GAIN_OF_A_STEP if distance == 1 else MIN_GAIN,
    )  # fmt: skip
    return _without_dragging(chosen, ids, known)


# -- rounded copies -------------------------------------------------------------------------------


def _derived(boxes: Sequence[ShareBox]) -> Recipes:
    """Half-precision boxes that agree with some float32 box of the same place, as far as probed."""
    sources: dict[tuple[str, tuple[int, ...], Region, bytes], ShareBox] = {}
    wanted = {b.entry.region for b in boxes if b.entry.dtype in ROUNDINGS}
    for box in boxes:
        if box.entry.dtype == "float32" and box.entry.region in wanted:
            floats = _probes(box.flat.view("<f4"))
            for dtype in ROUNDINGS:
                key = _place(box, dtype, round_half(floats, dtype).tobytes())
                sources.setdefault(key, box)
    found: Recipes = {}
    for box in boxes:
        if box.entry.dtype in ROUNDINGS and len(box.flat) >= MIN_BOX_BYTES:
            probes = _probes(box.flat.view("<u2")).tobytes()
            source = sources.get(_place(box, box.entry.dtype, probes))
            if source is not None:
                found[box.first_row] = derived_recipe(source, box.entry.dtype)
    return found


def derived_recipe(source: ShareBox, dtype: str) -> Recipe:
    """Nothing but a reference to the tensor of which the box is a rounded copy."""

    def code(raw: Bytes1d, floats: Bytes1d) -> Encoded | None:
        return encode_derived(raw, floats, dtype)

    return Recipe(DERIVED, (source,), (), code)


def _place(box: ShareBox, dtype: str, probes: bytes) -> tuple[str, tuple[int, ...], Region, bytes]:
    return dtype, box.entry.global_shape, box.entry.region, probes


def _probes(words: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return words[:: max(1, len(words) // _PROBES)]


# -- differences ----------------------------------------------------------------------------------


def _xored(
    store: Store, boxes: Sequence[ShareBox], base: BaseStep, ids: Sequence[bytes], *,
    gains: PastGains, min_gain: float, concurrency: int,
) -> Recipes:  # fmt: skip
    """Boxes of which a chunk gains much by its difference to the base.

    Of many boxes of one role a few are looked at first, and the others only if those promise much.
    """
    roles: dict[Role, list[ShareBox]] = defaultdict(list)
    for box in boxes:
        role = role_of(box.entry.name, box.entry.dtype)
        if len(box.flat) >= MIN_BOX_BYTES and gains.is_worth_sampling(role):
            roles[role].append(box)
    bases = {box.first_row: base.keyframes(box) for like in roles.values() for box in like}
    firsts: list[Sample] = []
    others: dict[Role, list[Sample]] = {}
    for role, like in roles.items():
        changed = (_changed_chunk(box, bases[box.first_row], ids) for box in like)
        samples = [sample for sample in changed if sample is not None]
        stride = max(1, -(-len(samples) // _SAMPLED_BOXES))
        firsts += samples[::stride]
        others[role] = [sample for n, sample in enumerate(samples) if n % stride]
    found = _gains(store, firsts, concurrency)
    promising = {_role(sample) for sample, gain in found if gain >= min_gain / 2}
    sampled = {_role(sample) for sample, _ in found}
    found += _gains(store, [s for role in promising for s in others[role]], concurrency)
    paying = {_role(sample) for sample, gain in found if gain >= min_gain}
    for role in sampled:
        gains.found(role, pays=role in paying)
    return {
        s.box.first_row: xor_recipe(s.box, bases[s.box.first_row])
        for s, gain in found
        if gain >= min_gain
    }


def _role(sample: Sample) -> Role:
    return role_of(sample.box.entry.name, sample.box.entry.dtype)


def _gains(
    store: Store, samples: Iterable[Sample], concurrency: int
) -> list[tuple[Sample, float]]:  # fmt: skip
    """What deltas of these chunks gain; nothing of those whose base cannot be read."""
    return [
        (s, xor_gain(s.box.chunk(s.number), raws[0], s.box))
        for s, raws in read_samples(store, samples, concurrency)
    ]


def _changed_chunk(box: ShareBox, bases: Bases, ids: Sequence[bytes]) -> Sample | None:
    """The chunk nearest to the middle that the base has with other content."""
    middle = box.num_chunks // 2
    for number in sorted(range(len(bases)), key=lambda n: abs(n - middle)):
        base = bases[number]
        if base is not None and base.id != ids[box.first_row + number]:
            return Sample(box, number, (base,))
    return None


def xor_gain(raw: Bytes1d, base: Bytes1d, box: ShareBox) -> float:
    """Share of a chunk's bytes that its difference to the base saves beyond direct coding."""
    size = min(len(raw), SAMPLE_BYTES)
    start = (len(raw) - size) // 2 // 16 * 16
    part, old = raw[start : start + size], base[start : start + size]
    alone = len(encode(part, box.kind).blob)
    return (alone - len(encode_xor(part, old, box.kind.width))) / size


def read_samples(
    store: Store, samples: Iterable[Sample], concurrency: int
) -> Iterator[tuple[Sample, list[Bytes1d]]]:
    """Samples with the raw bytes of their bases, a bounded number in memory."""
    batch: list[Sample] = []
    num_bytes = 0
    for sample in itertools.chain(samples, [None]):
        if sample is not None:
            batch.append(sample)
            num_bytes += sum(chunk.raw_len for chunk in sample.bases)
        if batch and (sample is None or num_bytes >= _BATCH_BYTES):
            raws = read_chunks(store, (c for s in batch for c in s.bases), concurrency)
            for each in batch if raws else ():
                yield each, [raws[chunk.id] for chunk in each.bases]
            batch, num_bytes = [], 0


# -- replayed steps -------------------------------------------------------------------------------


class _Trio(NamedTuple):
    """A parameter's box with its moments, and where the base has all three."""

    param: Param
    w: ShareBox
    m: ShareBox
    v: ShareBox
    old_w: Bases
    old_m: Bases
    old_v: Bases

    def sample(self) -> Sample | None:
        """The first chunk that the base has."""
        for number, old in enumerate(zip(self.old_w, self.old_m, self.old_v, strict=True)):
            present = tuple(chunk for chunk in old if chunk is not None)
            if len(present) == len(old):
                return Sample(self.w, number, present)
        return None


def _replayed(
    store: Store, staged: Staged, boxes: Sequence[ShareBox], base: BaseStep, concurrency: int
) -> Recipes:  # fmt: skip
    """Weights and second moments of parameters whose sample shows that AdamW made the step."""
    found: Recipes = {}
    groups: dict[int, list[_Trio]] = defaultdict(list)
    for trio in _trios(staged, boxes, base):
        groups[id(trio.param.groups[0])].append(trio)
    names = {trio.param.num_steps for trios in groups.values() for trio in trios}
    step_numbers = base.step_numbers(names)
    for trios in groups.values():
        stepped = [trio for trio in trios if trio.param.num_steps in step_numbers]
        bests = list(_bests(store, stepped, step_numbers, concurrency))
        if bests:
            best = bests[0]._replace(
                is_good_for_v=any(b.is_good_for_v for b in bests),
                is_good_for_w=any(b.is_good_for_w for b in bests),
            )
            found |= _replay_recipes(stepped, step_numbers, best)
    return found


def _bests(
    store: Store, trios: Iterable[_Trio], step_numbers: Mapping[str, int], concurrency: int
) -> Iterator[_Best]:
    """What samples of some parameters say, the largest first."""
    largest = sorted(trios, key=lambda trio: -len(trio.w.flat))[:_SAMPLED_PARAMS]
    sampled = {s.box.first_row: (t, s) for t in largest if (s := t.sample()) is not None}
    for sample, raws in read_samples(store, (s for _, s in sampled.values()), concurrency):
        trio, _ = sampled[sample.box.first_row]
        yield _best_step(trio, sample.number, raws, step_numbers[trio.param.num_steps] + 1)


class _Best(NamedTuple):
    """Which variant of the step leaves least, and what it is good for."""

    rate: int
    order: int
    is_good_for_v: bool
    is_good_for_w: bool


def _best_step(trio: _Trio, number: int, raws: Sequence[Bytes1d], step_number: int) -> _Best:
    where = slice(*trio.w.starts[number : number + 2])
    w, m, v = (box.flat[where].view("<f4") for box in (trio.w, trio.m, trio.v))
    old_w, old_m, old_v = (raw.view("<f4") for raw in raws)
    steps = list(trio.param.steps(step_number))
    sizes = {
        (rate, order): _size(encode_w(w, m, v, old_w, step, order=order))
        for rate, step in enumerate(steps)
        for order in ORDERS
    }
    rate, order = min(sizes, key=lambda key: sizes[key])
    v_size = _size(encode_v(v, m, old_m, old_v, steps[0]))
    return _Best(
        rate, order,
        is_good_for_v=_step_gains(trio.v, number, v_size),
        is_good_for_w=_step_gains(trio.w, number, sizes[rate, order]),
    )  # fmt: skip


def _size(encoded: Encoded | None) -> float:
    return math.inf if encoded is None else len(encoded.blob)


def _step_gains(box: ShareBox, number: int, size: float) -> bool:
    raw = box.chunk(number)
    return len(encode(raw, box.kind).blob) - size >= MIN_GAIN * len(raw)


def _replay_recipes(
    trios: Iterable[_Trio], step_numbers: Mapping[str, int], best: _Best
) -> Recipes:  # fmt: skip
    found: Recipes = {}
    for trio in trios:
        steps = list(trio.param.steps(step_numbers[trio.param.num_steps] + 1))
        step = steps[min(best.rate, len(steps) - 1)]
        if best.is_good_for_v:
            bases = (trio.old_m, trio.old_v)
            found[trio.v.first_row] = Recipe(ADAMW_V, (trio.m,), bases, _code_v(step))
        if best.is_good_for_w:
            own = (trio.m, trio.v)
            found[trio.w.first_row] = Recipe(ADAMW_W, own, (trio.old_w,), _code_w(step, best.order))
    return found


def _code_v(step: Step) -> Code:
    def code(raw: Bytes1d, m: Bytes1d, old_m: Bytes1d, old_v: Bytes1d) -> Encoded | None:
        v, *others = (x.view("<f4") for x in (raw, m, old_m, old_v))
        return encode_v(v, others[0], others[1], others[2], step)

    return code


def _code_w(step: Step, order: int) -> Code:
    def code(raw: Bytes1d, m: Bytes1d, v: Bytes1d, old_w: Bytes1d) -> Encoded | None:
        w, *others = (x.view("<f4") for x in (raw, m, v, old_w))
        return encode_w(w, others[0], others[1], others[2], step, order=order)

    return code


def _trios(staged: Staged, boxes: Sequence[ShareBox], base: BaseStep) -> Iterator[_Trio]:
    """Boxes that hold weights and both moments of one place, all of them float32."""
    places = {
        (b.entry.name, b.entry.region): b
        for b in boxes
        if b.entry.dtype == "float32" and len(b.flat) >= MIN_BOX_BYTES
    }
    for param in find_params(staged.leaves, base.leaves(staged.rank)):
        for (name, region), w in places.items():
            m = places.get((param.exp_avg, region))
            v = places.get((param.exp_avg_sq, region))
            if name == param.weight and m is not None and v is not None:
                yield _Trio(param, w, m, v, base.bases(w), base.bases(m), base.bases(v))


# -- whether it drags too much along --------------------------------------------------------------


def _without_dragging(chosen: Recipes, ids: Sequence[bytes], known: KnownChunks) -> Recipes:
    """No delta to a pack of which the step would use less than a quarter: copies take it whole."""
    used = [chunk for i in set(ids) if (chunk := known.find(i)) is not None]
    poor = little_used([*used, *bases_of(chosen)])
    return {row: recipe.without(poor) for row, recipe in chosen.items()}


def bases_of(chosen: Recipes) -> Iterator[ChunkLocation]:
    """Every stored chunk that some delta may refer to."""
    return (c for r in chosen.values() for chunks in r.bases for c in chunks if c is not None)
