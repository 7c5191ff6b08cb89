"""Stored steps as sheets: history, differences, usage, verification, collections, jobs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cloudshift_lab.core.money import format_bytes, format_duration
from cloudshift_lab.core.steps import (
    DiffReport,
    ForgetReport,
    GcReport,
    History,
    JobView,
    PinReport,
    RepairReport,
    Restored,
    RunUsage,
    StepLine,
    TensorDiff,
    Usage,
    UsageReport,
    VerifyReport,
)
from cloudshift_lab.lab.render.figures import ago, clock
from cloudshift_lab.lab.render.sheet import Sheet, Table

HISTORY_HEAD = ("step", "saved", "ranks", "state", "stored", "new", "where", "")
PART_HEAD = ("part", "tensors", "differ", "elements", "changed", "change/size")
TENSOR_HEAD = ("tensor", "shape", "type", "changed", "norm", "change/size", "largest")
LEAF_HEAD = ("value", "before", "after")
RUNS_HEAD = ("run", "id", "steps", "state", "in packs", "only here")
STEPS_HEAD = ("step", "state", "in packs", "only here")
CHECK_HEAD = ("step", "where", "", "objects", "read")
REPAIR_HEAD = ("step", "where", "", "lost tensors", "")
_STATES = {"whole": "✓ whole", "damaged": "✗ damaged", "gone": "✗ gone"}
GC_HEAD = ("where", "runs", "steps kept", "garbage", "waiting", "deleted", "spared")
JOB_HEAD = ("job", "what", "state", "progress", "began", "took")
_CONTENTS = {
    "npz": "every stored tensor, under the name it is stored with",
    "safetensors": "the model's tensors, named as in its state_dict",
    "state_dict": "model, optimizer and step",
    "dcp": "model and optimizer",
}
_LOADERS = {
    "npz": ("numpy.load", "{!r}"),
    "safetensors": ("safetensors.torch.load_file", "{!r}"),
    "state_dict": ("torch.load", "{!r}, weights_only=True"),
    "dcp": ("torch.distributed.checkpoint.load", "state_dict, checkpoint_id={!r}"),
}


def history_sheet(view: History, prompt: str) -> Sheet:
    """The steps of a run, newest first."""
    name = view.run_name or view.run_id
    title = f"Steps of {name} ({view.run_id})"
    if not view.lines:
        waiting = "none is stored yet"
        return Sheet(
            title, f"{title}: {waiting}", following=(f"{prompt} watch {name}",),
            troubles=_unreachable(view),
        )  # fmt: skip
    rows = [_history_row(line, view) for line in reversed(view.lines)]
    notes = [f"branched from {view.origin}"] if view.origin else []
    if view.num_older:
        notes.append(f"{view.num_older:,} older steps are not shown; all of them: --last 0")
    refs = [f"{name}@{line.step}" for line in view.lines][-2:]
    following = [f"{prompt} diff {' '.join(refs)}"] if len(refs) == 2 else []
    return Sheet(
        label=title,
        title=title,
        tables=(Table(HISTORY_HEAD, rows, frozenset({0, 2, 3, 4, 5})),),
        notes=tuple(notes),
        troubles=_unreachable(view),
        following=(*following, f"{prompt} branch {refs[-1]}"),
    )


def _history_row(line: StepLine, view: History) -> tuple[str, ...]:
    where = ", ".join(view.places.get(url, url) for url in line.urls)
    remarks = [*(f"pinned: {name}" for name in line.pins)]
    remarks += ["last save of its attempt"] if line.is_final else []
    remarks += [line.coverage] if line.coverage not in ("", "complete") else []
    saved = ago(line.at, view.as_of)
    if line.problem:
        return (f"{line.step:,}", saved, "-", "-", "-", "-", where, f"✗ {line.problem}")
    return (
        f"{line.step:,}", saved, str(line.world_size), format_bytes(line.raw_bytes),
        format_bytes(line.stored_bytes), format_bytes(line.new_bytes), where, ", ".join(remarks),
    )  # fmt: skip


def _unreachable(view: History) -> tuple[str, ...]:
    return tuple(
        f"steps in {view.places.get(url, url)} are not shown: {why}"
        for url, why in view.unreachable.items()
    )


class _Part(NamedTuple):
    """Tensors of one kind, together."""

    name: str
    tensors: list[TensorDiff]


def diff_sheet(report: DiffReport, top: int) -> Sheet:
    """Two steps compared: by part, then the tensors that changed most, then other values."""
    found = report.diff
    changed = [each for each in found.tensors if each.fate != "same"]
    ranked = sorted(changed, key=_interest)
    shown = ranked if top == 0 else ranked[:top]
    title = f"{report.before} → {report.after}"
    if not changed:
        return Sheet(f"diff {title}", f"{title}: all {len(found.tensors):,} tensors are the same",
                     tables=_leaf_tables(report))  # fmt: skip
    share = found.shared_bytes / found.total_bytes if found.total_bytes else 0.0
    notes = [
        f"{format_bytes(found.total_bytes)} of state, {_percent(share)} of it in chunks that both "
        f"steps share; {format_bytes(found.read_bytes)} read",
        "changed: elements whose bits differ; change/size: norm of the change over the norm of "
        "the tensor before",
    ]
    if any(each.is_bound for each in changed):
        notes.append("≤: chunks that are equal were not read, so the true value is smaller")
    if found.world_sizes[0] != found.world_sizes[1]:
        notes.append(f"saved by {found.world_sizes[0]} and by {found.world_sizes[1]} ranks")
    if len(shown) < len(ranked):
        notes.append(f"{len(ranked) - len(shown):,} more tensors changed; all of them: --top 0")
    counted = f"{len(changed):,} of {len(found.tensors):,} tensors differ"
    return Sheet(
        label=f"diff {title}",
        title=f"{title}: {counted}",
        tables=(
            Table(PART_HEAD, [_part_row(part) for part in _parts(found.tensors)],
                  frozenset({1, 2, 3, 4, 5})),
            Table(TENSOR_HEAD, [_tensor_row(each) for each in shown], frozenset({3, 4, 5, 6}),
                  "what changed most, the model first"),
            *_leaf_tables(report),
        ),
        notes=tuple(notes),
    )  # fmt: skip


def _leaf_tables(report: DiffReport) -> tuple[Table, ...]:
    rows = [(leaf.path, leaf.before, leaf.after) for leaf in report.diff.leaves]
    if report.diff.more_leaves:
        rows.append((f"… {report.diff.more_leaves:,} more", "", ""))
    return (Table(LEAF_HEAD, rows, title="values that are not tensors"),)


def _parts(tensors: Iterable[TensorDiff]) -> list[_Part]:
    found: dict[str, list[TensorDiff]] = {}
    for each in tensors:
        found.setdefault(_part_of(each.name), []).append(each)
    return [_Part(name, found[name]) for name in sorted(found)]


def _part_of(name: str) -> str:
    """``model`` of a parameter, ``optimizer/exp_avg`` of an optimizer's state."""
    first, _, rest = name.partition("/")
    return f"{first}/{rest.rpartition('/')[2]}" if first == "optimizer" and rest else first


