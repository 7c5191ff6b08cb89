"""A conductor whose HTTP layer is the real one and whose runs are a script, for the surfaces."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import tornado.httpserver
import tornado.netutil

from cloudshift_lab import __version__
from cloudshift_lab.conductor import discovery
from cloudshift_lab.conductor.http import Gate, application
from cloudshift_lab.core.asks import MoveAsk, NoticeAsk, NoticeView
from cloudshift_lab.core.costs import CostEntry
from cloudshift_lab.core.errors import NotFound, StaleDecision, UsageError
from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.plan import Bill, BillItem, Decision, MigrationView, PhaseTime, Plan
from cloudshift_lab.core.run import RunSpec, RunView
from cloudshift_lab.core.steps import History, JobView, StepLine
from cloudshift_lab.core.views import Check, CostLine, CostView, Health, Series, Target
from cloudshift_lab.migration import Receipt

NOW = 1_764_000_000.0
AWS = Placement("aws-sim", "us-east-1", "sim.gpu.2x")
GCP = Placement("gcp-sim", "us-central1", "sim.gpu.2x")


def _make_run(**changes: object) -> RunView:
    """A running run, 120 steps in."""
    view = RunView(
        "run-1", "first", "running", AWS, 1, NOW - 60, simulated=True, step=120, loss=2.3456,
        tokens_per_s=12_345.0, progress_at=NOW - 2, price_micro_usd_per_h=530_000,
        price_source="list price 2026-10", spent_micro_usd=8_833, checkpoint_step=100,
        checkpoint_at=NOW - 9, losses=((0, 5.5), (60, 3.0), (120, 2.3456)), as_of=NOW,
    )  # fmt: skip
    return msgspec.structs.replace(view, **changes)


def _make_plan() -> Plan:
    """A priced move of ``run-1``."""
    items = (
        BillItem("compute", -200_000, "1 h x ($0.33 - $0.53)", "list price", "compute",
                 as_of="2026-10-01", simulated=True),
        BillItem("egress", 5_500, "61.2 MB x $0.09/GB", "price list", "egress",
                 as_of="2026-10-02", simulated=True),
    )  # fmt: skip
    bill = Bill(
        items, total_micro_usd=-194_500, one_off_micro_usd=5_500, saving_micro_usd_per_h=200_000,
        break_even_s=99.0, pause_s=2.6, transfer_bytes=61_200_000, simulated=True,
        reasons=("cheaper per token",),
    )  # fmt: skip
    return Plan("mig-1", "run-1", AWS, GCP, "s3://a", "gs://b", 1, bill, "move",
                NOW, NOW + 600, "digest-of-the-plan")  # fmt: skip


def _make_move(**changes: object) -> MigrationView:
    """A proposed move."""
    view = MigrationView("mig-1", "run-1", "first", "proposed", _make_plan(),
                         timeline=(PhaseTime("proposed", NOW),), as_of=NOW)  # fmt: skip
    return msgspec.structs.replace(view, **changes)


class ScriptedService:
    """Runs and moves as a test sets them; remembers what was asked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.views: list[RunView] = []
        self.moves: list[MigrationView] = []
        self.specs: list[RunSpec] = []
        self.decisions: list[Decision] = []
        self.asks: list[MoveAsk] = []
        self.budgets: list[tuple[str, int]] = []
        self.notices: list[NoticeAsk] = []
        self.chain: tuple[Receipt, ...] = ()
        self.started: RunView = _make_run(state="starting", step=None, losses=())

    def health(self) -> Health:
        return Health(__version__, os.getpid(), NOW, str(self.root))

    def runs(self) -> tuple[RunView, ...]:
        return tuple(self.views)

    def run(self, run: str) -> RunView:
        for view in self.views:
            if run in (view.run_id, view.name):
                return view
        raise NotFound(f"no run '{run}'")

    def train(self, spec: RunSpec) -> RunView:
        if spec.target == "mars":
            raise UsageError("no cloud called 'mars'; choose one of: local:here")
        self.specs.append(spec)
        self.views.append(msgspec.structs.replace(self.started, name=spec.name))
        return self.views[-1]

    def stop(self, run: str) -> RunView:
        return msgspec.structs.replace(self.run(run), state="stopping")

    def logs(self, run: str, *, rank: int | None, tail: int) -> str:
        return f"hello <b>from</b> rank {rank}, last {tail}\n"

    def cost(self, run: str, *, until: int | None = None) -> CostView:
        line = CostLine("attempt 1", AWS.target, 8_833, "60 s x $0.53/h", simulated=True)
        return CostView(run, (line,), 8_833, 530_000, simulated=True, as_of=NOW)

    def charges(self, run: str) -> tuple[CostEntry, ...]:
        return (
            CostEntry(
                kind="compute", part="training", micro_usd=8_833, begin=NOW - 60, end=NOW,
                placement=AWS, seconds=60.0, generation=1, simulated=True,
            ),
        )  # fmt: skip

    def set_budget(self, run: str, micro_usd: int) -> CostView:
        self.budgets.append((run, micro_usd))
        return self.cost(run)

    def series(self, run: str, *, points: int) -> Series:
        return Series(run)

    def migrate(self, run: str, ask: MoveAsk) -> MigrationView:
        self.asks.append(ask)
        self.moves.append(_make_move())
        return self.moves[-1]

    def notice(self, run: str, ask: NoticeAsk) -> NoticeView:
        self.notices.append(ask)
        return NoticeView(
            run_id=run, side=ask.side, at=NOW, deadline=NOW + ask.within_s, does=("drain",),
            words="30 s are enough to save the newest step (3.0 s)",
        )  # fmt: skip

    def receipts(self, run: str) -> tuple[Receipt, ...]:
        return self.chain

    def migrations(self, run: str | None) -> tuple[MigrationView, ...]:
        return tuple(self.moves)

    def migration(self, migration_id: str) -> MigrationView:
        return next(move for move in self.moves if move.migration_id == migration_id)

    def decide(self, migration_id: str, decision: Decision) -> MigrationView:
        move = self.migration(migration_id)
        if decision.plan_digest != move.plan.digest:
            raise StaleDecision("the plan has changed since it was shown; look at it again")
        if move.decision is not None and move.decision.decision_id != decision.decision_id:
            raise StaleDecision(f"already decided by {move.decision.by}; plan the move again")
        self.decisions.append(decision)
        phase = "approved" if decision.verdict == "approve" else "rejected"
        decided = msgspec.structs.replace(move, phase=phase, decision=decision)
        self.moves[self.moves.index(move)] = decided
        return decided

    def jobs(self) -> tuple[JobView, ...]:
        return ()

    def history(self, run: str, *, last: int | None) -> History:
        step = self.run(run).checkpoint_step
        lines = () if step is None else (
            StepLine(step=step, at=NOW, generation=1, urls=(), manifest_key="", manifest_digest=""),
        )  # fmt: skip
        return History(run_id=run, lines=lines)

    def targets(self) -> tuple[Target, ...]:
        return (Target(GCP.target, "GCP (simulated)", 330_000, simulated=True),)

    def doctor(self) -> tuple[Check, ...]:
        return (Check("store of local", ok=False, detail="read-only", advice="mount it writable"),)

    def sql(self, query: str) -> bytes:
        return b""

    def ingest(self, run: str, *, batch: str, table: str, data: bytes) -> None:
        return None

    def version(self) -> int:
        return 1

    def subscribe(self, changed: object) -> None:
        return None


