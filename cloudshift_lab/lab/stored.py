"""Verbs about stored steps: what a run saved, how steps differ, branching, restoring, cleaning up.

What takes long is a job of the conductor: the verb waits and shows how far it is, Ctrl-C leaves
it running, and ``jobs`` shows or cancels it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from cloudshift_lab.core.errors import NotFound, UsageError, error_from_wire
from cloudshift_lab.core.money import format_duration
from cloudshift_lab.core.steps import (
    ENDED_JOB,
    BranchAsk,
    DiffAsk,
    DiffReport,
    ForgetAsk,
    ForgetReport,
    GcAsk,
    GcReport,
    JobView,
    PinAsk,
    PinReport,
    RepairAsk,
    RepairReport,
    RestoreAsk,
    Restored,
    RestoreFormat,
    UnpinAsk,
    UsageAsk,
    UsageReport,
    VerifyAsk,
    VerifyReport,
)
from cloudshift_lab.core.wire import from_json
from cloudshift_lab.lab.desk import Desk
from cloudshift_lab.lab.objects import Report, Run, Shown, note
from cloudshift_lab.lab.render import steps
from cloudshift_lab.lab.render.sheet import Sheet, sheet_html, sheet_text
from cloudshift_lab.lab.request import Request
from cloudshift_lab.lab.waiting import SILENT_S

Show = Callable[[str | None], None]
"""Shows the newest line about a wait, and None at its end."""
T = TypeVar("T")
_POLL_S = 0.2
_FORMATS: dict[str, RestoreFormat] = {
    ".npz": "npz", ".safetensors": "safetensors", ".pt": "state_dict", ".pth": "state_dict",
}  # fmt: skip


class StepName(NamedTuple):
    """A run that exists, and what follows the ``@``; empty when nothing did."""

    run_id: str
    run_name: str
    step: str

    @property
    def ref(self) -> str:
        return f"{self.run_id}@{self.step}" if self.step else self.run_id


def find_step(desk: Desk, word: str | None) -> StepName:
    """The run and step that are meant: ``gpt@400``, ``gpt``, ``@400`` or ``400`` of the only run.

    Raises:
        NotFound: No such run.
        UsageError: Several runs could be meant.
    """
    run, has_step, step = (word or "").partition("@")
    if run.isdigit() and not has_step:
        run, step = "", run
    view = desk.find_run(run or None)
    return StepName(view.run_id, view.name, step)


# -- what each verb does, for every surface --------------------------------------------------------


def log(desk: Desk, name: str | None, *, last: int) -> Report:
    """The newest ``last`` steps of a run (0: all of them)."""
    view = desk.client().history(desk.find_run(name).run_id, last=last or None)
    return _report(view, steps.history_sheet(view, desk.prompt))


def diff(desk: Desk, words: list[str], show: Show, *, top: int) -> Report:
    """``RUN@A RUN@B``, ``RUN A B``, or ``A B`` of the only run."""
    before, after = _two_steps(desk, words)
    job = desk.client().ask(DiffAsk(before.ref, after.ref))
    return _finish(desk, job, show, DiffReport, lambda r: steps.diff_sheet(r, top))


def _two_steps(desk: Desk, words: list[str]) -> tuple[StepName, StepName]:
    if len(words) == 3 and "@" not in words[0]:
        words = [f"{words[0]}@{word.removeprefix('@')}" for word in words[1:]]
    if len(words) != 2:
        raise UsageError(
            f"diff compares two steps: {desk.prompt} diff RUN@100 RUN@200; "
            f"to see them: {desk.prompt} log RUN"
        )
    before = find_step(desk, words[0])
    after = words[1]
    if after.removeprefix("@").isdigit() or after in ("latest", "@latest"):
        after = f"{before.run_name}@{after.removeprefix('@')}"
    return before, find_step(desk, after)


def branch(
    desk: Desk, word: str | None, *, name: str | None, seed: int | None, on: str | None
) -> Run:
    """A new run from a stored step."""
    if word is None:
        raise UsageError(
            f"branch needs a step: {desk.prompt} branch RUN@400; "
            f"to see what there is: {desk.prompt} log RUN"
        )
    ask = BranchAsk(find_step(desk, word).ref, name=name, seed=seed, target=on)
    return Run(desk, desk.client().branch(ask))


def restore(desk: Desk, word: str | None, show: Show, *, to: str, format_: str | None) -> Report:
    """A stored step as a file or folder of this machine."""
    path = Path(to).expanduser().absolute()
    chosen = format_ or _FORMATS.get(path.suffix, "safetensors")
    step = find_step(desk, word)
    ask = RestoreAsk(step.ref, str(path), chosen)  # type: ignore[arg-type]
    job = desk.client().ask(ask)
    return _finish(desk, job, show, Restored, steps.restored_sheet)


def verify(desk: Desk, word: str | None, show: Show, *, is_quick: bool) -> Report:
    """One step, or all of a run."""
    ask = VerifyAsk(find_step(desk, word).ref, level=1 if is_quick else 2)
    job = desk.client().ask(ask)
    return _finish(desk, job, show, VerifyReport, lambda r: steps.verify_sheet(r, desk.prompt))


def du(desk: Desk, name: str | None, show: Show) -> Report:
    """What one run takes up, or everything in every store of ours."""
    run = None if name is None else desk.find_run(name).run_id
    job = desk.client().ask(UsageAsk(run))
    return _finish(
        desk, job, show, UsageReport, lambda r: steps.usage_sheet(r, desk.prompt, run=run)
    )


def gc(
    desk: Desk, name: str | None, show: Show, *, is_dry_run: bool, is_now: bool,
    without: Sequence[str] = (),
) -> Report:  # fmt: skip
    """Collect garbage in the stores of one run, or of all; see ``checkpoint.gc.collect``."""
    if is_dry_run and is_now:
        raise UsageError("--dry-run changes nothing and --now deletes at once; take one away")
    run = None if name is None else desk.find_run(name).run_id
    given_up = tuple(_run_id(desk, each) for each in without)
    ask = GcAsk(run, is_dry_run=is_dry_run, is_now=is_now, without=given_up)
    job = desk.client().ask(ask)
    return _finish(desk, job, show, GcReport, lambda r: steps.gc_sheet(r, desk.prompt))


def _run_id(desk: Desk, word: str) -> str:
    """A run's id; what is no run of ours may be one of another state directory's."""
    try:
        return desk.find_run(word).run_id
    except NotFound:
        return word


def pin(desk: Desk, word: str | None, show: Show, *, name: str | None) -> Report:
    """Keep a stored step until it is unpinned."""
    job = desk.client().ask(PinAsk(_exact_step(desk, "pin", word).ref, name))
    return _finish(desk, job, show, PinReport, lambda r: steps.pin_sheet(r, desk.prompt))


def unpin(desk: Desk, word: str | None, show: Show, *, name: str | None) -> Report:
    """Take out the pins of a stored step, or the one of that name."""
    job = desk.client().ask(UnpinAsk(_exact_step(desk, "unpin", word).ref, name))
    return _finish(desk, job, show, PinReport, lambda r: steps.pin_sheet(r, desk.prompt))


def forget(desk: Desk, word: str | None, show: Show) -> Report:
    """Drop a stored step; not the newest one, and none that is pinned."""
    job = desk.client().ask(ForgetAsk(_exact_step(desk, "forget", word).ref))
    return _finish(desk, job, show, ForgetReport, lambda r: steps.forget_sheet(r, desk.prompt))


def _exact_step(desk: Desk, verb: str, word: str | None) -> StepName:
    """A step that was named, not guessed."""
    found = None if word is None else find_step(desk, word)
    if found is None or not found.step:
        raise UsageError(
            f"{verb} needs a step: {desk.prompt} {verb} RUN@400; "
            f"to see what there is: {desk.prompt} log RUN"
        )
    return found


def repair(desk: Desk, name: str | None, show: Show, *, is_dry_run: bool) -> Report:
    """Heal what can be healed of a run's steps, and say what is lost."""
    job = desk.client().ask(RepairAsk(desk.find_run(name).run_id, is_dry_run=is_dry_run))
    return _finish(desk, job, show, RepairReport, lambda r: steps.repair_sheet(r, desk.prompt))