def _part_row(part: _Part) -> tuple[str, ...]:
    differing = [each for each in part.tensors if each.fate != "same"]
    elements = sum(each.elements for each in part.tensors)
    changed = sum(each.changed for each in part.tensors)
    return (
        part.name, f"{len(part.tensors):,}", f"{len(differing):,}", _count(elements),
        _percent(changed / elements if elements else 0.0), _relative_of(part.tensors),
    )  # fmt: skip


def _relative_of(tensors: Sequence[TensorDiff]) -> str:
    """Change over size of several tensors together; of those that did not change neither is known,
    so that it is a bound as soon as there are any.
    """
    related = [each for each in tensors if each.relative]
    if not related:
        return "-"
    change = math.hypot(*(each.norm for each in related))
    size = math.hypot(*(each.norm / (each.relative or 1.0) for each in related))
    is_bound = len(related) < len(tensors) or any(each.is_bound for each in related)
    return _bounded(change / size if size else 0.0, is_bound=is_bound)


def _interest(tensor: TensorDiff) -> tuple[int, float, str]:
    """What came, went or was replaced first; then the model, then other figures, by how much."""
    if tensor.fate != "changed":
        return 0, 0.0, tensor.name
    is_figure = tensor.elements > 1 and ("float" in tensor.dtype or "complex" in tensor.dtype)
    group = 3 if not is_figure else 1 if tensor.name.startswith("model/") else 2
    return group, -(tensor.relative or 0.0), tensor.name


