"""What changed between two stored steps, tensor by tensor, reading only chunks that differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cloudshift_lab.checkpoint.boxes import Region, TensorSpec, cut, grid_cell, whole
from cloudshift_lab.checkpoint.change import Change
from cloudshift_lab.checkpoint.dtypes import element_type
from cloudshift_lab.checkpoint.step import BoxRequest, Checkpoint
from cloudshift_lab.core.errors import NotFound
from cloudshift_lab.core.steps import Diff, Fate, LeafDiff, TensorDiff

BATCH_BYTES = 16 * 2**20
_MAX_LEAVES = 40
_LONG_LIST = 16
_SHOWN_CHARS = 60
Progress = Callable[[int, int], None]


class _Compared(NamedTuple):
    """A tensor that both steps have alike, and its grid cells whose content differs."""

    spec: TensorSpec
    change: Change
    cells: list[Region]


def diff(before: Checkpoint, after: Checkpoint, progress: Progress | None = None) -> Diff:
    """Compare two opened steps, of any run and world size, in bounded memory.

    Args:
        before: The first step.
        after: The second.
        progress: Called with bytes compared and bytes to compare; may raise to stop.

    Raises:
        Corrupt: Stored bytes differ from their hash.
        NotFound: A step does not hold all of a tensor.
    """
    tell = progress or (lambda _done, _total: None)
    old, new = ({name: step.spec(name) for name in step.names()} for step in (before, after))
    alike = [name for name in sorted(old) if new.get(name) == old[name]]
    compared = {name: _compare_chunks(before, after, name) for name in alike}
    total = sum(_num_bytes(each.spec, cell) for each in compared.values() for cell in each.cells)
    tell(0, total)
    done = 0
    for batch in _batches(list(compared.values())):
        done += _compare_batch(before, after, batch)
        tell(done, total)
    leaves = _leaf_changes(before, after)
    sizes = [_spec_bytes(each.spec) for each in compared.values()]
    return Diff(
        before=before.step,
        after=after.step,
        world_sizes=(before.world_size, after.world_size),
        tensors=tuple(
            _finish(compared[name]) if name in compared else _other(old.get(name), new.get(name))
            for name in sorted({*old, *new})
        ),
        leaves=tuple(leaves[:_MAX_LEAVES]),
        more_leaves=max(0, len(leaves) - _MAX_LEAVES),
        total_bytes=sum(_spec_bytes(spec) for spec in new.values()),
        shared_bytes=sum(sizes) - total,
        read_bytes=2 * total,
    )


def _compare_chunks(before: Checkpoint, after: Checkpoint, name: str) -> _Compared:
    """Find the grid cells of a tensor that are not made of the same chunks on both sides."""
    spec = before.spec(name)
    ours, theirs = (_chunks(step, spec) for step in (before, after))
    change = Change(spec.dtype)
    if ours == theirs or math.prod(spec.global_shape) == 0:
        return _Compared(spec, change, [])
    cell = grid_cell(spec.global_shape, element_type(spec.dtype).itemsize)
    cuts = cut(whole(spec.global_shape), cell)
    odd = ours ^ theirs
    numbers = {number: region for chunk, _ in odd for number, region in cuts.overlapping(chunk)}
    return _Compared(spec, change, [numbers[number] for number in sorted(numbers)])


def _chunks(step: Checkpoint, spec: TensorSpec) -> set[tuple[Region, bytes]]:
    """Place and content of each chunk.

    Raises:
        NotFound: The chunks cannot hold the whole tensor: no grid is built for what is not there.
    """
    found = {(region, location.id) for region, location in step.chunks_of(spec.name)}
    if sum(region.num_elements for region, _ in found) < math.prod(spec.global_shape):
        raise NotFound(
            f"step {step.step} does not hold all of '{spec.name}' (it is {step.coverage}); "
            "compare another step",
            step=step.step,
        )
    return found


def _batches(compared: list[_Compared]) -> Iterator[list[tuple[_Compared, Region]]]:
    """Differing cells in groups of bounded bytes."""
    batch: list[tuple[_Compared, Region]] = []
    held = 0
    for each in compared:
        for cell in each.cells:
            batch.append((each, cell))
            held += _num_bytes(each.spec, cell)
            if held >= BATCH_BYTES:
                yield batch
                batch, held = [], 0
    if batch:
        yield batch


def _compare_batch(
    before: Checkpoint, after: Checkpoint, batch: list[tuple[_Compared, Region]]
) -> int:
    """Read the cells from both sides and take in their differences; returns their bytes."""
    requests = [BoxRequest(each.spec.name, cell.offset, cell.shape) for each, cell in batch]
    arrays = zip(before.read_many(requests), after.read_many(requests), strict=True)
    for (each, _), (old, new) in zip(batch, arrays, strict=True):
        each.change.add(old, new)
    return sum(_num_bytes(each.spec, cell) for each, cell in batch)


def _finish(compared: _Compared) -> TensorDiff:
    spec, change = compared.spec, compared.change
    elements = math.prod(spec.global_shape)
    is_related = change.changed > 0 and change.norm_before > 0
    return TensorDiff(
        name=spec.name,
        dtype=spec.dtype,
        shape=spec.global_shape,
        fate="changed" if change.changed else "same",
        elements=elements,
        changed=change.changed,
        norm=change.norm,
        relative=change.norm / change.norm_before if is_related else None,
        is_bound=is_related and change.num_compared < elements,
        max_abs=change.max_abs,
        non_finite=change.non_finite,
    )


def _other(old: TensorSpec | None, new: TensorSpec | None) -> TensorDiff:
    """A tensor that only one side has, or that is of another kind on the other."""
    spec = new or old
    assert spec is not None, "one of the steps has it"
    fate: Fate = "added" if old is None else "removed" if new is None else "replaced"
    was = "" if old is None or new is None else f"was {old.dtype} {list(old.global_shape)}"
    return TensorDiff(
        name=spec.name,
        dtype=spec.dtype,
        shape=spec.global_shape,
        fate=fate,
        elements=math.prod(spec.global_shape),
        note=was,
    )


def _num_bytes(spec: TensorSpec, region: Region) -> int:
    return region.num_elements * element_type(spec.dtype).itemsize


def _spec_bytes(spec: TensorSpec) -> int:
    return math.prod(spec.global_shape) * element_type(spec.dtype).itemsize


def _leaf_changes(before: Checkpoint, after: Checkpoint) -> list[LeafDiff]:
    common = sorted({*before.ranks} & {*after.ranks})
    if not common:
        return []
    old, new = (dict(_flat(step.leaves(common[0]), "")) for step in (before, after))
    return [
        LeafDiff(path, _short(old.get(path, "-")), _short(new.get(path, "-")))
        for path in sorted({*old, *new})
        if path not in old or path not in new or old[path] != new[path]
    ]


def _flat(value: object, path: str) -> Iterator[tuple[str, str]]:
    """Every plain value with its path; a long list of plain values counts as one."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}/{key}" if path else str(key))
    elif isinstance(value, list | tuple) and not _is_long(value):
        for number, inner in enumerate(value):
            yield from _flat(inner, f"{path}[{number}]")
    else:
        yield path, repr(value)


def _is_long(values: list[object] | tuple[object, ...]) -> bool:
    return len(values) > _LONG_LIST and not any(isinstance(v, dict | list | tuple) for v in values)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 1]}…"