_SHEETS: dict[str, tuple[type, Callable[..., Sheet]]] = {
    "diff": (DiffReport, lambda r, _prompt: steps.diff_sheet(r, 15)),
    "restore": (Restored, lambda r, _prompt: steps.restored_sheet(r)),
    "verify": (VerifyReport, steps.verify_sheet),
    "du": (UsageReport, lambda r, prompt: steps.usage_sheet(r, prompt, run=None)),
    "gc": (GcReport, steps.gc_sheet),
    "repair": (RepairReport, steps.repair_sheet),
    "pin": (PinReport, steps.pin_sheet),
    "unpin": (PinReport, steps.pin_sheet),
    "forget": (ForgetReport, steps.forget_sheet),
}


def jobs(desk: Desk, job_id: str | None, show: Show, *, is_cancel: bool) -> Report:
    """All jobs; or wait for one and show its result, or cancel it."""
    client = desk.client()
    if job_id is None:
        if is_cancel:
            raise UsageError(f"which job? to see them: {desk.prompt} jobs")
        views = client.jobs()
        return _report(views, steps.jobs_sheet(views, desk.prompt))
    if is_cancel:
        view = client.cancel_job(job_id)
        was = "is being cancelled" if view.state not in ENDED_JOB else f"is {view.state}"
        return note(f"{view.title} ({view.job_id}) {was}")
    view = client.job(job_id)
    kind, make = _SHEETS[view.kind]
    return _finish(desk, view, show, kind, lambda result: make(result, desk.prompt))