def _tensor_row(tensor: TensorDiff) -> tuple[str, ...]:
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    if tensor.fate != "changed":
        remark = f"{tensor.fate} ({tensor.note})" if tensor.note else tensor.fate
        return tensor.name, shape, tensor.dtype, remark, "", "", ""
    relative = "-" if tensor.relative is None else _bounded(
        tensor.relative, is_bound=tensor.is_bound)  # fmt: skip
    odd = f" (+{tensor.non_finite:,} not finite)" if tensor.non_finite else ""
    return (
        tensor.name, shape, tensor.dtype, _percent(tensor.changed / max(1, tensor.elements)),
        _figure(tensor.norm), relative, f"{_figure(tensor.max_abs)}{odd}",
    )  # fmt: skip


def usage_sheet(report: UsageReport, prompt: str, *, run: str | None) -> Sheet:
    """What stores hold: run by run, or one run step by step."""
    if run is not None:
        return _run_sheet(report, prompt)
    rows, notes = [], []
    for usage in report.stores:
        where = report.places.get(usage.url, usage.url)
        rows += [(where, *_run_row(each, report)) for each in usage.runs]
        num_steps = sum(len(each.steps) for each in usage.runs)
        stored = _stored(usage.pack_bytes, usage.raw_bytes)
        rows.append((where, "all", "", str(num_steps), format_bytes(usage.raw_bytes), stored, ""))
        notes += _loose_notes(usage, where)
    notes.append("in packs: whole packs that steps refer to, shared ones counted once; "
                 "only here: no other run refers to them")  # fmt: skip
    loose = any(usage.loose_packs for usage in report.stores)
    return Sheet(
        label="usage",
        title="What is stored",
        tables=(Table(("where", *RUNS_HEAD), rows, frozenset({3, 4, 5, 6})),),
        notes=tuple(notes),
        troubles=_usage_troubles(report),
        following=(f"{prompt} gc --dry-run",) if loose else (),
    )


def _run_row(run: RunUsage, report: UsageReport) -> tuple[str, ...]:
    return (
        report.names.get(run.run_id, "not ours"), run.run_id, str(len(run.steps)),
        format_bytes(run.raw_bytes), _stored(run.pack_bytes, run.raw_bytes),
        format_bytes(run.only_here_bytes),
    )  # fmt: skip


def _loose_notes(usage: Usage, where: str) -> list[str]:
    if not usage.loose_packs:
        return []
    return [
        f"{where}: {usage.loose_packs:,} packs ({format_bytes(usage.loose_bytes)}) belong to no "
        "step: a save is under way, or a collection will take them"
    ]


def _run_sheet(report: UsageReport, prompt: str) -> Sheet:
    rows = [
        (report.places.get(usage.url, usage.url), f"{step.step:,}", format_bytes(step.raw_bytes),
         format_bytes(step.pack_bytes), format_bytes(step.only_here_bytes))
        for usage in report.stores for run in usage.runs for step in run.steps
    ]  # fmt: skip
    runs = [run for usage in report.stores for run in usage.runs]
    name = next((report.names.get(run.run_id, run.run_id) for run in runs), "this run")
    raw, stored = sum(run.raw_bytes for run in runs), sum(run.pack_bytes for run in runs)
    return Sheet(
        label=f"usage of {name}",
        title=f"{name}: {format_bytes(raw)} of state in {_stored(stored, raw)}",
        tables=(Table(("where", *STEPS_HEAD), rows, frozenset({1, 2, 3, 4})),),
        notes=(
            "in packs: whole packs that the step refers to, also for a part of one",
            "only here: free once that step alone is forgotten and collected",
        ),
        troubles=_usage_troubles(report),
        following=(f"{prompt} log {name}",),
    )


def _usage_troubles(report: UsageReport) -> tuple[str, ...]:
    return tuple(
        f"{report.names.get(run.run_id, run.run_id)}, {problem}"
        for usage in report.stores for run in usage.runs for problem in run.problems
    )  # fmt: skip


