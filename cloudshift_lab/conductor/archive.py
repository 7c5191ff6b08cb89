"""Stored steps of our runs as people ask for them: found in whatever store has them, compared."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from cloudshift_lab.checkpoint.diff import diff
from cloudshift_lab.checkpoint.gc import GRACE_S, collect
from cloudshift_lab.checkpoint.history import du, history
from cloudshift_lab.checkpoint.pins import list_pins
from cloudshift_lab.checkpoint.reader import Checkpoint, open_checkpoint
from cloudshift_lab.checkpoint.repair import StepVerdict, repair
from cloudshift_lab.checkpoint.verify import verify
from cloudshift_lab.conductor.jobs import Jobs, Task
from cloudshift_lab.conductor.keeping import Keeping, end_ownership, refuse_active
from cloudshift_lab.conductor.records import AttemptStarted
from cloudshift_lab.conductor.registry import Registry
from cloudshift_lab.conductor.restoring import place_of, restore
from cloudshift_lab.conductor.tending import RunTender
from cloudshift_lab.core.errors import CloudshiftError, NotFound, UsageError
from cloudshift_lab.core.steps import (
    Collected,
    DiffAsk,
    DiffReport,
    ForgetAsk,
    GcAsk,
    GcReport,
    History,
    JobAsk,
    JobView,
    KeepAsk,
    PinAsk,
    RepairAsk,
    RepairReport,
    RestoreAsk,
    Restored,
    StepCheck,
    StepRepair,
    UnpinAsk,
    UsageAsk,
    UsageReport,
    VerifyAsk,
    VerifyReport,
)
from cloudshift_lab.core.world import World
from cloudshift_lab.storage.log import LogRecord, RunLog
from cloudshift_lab.storage.store import Store

_REF = re.compile(r"(?P<run>[^@]+)(?:@(?P<step>[0-9]{1,18}|latest))?")
_LISTED = 8


class Found(NamedTuple):
    """A committed step, and the attempt in whose store it lies."""

    tender: RunTender
    commit: LogRecord
    attempt: AttemptStarted

    @property
    def store(self) -> Store:
        return self.tender.side(self.attempt).store

    @property
    def step(self) -> int:
        assert self.commit.step is not None, "a commit names its step"
        return self.commit.step

    @property
    def ref(self) -> str:
        """``gpt@400``."""
        return f"{self.tender.record.spec.name}@{self.step}"

    def open(self) -> Checkpoint:
        """Read the step's records; every hash is checked."""
        return open_checkpoint(self.store, self.tender.run_id, self.commit)