# -- waiting ---------------------------------------------------------------------------------------


def _finish(
    desk: Desk, job: JobView, show: Show, kind: type[T], make: Callable[[T], Sheet]
) -> Report:
    """Wait for a job and show what it gives; Ctrl-C leaves it to itself.

    Raises:
        CloudshiftError: What the job ran into, or NotFound when the conductor was started anew.
    """
    try:
        view = _wait(desk, job, show)
    except KeyboardInterrupt:
        return note(
            f"detached; {job.title} goes on: {desk.prompt} jobs {job.job_id} "
            f"(or end it: {desk.prompt} jobs {job.job_id} --cancel)"
        )
    finally:
        show(None)
    if view.error is not None:
        raise error_from_wire(view.error.kind, view.error.message)
    if view.state == "cancelled":
        return note(f"{view.title} was cancelled; nothing was left behind")
    result = from_json(bytes(view.result), kind, what="the job's result")
    return _report(result, make(result))


def _wait(desk: Desk, view: JobView, show: Show) -> JobView:
    client = desk.client()
    silent_until = desk.world.monotonic() + SILENT_S
    while view.state not in ENDED_JOB:
        if desk.world.monotonic() >= silent_until:
            show(_line(view))
        desk.world.sleep(_POLL_S)
        view = client.job(view.job_id)
    return view


def _line(view: JobView) -> str:
    took = format_duration(max(0.0, view.as_of - view.started_at))
    words = [view.title, steps.progress_words(view) or "…", took]
    if view.state == "waiting":
        words = [view.title, "waits for other jobs", took]
    return " · ".join(word for word in words if word) + " (Ctrl-C leaves it running)"


def _report(data: object, sheet: Sheet) -> Report:
    return Report(data, sheet_text(sheet), sheet_html(sheet))


# -- as typed --------------------------------------------------------------------------------------


def _log(request: Request) -> Shown:
    args = request.args
    with request.stage.waiting("reading the run's log"):
        return log(request.desk, args.run, last=args.last)


def _diff(request: Request) -> Shown:
    args = request.args
    words = [word for word in (args.first, args.second, args.step) if word is not None]
    return diff(request.desk, words, request.stage.progress(), top=args.top)


def _branch(request: Request) -> Shown:
    args = request.args
    with request.stage.waiting("checking the step and starting from it"):
        return branch(request.desk, args.step, name=args.name, seed=args.seed, on=args.on)


def _restore(request: Request) -> Shown:
    args = request.args
    return restore(
        request.desk, args.step, request.stage.progress(), to=args.to, format_=args.format
    )


def _verify(request: Request) -> Shown:
    args = request.args
    return verify(request.desk, args.step, request.stage.progress(), is_quick=args.quick)


def _du(request: Request) -> Shown:
    return du(request.desk, request.args.run, request.stage.progress())


def _gc(request: Request) -> Shown:
    args = request.args
    return gc(
        request.desk, args.run, request.stage.progress(), is_dry_run=args.dry_run,
        is_now=args.now, without=args.without,
    )  # fmt: skip


def _pin(request: Request) -> Shown:
    args = request.args
    return pin(request.desk, args.step, request.stage.progress(), name=args.name)


def _unpin(request: Request) -> Shown:
    args = request.args
    return unpin(request.desk, args.step, request.stage.progress(), name=args.name)


def _forget(request: Request) -> Shown:
    return forget(request.desk, request.args.step, request.stage.progress())


def _repair(request: Request) -> Shown:
    args = request.args
    return repair(request.desk, args.run, request.stage.progress(), is_dry_run=args.dry_run)


def _jobs(request: Request) -> Shown:
    args = request.args
    return jobs(request.desk, args.job, request.stage.progress(), is_cancel=args.cancel)


ACTIONS: dict[str, Callable[[Request], Shown | None]] = {
    "log": _log,
    "diff": _diff,
    "branch": _branch,
    "restore": _restore,
    "verify": _verify,
    "du": _du,
    "gc": _gc,
    "repair": _repair,
    "pin": _pin,
    "unpin": _unpin,
    "forget": _forget,
    "jobs": _jobs,
}