def _stored(stored: int, raw: int) -> str:
    """Bytes, with how much less that is than what they stand for."""
    saved = 1 - stored / raw if raw else 0.0
    return f"{format_bytes(stored)} ({'-' if saved >= 0 else '+'}{abs(saved):.0%})"


def verify_sheet(report: VerifyReport, prompt: str) -> Sheet:
    """Which steps are whole."""
    bad = [check for check in report.checks if not check.ok]
    rows = [
        (f"{check.step:,}", check.place, "✓ whole" if check.ok else "✗ damaged",
         f"{check.objects:,}", format_bytes(check.num_bytes))
        for check in report.checks
    ]  # fmt: skip
    how = "every chunk decoded and hashed" if report.level == 2 else "stored hashes only"
    steps = f"{len(report.checks)} steps" if len(report.checks) != 1 else "1 step"
    verdict = f"{len(bad)} of {steps} damaged" if bad else f"{steps} whole"
    name = report.run_name
    whole = [check.step for check in report.checks if check.ok]
    following = [f"{prompt} repair {name}"] if bad else []
    following += [f"{prompt} branch {name}@{whole[-1]}"] if bad and whole else []
    return Sheet(
        label=f"verification of {name}",
        title=f"{name}: {verdict}",
        tables=(Table(CHECK_HEAD, rows, frozenset({0, 3, 4})),),
        notes=(how,),
        troubles=tuple(
            f"step {check.step}: {problem}" for check in bad for problem in check.problems
        ),
        following=tuple(following),
    )


def repair_sheet(report: RepairReport, prompt: str) -> Sheet:
    """What was healed and what is left of each step."""
    name = report.run_name
    rows = [
        (f"{each.step:,}", each.place, _STATES.get(each.state, each.state),
         f"{len(each.lost):,} of {each.num_tensors:,}" if each.lost else "", each.problem)
        for each in sorted(report.steps, key=lambda each: -each.step)
    ]  # fmt: skip
    healed, bad = (sum(map(len, found.values())) for found in (report.healed, report.bad))
    would = "could be healed" if report.is_dry_run else "healed"
    broken = [each for each in report.steps if each.state != "whole"]
    title = f"{name}: {healed:,} objects {would}, {bad:,} lost"
    if not healed and not bad and not broken:
        title = f"{name}: nothing is damaged"
    following = [f"{prompt} repair {name}"] if report.is_dry_run and healed else []
    if broken and report.newest_whole is not None:
        following.append(f"{prompt} branch {name}@{report.newest_whole}")
    lost = tuple(
        f"step {each.step} in {each.place} has lost {', '.join(each.lost[:5])}"
        + (f" and {len(each.lost) - 5:,} more tensors" if len(each.lost) > 5 else "")
        for each in broken if each.lost
    )  # fmt: skip
    return Sheet(
        label=f"repair of {name}",
        title=title,
        tables=(Table(REPAIR_HEAD, rows, frozenset({0})),),
        notes=(f"{format_bytes(report.num_bytes)} checked",),
        troubles=lost,
        following=tuple(following),
    )


def restored_sheet(told: Restored) -> Sheet:
    """Where a step was written, what of it, and how to open it."""
    title = f"{told.step} is written to {told.path}"
    content, (loader, arguments) = _CONTENTS[told.format], _LOADERS[told.format]
    size = f"{format_bytes(told.num_bytes)} {told.format}: {content}"
    return Sheet(title, title, notes=(size, f"open it: {loader}({arguments.format(told.path)})"))


def gc_sheet(report: GcReport, prompt: str) -> Sheet:
    """What a collection found and deleted."""
    rows, notes = [], []
    for each in report.stores:
        where = report.places.get(each.url, each.url)
        rows.append((
            where, f"{each.runs:,}", f"{each.steps_kept:,}", _pile(each.marked, each.marked_bytes),
            _pile(each.waiting, each.waiting_bytes), _pile(each.deleted, each.deleted_bytes),
            f"{each.spared:,}",
        ))  # fmt: skip
        if each.due_at is not None:
            wait = format_duration(max(0.0, each.due_at - report.as_of))
            notes.append(f"{where}: deleted by a collection after {clock(each.due_at)} (in {wait})")
    left = any(each.marked or each.waiting for each in report.stores)
    if report.is_dry_run:
        notes.append("nothing was changed")
        following = (f"{prompt} gc",) if left else ()
    else:
        following = (f"{prompt} gc --now",) if notes else ()
    title = "What a collection would find" if report.is_dry_run else "Collected"
    table = Table(GC_HEAD, rows, frozenset({1, 2, 3, 4, 5, 6}))
    lost = tuple(
        f"{step} in {report.places.get(each.url, each.url)} cannot be read and was given up: "
        "only what its records name is kept"
        for each in report.stores for step in each.given_up
    )  # fmt: skip
    return Sheet("collection", title, (table,), tuple(notes), lost, following)