class Archive:
    """Answers about stored steps; what takes long becomes a job.

    Args:
        registry: All runs.
        jobs: Where long work is done.
        world: Clock.
    """

    def __init__(self, registry: Registry, jobs: Jobs, world: World) -> None:
        self._registry = registry
        self._jobs = jobs
        self._world = world

    def history(self, run: str, last: int | None) -> History:
        """The steps of a run, in every store that it has been in.

        Raises:
            NotFound: No such run.
            Unavailable, Denied, Corrupt: The store it is in now does not answer, or its log broke.
        """
        tender = self._registry.find(run)
        attempts = _places(tender)
        stores = {tender.side(each).store.url: tender.side(each).store for each in attempts}

        def open_store(url: str) -> Store:
            if url not in stores:
                raise NotFound(f"no attempt of {tender.run_id} was in {url}; look there by hand")
            return stores[url]

        store = tender.side(tender.owner).store
        try:
            found = history(store, tender.run_id, open_store=open_store, last=last)
        except NotFound:
            found = History(run_id=tender.run_id, lines=())
        pins: dict[int, list[str]] = {}
        for pin in list_pins(store, tender.run_id):
            pins.setdefault(pin.step, []).append(pin.name)
        return msgspec.structs.replace(
            found,
            lines=tuple(
                msgspec.structs.replace(line, pins=tuple(pins.get(line.step, ())))
                for line in found.lines
            ),
            run_name=tender.record.spec.name,
            origin=_origin(tender) or found.origin,
            places={
                tender.side(each).store.url: each.job.placement.cloud for each in reversed(attempts)
            },
            as_of=self._world.now(),
        )

    def find(self, ref: str) -> Found:
        """The step that ``RUN@STEP`` means; the newest one of ``RUN`` or ``RUN@latest``.

        Raises:
            UsageError: Not of that form.
            NotFound: No such run, or it has no such step (any more); names those it has.
            Unavailable, Denied, Corrupt: A store that may have it does not answer or is damaged.
        """
        run, step = parse_ref(ref)
        tender = self._registry.find(run)
        known: set[int] = set()
        trouble: CloudshiftError | None = None
        for attempt in _places(tender):
            try:
                store = tender.side(attempt).store
                commits = RunLog(store, tender.run_id, self._world).sync().commits
            except CloudshiftError as error:
                trouble = trouble or error
                continue
            known |= {commit.step for commit in commits if commit.step is not None}
            fitting = [commit for commit in commits if step in (None, commit.step)]
            if fitting:
                return Found(tender, fitting[-1], attempt)
        if trouble is not None:
            raise trouble
        raise _no_such_step(tender, step, known)

    def ask(self, ask: JobAsk) -> JobView:
        """Begin a job, once everything about it that can be checked at once is right.

        Raises:
            UsageError, NotFound, Unavailable, Denied, Corrupt: As :meth:`find`; nothing is begun.
            Conflict: Too many jobs wait already, or the step must not be forgotten.
        """
        if isinstance(ask, DiffAsk):
            return self._diff(ask)
        if isinstance(ask, VerifyAsk):
            return self._verify(ask)
        if isinstance(ask, RestoreAsk):
            return self._restore(ask)
        if isinstance(ask, RepairAsk):
            return self._repair(ask)
        if isinstance(ask, PinAsk | UnpinAsk | ForgetAsk):
            return self._keep(ask)
        return self._usage(ask) if isinstance(ask, UsageAsk) else self._collect(ask)

    def _diff(self, ask: DiffAsk) -> JobView:
        before, after = self.find(ask.before), self.find(ask.after)

        def work(task: Task) -> DiffReport:
            return DiffReport(before.ref, after.ref, diff(before.open(), after.open(), task.tell))

        return self._jobs.start("diff", f"diff {before.ref} {after.ref}", work)

    def _verify(self, ask: VerifyAsk) -> JobView:
        found = self.find(ask.ref)
        tender, is_one = found.tender, "@" in ask.ref
        name = tender.record.spec.name
        steps = [found] if is_one else list(self._all_steps(tender))

        def work(task: Task) -> VerifyReport:
            checks = []
            for number, each in enumerate(steps):
                task.tell(number, len(steps), "steps")
                checks.append(_check(each, ask.level, task))
            return VerifyReport(
                run_id=tender.run_id, run_name=name, level=ask.level, checks=tuple(checks)
            )

        return self._jobs.start("verify", f"verify {found.ref if is_one else name}", work)

    def _restore(self, ask: RestoreAsk) -> JobView:
        found = self.find(ask.ref)
        place_of(ask, found.ref)
        job = found.attempt.job

        def work(task: Task) -> Restored:
            return restore(
                found.open(),
                ask,
                ref=found.ref,
                home=Path(job.home),
                cloud=job.placement.cloud,
                python=job.python,
                task=task,
            )

        return self._jobs.start("restore", f"restore {found.ref} as {ask.format}", work)

    def _usage(self, ask: UsageAsk) -> JobView:
        tenders, title = self._asked("du", ask.run)
        one = None if ask.run is None else tenders[0].run_id

        def work(task: Task) -> UsageReport:
            stores, places = _stores(tenders)
            found = [
                du(store, one, progress=lambda done, total: task.tell(done, total, "runs"))
                for store in stores
            ]
            names = {t.run_id: t.record.spec.name for t in self._registry.all()}
            return UsageReport(tuple(found), names, places)

        return self._jobs.start("du", title, work)

    def _collect(self, ask: GcAsk) -> JobView:
        tenders, title = self._asked("gc", ask.run)
        grace_s = 0.0 if ask.is_now else GRACE_S
        given_up = [each for each in self._registry.all() if each.run_id in ask.without]
        for tender in given_up:
            refuse_active(tender)

        def work(task: Task) -> GcReport:
            stores, places = _stores(tenders)
            for tender in [] if ask.is_dry_run else given_up:
                end_ownership(tender, self._world)
            found = []
            for store in stores:
                report = collect(
                    store,
                    world=self._world,
                    grace_s=grace_s,
                    dry_run=ask.is_dry_run,
                    progress=lambda done, total: task.tell(done, total, "objects"),
                    without=ask.without,
                )
                told = {**msgspec.structs.asdict(report), "url": store.url}
                found.append(msgspec.convert(told, Collected))
                task.check()
            return GcReport(
                stores=tuple(found),
                places=places,
                is_dry_run=ask.is_dry_run,
                as_of=self._world.now(),
            )

        return self._jobs.start("gc", title, work)

    def _repair(self, ask: RepairAsk) -> JobView:
        tender = self._registry.find(ask.run)
        name = tender.record.spec.name

        def work(task: Task) -> RepairReport:
            stores, places = _stores([tender])
            made = [
                repair(
                    store,
                    tender.run_id,
                    other=[each for each in stores if each is not store],
                    world=self._world,
                    dry_run=ask.is_dry_run,
                    progress=task.tell,
                )
                for store in stores
            ]
            told = list(zip((places[store.url] for store in stores), made, strict=True))
            return RepairReport(
                run_id=tender.run_id,
                run_name=name,
                is_dry_run=ask.is_dry_run,
                steps=tuple(_verdict(place, v) for place, report in told for v in report.steps),
                healed={place: report.healed for place, report in told if report.healed},
                bad={place: report.bad for place, report in told if report.bad},
                num_bytes=sum(report.num_bytes for report in made),
            )

        return self._jobs.start("repair", f"repair {name}", work)

    def _keep(self, ask: KeepAsk) -> JobView:
        """Pin, unpin or forget a step: quick, but a store may take its time."""
        run, step = parse_ref(ask.ref)
        if isinstance(ask, UnpinAsk) and step is not None:  # it may be forgotten, yet pinned
            tender = self._registry.find(run)
        else:
            found = self.find(ask.ref)
            tender, step = found.tender, found.step
        keeping = Keeping(tender, step, _copies(tender), self._world)
        if isinstance(ask, PinAsk):
            work = keeping.pinning(found.store, ask.name)
        elif isinstance(ask, UnpinAsk):
            work = keeping.unpinning(ask.name)
        else:
            work = keeping.forgetting()
        verb = type(ask).__struct_config__.tag
        return self._jobs.start(str(verb), f"{verb} {keeping.ref}", work)

    def _asked(self, verb: str, run: str | None) -> tuple[tuple[RunTender, ...], str]:
        """The runs that are meant, and the job's title."""
        if run is None:
            return self._registry.all(), verb
        tender = self._registry.find(run)
        return (tender,), f"{verb} {tender.record.spec.name}"

    def _all_steps(self, tender: RunTender) -> Iterator[Found]:
        """Every committed step once, oldest first, where it was committed last."""
        found: dict[int, Found] = {}
        for attempt in reversed(_places(tender)):
            store = tender.side(attempt).store
            for commit in RunLog(store, tender.run_id, self._world).sync().commits:
                found[commit.step or 0] = Found(tender, commit, attempt)
        yield from (found[step] for step in sorted(found))


