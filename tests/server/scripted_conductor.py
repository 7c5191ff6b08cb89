"""A conductor whose HTTP layer is the real one and whose service is a script: for the surfaces."""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import tornado.httpserver
import tornado.netutil

from cloudshift_lab.conductor import discovery
from cloudshift_lab.conductor.http import Gate, application
from cloudshift_lab.core.asks import MoveAsk
from cloudshift_lab.core.errors import NotFound, StaleDecision
from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.plan import Bill, BillItem, Decision, MigrationView, Plan
from cloudshift_lab.core.run import RunSpec, RunView
from cloudshift_lab.core.views import Check, CostView, Health, Move, Series, Target
from cloudshift_lab.engines.process import process_start_time

SOURCE = Placement("aws-sim", "us-east-1", "sim.gpu.2x")
TARGET = Placement("gcp-sim", "us-central1", "sim.gpu.2x")


def plan(now: float, *, expires_s: float = 600.0) -> Plan:
    """A priced move of the only run."""
    items = (
        BillItem("compute at gcp-sim", -1_200_000, "1 h x ($0.60 - $1.80)", "catalogue", "compute"),
        BillItem("egress", 5_500, "61.2 MB x $0.09/GB", "price list 2026-10", "egress"),
        BillItem("pause", 1_300, "2.6 s x $1.80/h", "measured", "pause"),
    )
    bill = Bill(
        items=items,
        total_micro_usd=sum(item.amount_micro_usd for item in items),
        one_off_micro_usd=6_800,
        saving_micro_usd_per_h=1_200_000,
        break_even_s=20.4,
        pause_s=2.6,
        transfer_bytes=61_200_000,
        simulated=True,
        reasons=("cheaper per token",),
    )
    return Plan("mig-1", "run-1", SOURCE, TARGET, "s3://a", "gs://b", 1, bill, "move",
                now, now + expires_s, "digest-1")  # fmt: skip


class ScriptedService:
    """One run, one proposed move; remembers decisions."""

    def __init__(self, *, steps: int = 400, home: str = "") -> None:
        self.home = home
        self.started_at = time.time()
        self.decisions: list[Decision] = []
        self.steps = steps
        self._version = 1
        self._changed: list[Callable[[], None]] = []
        at = self.started_at
        self.move = MigrationView("mig-1", "run-1", "first", "proposed", plan(at), as_of=at)

    def health(self) -> Health:
        return Health("0.1.0", os.getpid(), self.started_at, self.home)

    def runs(self) -> tuple[RunView, ...]:
        return (self.run("run-1"),)

    def run(self, run: str) -> RunView:
        if run != "run-1":
            raise NotFound(f"no run '{run}'; choose: first")
        now = time.time()
        losses = tuple((s, self._loss(s)) for s in range(0, self.steps, 8))
        return RunView(
            "run-1", "first", "running", SOURCE, 1, self.started_at, simulated=True,
            step=self.steps, loss=self._loss(self.steps), tokens_per_s=18_250.0, progress_at=now,
            price_micro_usd_per_h=1_800_000, spent_micro_usd=512_300, checkpoint_step=350,
            checkpoint_at=now - 12, migration_id="mig-1", losses=losses, as_of=now,
        )  # fmt: skip

    def series(self, run: str, *, points: int) -> Series:
        self.run(run)
        start = time.time() - self.steps
        steps = tuple(range(self.steps))
        half = self.steps // 2
        at = tuple(start + s for s in steps)
        return Series(
            run_id=run, at=at, step=steps, loss=tuple(self._loss(s) for s in steps),
            tokens_per_s=tuple(18_000.0 + 3_000 * (s >= half) + 300 * math.sin(s) for s in steps),
            generation=tuple(1 if s < half else 2 for s in steps),
            cost_at=at, cost_usd=tuple(0.0005 * s for s in steps),
            usd_per_h=tuple(1.8 if s < half else 0.6 for s in steps),
            moves=(Move("mig-0", at[half], half, SOURCE.target, TARGET.target),), simulated=True,
        )  # fmt: skip

    def cost(self, run: str, *, until: int | None = None) -> CostView:
        return CostView(run, (), 512_300, 1_800_000, simulated=True, as_of=time.time())

    def migrations(self, run: str | None) -> tuple[MigrationView, ...]:
        return (self.move,)

    def migration(self, migration_id: str) -> MigrationView:
        return self.move

    def decide(self, migration_id: str, decision: Decision) -> MigrationView:
        if decision.plan_digest != self.move.plan.digest:
            raise StaleDecision("the plan has changed; look at it again")
        self.decisions.append(decision)
        phase = "approved" if decision.verdict == "approve" else "rejected"
        self.move = msgspec.structs.replace(self.move, phase=phase, decision=decision)
        self.touch()
        return self.move

    def migrate(self, run: str, ask: MoveAsk) -> MigrationView:
        return self.move

    def train(self, spec: RunSpec) -> RunView:
        return self.run("run-1")

    def stop(self, run: str) -> RunView:
        return self.run(run)

    def logs(self, run: str, *, rank: int | None, tail: int) -> str:
        return "one line\n"

    def targets(self) -> tuple[Target, ...]:
        return (Target(TARGET.target, "GCP (simulated)", 600_000, simulated=True),)

    def doctor(self) -> tuple[Check, ...]:
        return (Check("python", ok=True, detail="fine"),)

    def sql(self, query: str) -> bytes:
        return b""

    def ingest(self, run: str, *, batch: str, table: str, data: bytes) -> None:
        return None

    def version(self) -> int:
        return self._version

    def subscribe(self, changed: Callable[[], None]) -> None:
        self._changed.append(changed)

    def touch(self) -> None:
        """Let watchers know that something changed."""
        self._version += 1
        for changed in self._changed:
            changed()

    def _loss(self, step: int) -> float:
        return 1.2 + 3.4 * math.exp(-step / 120) + 0.05 * math.sin(step * 1.7)


class ScriptedConductor:
    """Serves a ``ScriptedService`` in a thread and publishes ``daemon.json``, like the daemon."""

    def __init__(self, root: Path, service: ScriptedService | None = None) -> None:
        self.root = root
        self.service = service or ScriptedService()
        self.service.home = str(root)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def start(self) -> ScriptedConductor:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        discovery.remove_daemon_file(self.root)
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(30)

    async def _serve(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        gate = Gate(self.service, "scripted-token", shutdown=self._ended.set)
        server = tornado.httpserver.HTTPServer(application(gate))
        sockets = tornado.netutil.bind_sockets(0, "127.0.0.1")
        server.add_sockets(sockets)
        started = process_start_time(os.getpid())
        assert started is not None
        url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
        discovery.publish_daemon_file(
            self.root, discovery.DaemonFile(os.getpid(), started, url, gate.token, "0.1.0")
        )
        self._ready.set()
        await self._ended.wait()
        gate.close()
        server.stop()
        await server.close_all_connections()
