"""The conductor's operations: everything a person or a program can ask of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import msgspec
import pyarrow as pa

from cloudshift_lab import __version__
from cloudshift_lab.conductor import doctor, shown
from cloudshift_lab.conductor.accounts import Accountant
from cloudshift_lab.conductor.archive import Archive
from cloudshift_lab.conductor.budgets import set_budget
from cloudshift_lab.conductor.fortune import Fortune
from cloudshift_lab.conductor.jobs import Jobs
from cloudshift_lab.conductor.maintenance import Postman
from cloudshift_lab.conductor.moves import Move, Surroundings
from cloudshift_lab.conductor.places import Places
from cloudshift_lab.conductor.planner import Ends, MovePlanner, check_ask
from cloudshift_lab.conductor.receipts import Receipts
from cloudshift_lab.conductor.registry import Registry, Ticker
from cloudshift_lab.conductor.starting import RunStarter
from cloudshift_lab.conductor.tending import RunTender
from cloudshift_lab.conductor.vigil import Vigil
from cloudshift_lab.core.approval import parse
from cloudshift_lab.core.asks import MoveAsk, NoticeAsk, NoticeView, refuse_unused_places
from cloudshift_lab.core.costs import CostEntry
from cloudshift_lab.core.errors import Corrupt, NotFound, Unavailable, UsageError
from cloudshift_lab.core.maintenance import (
    MaintenanceAsk,
    MaintenanceMark,
    MaintenanceView,
    Passport,
)
from cloudshift_lab.core.placement import Cloud, Offer
from cloudshift_lab.core.plan import Decision, Futures, MigrationView
from cloudshift_lab.core.run import RunSpec, RunView
from cloudshift_lab.core.steps import BranchAsk, History, JobAsk, JobView
from cloudshift_lab.core.views import Check, CostView, Health, Series, Target
from cloudshift_lab.core.world import World
from cloudshift_lab.engines.engine import Engine
from cloudshift_lab.health.report import GoodputReport, HealthReport
from cloudshift_lab.migration import Receipt
from cloudshift_lab.storage.store import Store, probe_store
from cloudshift_lab.telemetry.store import TelemetryStore
from cloudshift_lab.telemetry.upkeep import Upkeep

_NUM_LOSSES = 60
_VIEW_FRESH_S = 0.4


@dataclass(frozen=True)
class _Held:
    """A view kept for a moment; of a settled run, for good."""

    view: RunView
    _: KW_ONLY
    version: int
    at: float
    is_live: bool

    def is_still_good(self, version: int, at: float, *, is_live: bool) -> bool:
        if not is_live:
            return not self.is_live
        return self.version == version and at - self.at < _VIEW_FRESH_S


class ConductorService:
    """Runs, moves and answers of one state directory. Safe to call from any thread.

    Args:
        root: State directory.
        engine: Where agents run.
        world: Clock and ids.
        fortune: Draws futures of plans; None: plans are shown without.
    """

    def __init__(
        self, root: Path, engine: Engine, world: World, *, fortune: Fortune | None = None
    ) -> None:
        self._root = root
        self._world = world
        self._started_at = world.now()
        self._changes = threading.Condition()
        self._version = int(world.now() * 1000)  # goes on growing over restarts
        self._subscribers: list[Callable[[], None]] = []
        self._planning = threading.Lock()
        self._views: dict[str, _Held] = {}
        self.places = Places(root, world)
        self.telemetry = TelemetryStore(root / "telemetry.duckdb", world=world)
        self._upkeep = Upkeep(self.telemetry, world)
        self._around = Surroundings(root, self.places, engine, world)
        self._registry = Registry(self._around, ingest=self.telemetry.ingest, changed=self._changed)
        self._planner = MovePlanner(self._around, self._registry, self.telemetry)
        self._ticker = Ticker(self._registry)
        self._starter = RunStarter(self._around, self._registry)
        self._jobs = Jobs(world, self._changed)
        self._fortune = fortune
        self._archive = Archive(self._registry, self._jobs, world)
        self._postman = Postman(self._around.maintenance, self._changed)
        self._accountant = Accountant(self._around, self.telemetry)
        self._vigil = Vigil(self._registry, self._around, self.telemetry)

    def start(self) -> None:
        """Begin to look after the runs; those of before a restart are taken up where they were."""
        self._ticker.start()
        self._vigil.start()
        self._postman.start()
        self._upkeep.start()
        for tender in self._registry.all():
            move = tender.open_move
            if move is not None:
                self._foresee(tender, move)

    def close(self) -> None:
        """Stop looking after runs; they and their agents go on."""
        self._jobs.close()
        self._planner.close()
        if self._fortune is not None:
            self._fortune.close()
        self._ticker.stop()
        self._vigil.stop()
        self._postman.stop()
        self._upkeep.stop()
        self.telemetry.close()

    # -- seeing ----------------------------------------------------------------------------

    def health(self) -> Health:
        return Health(
            version=__version__, pid=os.getpid(), started_at=self._started_at, home=str(self._root)
        )

    def version(self) -> int:
        return self._version

    def subscribe(self, changed: Callable[[], None]) -> None:
        self._subscribers.append(changed)

    def runs(self) -> tuple[RunView, ...]:
        """All runs, newest first."""
        return tuple(self._show(tender) for tender in reversed(self._registry.all()))

    def run(self, run: str) -> RunView:
        return self._show(self._registry.find(run))

    def cost(self, run: str, *, until: int | None = None) -> CostView:
        """What a run has cost, with its ledger.

        Raises:
            UsageError: It is past the step ``until`` that its cost shall be forecast for.
            Corrupt: Its journal is damaged.
        """
        tender, now = self._registry.find(run), self._world.now()
        account = self._accountant.account(tender, now, until_step=until)
        with tender.lock:
            view = shown.show_cost(tender, self.places, now)
        return msgspec.structs.replace(view, account=account)

    def charges(self, run: str) -> tuple[CostEntry, ...]:
        """A run's ledger, cut at every full hour."""
        return self._accountant.charges(self._registry.find(run), self._world.now())

    def set_budget(self, run: str, micro_usd: int) -> CostView:
        """Give a run another budget.

        Raises:
            UsageError: That much is spent already, or the run has finished.
        """
        tender = self._registry.find(run)
        set_budget(tender, micro_usd, self._around)
        self._changed()
        return self.cost(run)

    def series(self, run: str, *, points: int) -> Series:
        tender = self._registry.find(run)
        curve = self.telemetry.step_curve(tender.run_id, points)
        with tender.lock:
            return shown.show_series(tender, curve, now=self._world.now())

    def run_health(self, run: str) -> HealthReport:
        """What the detectors find about a run, and what they looked at."""
        return self._vigil.health(self._registry.find(run))

    def run_goodput(self, run: str) -> GoodputReport:
        """What a run's time went into, and what is to be expected.

        Raises:
            UsageError: It has not trained yet.
        """
        return self._vigil.goodput(self._registry.find(run))

    def logs(self, run: str, *, rank: int | None, tail: int) -> str:
        return self._registry.find(run).logs(rank, tail)

    def migrations(self, run: str | None) -> tuple[MigrationView, ...]:
        """All migrations (of one run), newest first."""
        tenders = self._registry.all() if run is None else (self._registry.find(run),)
        now = self._world.now()
        found = [
            shown.show_move(move, tender, now)
            for tender in tenders
            for move in tuple(tender.moves.values())
        ]
        return tuple(sorted(found, key=lambda view: view.plan.created_at, reverse=True))

    def migration(self, migration_id: str) -> MigrationView:
        move, tender = self._find_move(migration_id)
        return shown.show_move(move, tender, self._world.now())

    def targets(self) -> tuple[Target, ...]:
        found = []
        for name in self.places.clouds().targets():
            cloud, offer = self.places.resolve(name)
            found.append(
                Target(
                    target=name,
                    title=cloud.title,
                    price_micro_usd_per_h=offer.price_micro_usd_per_h,
                    simulated=cloud.simulated or offer.simulated,
                    note=cloud.note,
                )
            )
        return tuple(found)

    def doctor(self) -> tuple[Check, ...]:
        checks = doctor.examine(
            self._root,
            self.places.clouds().clouds,
            pid=os.getpid(),
            query_telemetry=self._query_telemetry,
        )
        damaged = tuple(
            Check(name=run, ok=False, detail=text, advice="restore its journal from a copy")
            for run, text in self._registry.damaged.items()
        )
        return (*checks, *damaged, *doctor.examine_maintenance(self._around.maintenance))

    def _query_telemetry(self) -> None:
        self.telemetry.sql("SELECT 1")
        if self.telemetry.warnings:
            raise Corrupt("; ".join(self.telemetry.warnings))
        if self._upkeep.last_error is not None:
            raise Unavailable(f"telemetry is not kept in order: {self._upkeep.last_error}")

    def sql(self, query: str) -> bytes:
        """One read-only query; an Arrow IPC stream."""
        table = self.telemetry.sql(query)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return bytes(sink.getvalue().to_pybytes())

    def ingest(self, run: str, *, batch: str, table: str, data: bytes) -> Future[bool]:
        """Take a telemetry batch; ends when it is durable, False if it was there before."""
        self._registry.find(run)
        stored = self.telemetry.offer(batch, table, data)
        stored.add_done_callback(self._taken)
        return stored

    def _taken(self, stored: Future[bool]) -> None:
        if stored.exception() is None and stored.result():
            self._changed()

    # -- machines --------------------------------------------------------------------------

    def maintenance(self) -> tuple[MaintenanceView, ...]:
        """All requests, those that wait for somebody first."""
        return self._around.maintenance.all()

    def ask_maintenance(self, ask: MaintenanceAsk) -> MaintenanceView:
        """Open a request, or find the open one about the same thing."""
        return self._around.maintenance.open(ask)

    def mark_maintenance(self, request_id: str, mark: MaintenanceMark) -> MaintenanceView:
        """Acknowledge or resolve a request."""
        return self._around.maintenance.mark(request_id, mark)

    def passport(self, node: str) -> Passport:
        """What has happened to a machine."""
        return self._around.maintenance.passport(node)

    # -- runs ------------------------------------------------------------------------------

    def train(self, spec: RunSpec) -> RunView:
        """Check everything that can be checked, then start generation 1.

        Raises:
            UsageError: Script, name or target is wrong; nothing was started.
            Denied, Unavailable, Unsupported, Exhausted: The target's store cannot carry a run.
        """
        return self._begin(self._starter.start(spec))

    def branch(self, ask: BranchAsk) -> RunView:
        """Begin a new run from a stored step of another one, which shares all its chunks.

        Raises:
            UsageError: No step is named, the name is wrong or taken, or the step is elsewhere.
            NotFound: No such run or step.
            Denied, Unavailable, Unsupported, Exhausted: The store cannot carry a run.
        """
        found = self._archive.find(ask.ref)
        return self._begin(self._starter.branch(found, ask))

    def _begin(self, tender: RunTender) -> RunView:
        tender.submit()
        self._ticker.wake()
        return self._show(tender)

    def stop(self, run: str) -> RunView:
        tender = self._registry.find(run)
        tender.ask_to_stop()
        self._ticker.wake()
        return self._show(tender)

    def resume(self, run: str) -> RunView:
        """Continue a stopped, failed or lost run from its newest commit.

        Raises:
            UsageError, Conflict, Exhausted: It cannot be resumed now; says why.
            Denied, Unavailable, Unsupported: Its store cannot carry it any more.
            NotFound: Its store lost its checkpoint; nothing is started.
        """
        tender = self._registry.find(run)
        probe_store(tender.side(tender.owner).store, world=self._world)
        tender.resume()
        tender.submit()
        self._ticker.wake()
        return self._show(tender)

    # -- stored steps ----------------------------------------------------------------------

    def history(self, run: str, *, last: int | None) -> History:
        return self._archive.history(run, last)

    def ask(self, ask: JobAsk) -> JobView:
        return self._archive.ask(ask)

    def jobs(self) -> tuple[JobView, ...]:
        return self._jobs.all()

    def job(self, job_id: str) -> JobView:
        return self._jobs.get(job_id)

    def cancel_job(self, job_id: str) -> JobView:
        return self._jobs.cancel(job_id)

    # -- moves -----------------------------------------------------------------------------

    def migrate(self, run: str, ask: MoveAsk) -> MigrationView:
        """Plan a move, price it, and wait for a decision (or take the run's own policy's).

        Raises:
            UsageError: Unknown target, the present one, or a run that does not run or must stay.
            Conflict: Another move of this run is open.
            Denied, Unavailable, Unsupported, Exhausted: The target's store cannot carry the run.
        """
        tender = self._registry.find(run)
        rule = parse(tender.record.spec.approve)
        if rule.mode == "never":
            raise UsageError(f"{tender.run_id} was started with approve='never'; it stays put")
        check_ask(ask, nodes=tender.owner.job.placement.nodes)
        ends = self._ends(tender, ask)
        carried = self._planner.look_ahead(tender, self._prepare_store(tender, *ends.target))
        for place in ends.elsewhere:
            self._prepare_store(tender, *place)
        with self._planning:
            move = self._planner.open(tender, ask, ends, rule=rule, carried=carried)
        move.judge()
        self._foresee(tender, move)
        self._ticker.wake()
        return shown.show_move(move, tender, self._world.now())

    def _foresee(self, tender: RunTender, move: Move) -> None:
        """Have the futures of a plan drawn, to be shown with it once they are there."""

        def told(futures: Futures) -> None:
            move.futures = futures
            self._changed()

        if self._fortune is not None and move.saga.awaits_decision:
            self._fortune.tell(self._planner.futures_ask(tender, move.plan), told)

    def _ends(self, tender: RunTender, ask: MoveAsk) -> Ends:
        """Where the run may go, all of it known and none of it where the run is."""
        refuse_unused_places(ask.to, ask.elsewhere, ask.missing_nodes)
        target = self.places.resolve(ask.to)
        tender.refuse_immovable()
        elsewhere = tuple(self.places.resolve(name) for name in ask.elsewhere)
        if ask.missing_nodes == "elsewhere" and not elsewhere:
            raise UsageError("'elsewhere' needs other targets; name at least one")
        here = tender.owner.job.placement
        for _, offer in (target, *elsewhere):
            if (here.cloud, here.region) == (offer.cloud, offer.region):
                others = [name for name in self.places.clouds().targets() if name != here.target]
                raise UsageError(
                    f"{tender.run_id} is at {here.target} already; "
                    f"choose another place: {', '.join(others)}"
                )
        return Ends(target, elsewhere)

    def _prepare_store(self, tender: RunTender, cloud: Cloud, _: Offer) -> Store:
        """The store of a place the run may go to, proved fit for it."""
        store = self.places.store(cloud.name, cloud.store_url)
        probe_store(store, world=self._world)
        self._planner.refuse_foreign(tender, store)
        return store

    def notice(self, run: str, ask: NoticeAsk) -> NoticeView:
        """Take in that a machine of a run, or of its move, will be taken away.

        Raises:
            UsageError: The run has ended, or is not moving and the notice is for its target.
        """
        told = self._registry.find(run).notice(ask)
        self._ticker.wake()
        return told

    def receipts(self, run: str) -> tuple[Receipt, ...]:
        """What a run's moves came to, oldest first.

        Raises:
            Corrupt: A receipt was altered, or is missing.
        """
        tender = self._registry.find(run)
        folder = self._around.run_folder(tender.run_id) / "receipts"
        finished = [name for name, move in tender.moves.items() if move.has_receipt]
        return Receipts(folder, tender.run_id).all(finished)

    def decide(self, migration_id: str, decision: Decision) -> MigrationView:
        move, tender = self._find_move(migration_id)
        if not decision.at:
            decision = msgspec.structs.replace(decision, at=self._world.now())
        move.driver.decide(decision)
        self._changed()
        self._ticker.wake()
        return shown.show_move(move, tender, self._world.now())

    def _find_move(self, migration_id: str) -> tuple[Move, RunTender]:
        for tender in self._registry.all():
            move = tender.moves.get(migration_id)
            if move is not None:
                return move, tender
        known = [name for tender in self._registry.all() for name in tender.moves]
        raise NotFound(
            f"no migration called '{migration_id}'; choose one of: {', '.join(known) or 'none yet'}"
        )

    # -- shared ----------------------------------------------------------------------------

    def _show(self, tender: RunTender) -> RunView:
        """The run's view; one assembled a moment ago is good enough while nothing changed."""
        version, at = self._version, self._world.monotonic()
        is_live = tender.is_live
        held = self._views.get(tender.run_id)
        if held is not None and held.is_still_good(version, at, is_live=is_live):
            return held.view
        progress = self.telemetry.latest(tender.run_id)
        losses = self.telemetry.losses(tender.run_id, _NUM_LOSSES)
        now = self._world.now()
        with tender.lock:
            cost = shown.show_cost(tender, self.places, now)
            view = shown.show_run(tender, cost, progress, losses=losses, now=now)
        self._views[tender.run_id] = _Held(view, version=version, at=at, is_live=is_live)
        return view

    def _changed(self) -> None:
        with self._changes:
            self._version += 1
        for subscriber in self._subscribers:
            subscriber()