def pin_sheet(told: PinReport, prompt: str) -> Sheet:
    """Which step is kept, or no longer kept, by a pin."""
    what, names = f"{told.step} in {', '.join(told.places)}", ", ".join(told.names)
    if told.is_pinned:
        title = f"{what} is pinned as {names}: it stays whatever is forgotten or collected"
        return Sheet(title, title, following=(f"{prompt} unpin {told.step}",))
    title = f"{what} is no longer pinned ({names})"
    return Sheet(title, title, notes=("from here on --keep says whether it stays",))


def forget_sheet(told: ForgetReport, prompt: str) -> Sheet:
    """Where a step exists no longer."""
    title = f"{told.step} is forgotten in {', '.join(told.places)}"
    stays = f"it stays in {', '.join(told.newest_in)}, where it is the newest"
    return Sheet(
        title, title, notes=(stays,) if told.newest_in else (),
        following=(f"{prompt} gc --dry-run", f"{prompt} gc"),
    )  # fmt: skip


def _pile(count: int, num_bytes: int) -> str:
    return "-" if not count else f"{count:,} ({format_bytes(num_bytes)})"


def jobs_sheet(views: Sequence[JobView], prompt: str) -> Sheet:
    """The conductor's jobs, newest first."""
    if not views:
        return Sheet("jobs", "no jobs: diff, restore, gc, du, verify and repair make them")
    rows = [
        (view.job_id, view.title, view.state, progress_words(view),
         ago(view.started_at, view.as_of), _took(view))
        for view in views
    ]  # fmt: skip
    running = [view.job_id for view in views if view.ended_at is None]
    following = [f"{prompt} jobs {(running or [views[0].job_id])[0]}"]
    following += [f"{prompt} jobs {running[0]} --cancel"] if running else []
    troubles = tuple(f"{v.job_id}: {v.error.message}" for v in views if v.error is not None)
    return Sheet("jobs", "Jobs", (Table(JOB_HEAD, rows),), (), troubles, tuple(following))


def progress_words(view: JobView) -> str:
    """How far a job is: ``41% of 122.4 MB``, ``3 of 12 steps``; all of it once it is done."""
    if not view.total:
        return ""
    in_bytes = view.unit == "bytes"
    unit = view.unit.removesuffix("s") if view.total == 1 else view.unit
    whole = format_bytes(view.total) if in_bytes else f"{view.total:,} {unit}"
    if view.state == "done":
        return whole
    return f"{view.done / view.total:.0%} of {whole}" if in_bytes else f"{view.done:,} of {whole}"


def _took(view: JobView) -> str:
    until = view.as_of if view.ended_at is None else view.ended_at
    return format_duration(max(0.0, until - view.started_at))


def _count(number: int) -> str:
    """A count as people say it: ``999``, ``12.3 k``, ``1.2 M``."""
    value = float(number)
    for unit in ("", " k", " M", " G"):
        if value < 999.5 or unit == " G":
            return f"{value:.0f}" if not unit else f"{value:.1f}{unit}"
        value /= 1000
    raise AssertionError("unreachable")


def _percent(share: float) -> str:
    """A share that is never rounded to all or nothing: ``0.003%``, ``99.9%``."""
    if share in (0.0, 1.0):
        return f"{share:.0%}"
    if share < 0.001:
        return f"{100 * share:.2g}%"
    return f"{min(share, 0.999):.1%}"


def _bounded(value: float, *, is_bound: bool) -> str:
    return f"≤ {_figure(value)}" if is_bound else _figure(value)


def _figure(value: float) -> str:
    """Three digits that count: ``0.0123``, ``12.3``, ``1.23e-05``."""
    return "0" if value == 0 else f"{value:.3g}"