def parse_ref(ref: str) -> tuple[str, int | None]:
    """Run and step of ``gpt@400``; the step is None for the newest.

    Raises:
        UsageError: Not of that form.
    """
    match = _REF.fullmatch(ref)
    if match is None:
        raise UsageError(f"'{ref}' names no step; write RUN@STEP, such as gpt@400, or RUN@latest")
    step = match["step"]
    return match["run"], None if step in (None, "latest") else int(step)


def _places(tender: RunTender) -> list[AttemptStarted]:
    """An attempt for each store that the run has been in: where it is now, then backwards."""
    with tender.lock:
        attempts = [tender.owner]
        attempts += [each.started for each in reversed(list(tender.record.attempts.values()))]
    found: dict[str, AttemptStarted] = {}
    for attempt in attempts:
        found.setdefault(attempt.job.store_url, attempt)
    return list(found.values())


def _verdict(place: str, verdict: StepVerdict) -> StepRepair:
    return StepRepair(
        place=place,
        step=verdict.step,
        state=verdict.state,
        lost=verdict.lost,
        num_tensors=verdict.num_tensors,
        problem=verdict.problem,
    )


def _origin(tender: RunTender) -> str | None:
    origin = tender.record.created.origin
    return None if origin is None else f"{origin.ref} ({origin.run_id})"


def _stores(tenders: Iterable[RunTender]) -> tuple[list[Store], dict[str, str]]:
    """Every store that the runs have been in, once, and the names of their clouds by url."""
    stores: dict[str, Store] = {}
    places: dict[str, str] = {}
    for tender in tenders:
        for attempt in _places(tender):
            store = tender.side(attempt).store
            stores.setdefault(store.url, store)
            places.setdefault(store.url, attempt.job.placement.cloud)
    return list(stores.values()), places


def _copies(tender: RunTender) -> dict[str, Store]:
    """Every store that the run has been in, by the name of its cloud; where it is now first."""
    return {each.job.placement.cloud: tender.side(each).store for each in _places(tender)}


def _check(found: Found, level: int, task: Task) -> StepCheck:
    commit = found.commit
    report = verify(
        found.store,
        found.tender.run_id,
        commit.manifest_key or "",
        commit.manifest_digest or "",
        level=2 if level == 2 else 1,
        progress=lambda _done, _total: task.check(),
    )
    return StepCheck(
        step=found.step,
        place=found.attempt.job.placement.cloud,
        ok=report.ok,
        objects=report.objects,
        num_bytes=report.num_bytes,
        problems=report.problems,
    )


def _no_such_step(tender: RunTender, step: int | None, known: set[int]) -> NotFound:
    name = tender.record.spec.name
    if not known:
        return NotFound(f"{name} has no checkpoint yet; wait for its first: cloudshift log {name}")
    near = sorted(known, key=lambda each: (abs(each - (step or 0)), each))[:_LISTED]
    listed = ", ".join(f"{name}@{each}" for each in sorted(near))
    return NotFound(
        f"{name} has no checkpoint of step {step} (not yet, or no longer); choose one of: "
        f"{listed}, or see all: cloudshift log {name}"
    )