class ScriptedConductor:
    """Serves a ``ScriptedService`` from a thread and publishes ``daemon.json`` as a daemon does."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.service = ScriptedService(root)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(30)

    def close(self) -> None:
        discovery.remove_daemon_file(self.root)
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(30)

    async def _serve(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        gate = Gate(self.service, "scripted-token", shutdown=self._ended.set)
        server = tornado.httpserver.HTTPServer(application(gate))
        sockets = tornado.netutil.bind_sockets(0, "127.0.0.1")
        server.add_sockets(sockets)
        started = discovery.process_start_time(os.getpid())
        assert started is not None
        url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
        daemon = discovery.DaemonFile(os.getpid(), started, url, "scripted-token", __version__)
        discovery.publish_daemon_file(self.root, daemon)
        self._ready.set()
        await self._ended.wait()
        gate.close()
        server.stop()
        await server.close_all_connections()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state directory that everything in this test uses."""
    root = tmp_path / "home"
    root.mkdir()
    monkeypatch.setenv("CLOUDSHIFT_HOME", str(root))
    return root


@pytest.fixture
def service(home: Path) -> Iterator[ScriptedService]:
    """What the conductor of this test's state directory answers."""
    conductor = ScriptedConductor(home)
    yield conductor.service
    conductor.close()


@pytest.fixture
def make_run() -> Callable[..., RunView]:
    return _make_run


@pytest.fixture
def make_move() -> Callable[..., MigrationView]:
    return _make_move
