"""The thin way into the conductor for kernels, command lines and servers: stdlib HTTP only."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from cloudshift_lab import __version__
from cloudshift_lab.conductor import discovery, launching
from cloudshift_lab.conductor.answers import lost_message, problem
from cloudshift_lab.core.asks import Carrier, ClosingWish, MoveAsk, NoticeAsk, Noticed, NoticeView
from cloudshift_lab.core.costs import BudgetAsk, CostEntry
from cloudshift_lab.core.errors import Corrupt, Denied, Unavailable
from cloudshift_lab.core.home import home, open_home
from cloudshift_lab.core.maintenance import (
    MaintenanceAsk,
    MaintenanceMark,
    MaintenanceView,
    Passport,
)
from cloudshift_lab.core.plan import Decision, MigrationView, MissingNodesPolicy
from cloudshift_lab.core.run import RunSpec, RunView
from cloudshift_lab.core.steps import BranchAsk, History, JobAsk, JobView
from cloudshift_lab.core.views import Changes, Check, CostView, Health, Series, Target
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.migration import Receipt

if TYPE_CHECKING:  # the room of health needs numpy, which a command line can do without
    from cloudshift_lab.health.report import GoodputReport, HealthReport

T = TypeVar("T")
_QUICK_S = 15.0
_SLOW_S = 150.0
_HEALTH_S = 15.0


class Logs(msgspec.Struct, frozen=True):
    """Answer of ``GET /v1/runs/{id}/logs``."""

    text: str


class Client:
    """Calls one conductor. Safe to share between threads: each call has its own connection.

    Args:
        url: ``http://127.0.0.1:port``.
        token: The bearer token of that conductor.
        root: State directory, when the client may look the conductor up (or start it) again.
    """

    def __init__(self, url: str, token: str, *, root: Path | None = None) -> None:
        self.url = url
        self._token = token
        self._root = root
        self._may_start = True

    @classmethod
    def connect(cls, root: Path | None = None, *, start: bool = True) -> Client:
        """Find the conductor of a state directory; start one when there is none.

        Args:
            root: State directory; ``core.home.home()`` when None.
            start: Start a conductor (silently, in its own session) when none runs.

        Raises:
            Unavailable: None runs and ``start`` is False, or it does not come up.
            UsageError: ``root`` cannot be a state directory.
        """
        place = home() if root is None else open_home(root)
        client = _attach(place)
        if client is None and not start:
            raise Unavailable(
                f"no conductor runs for {place}; start one with: python -m cloudshift_lab status"
            )
        client = client or launching.start(place, _attach)
        client._may_start = start
        return client

    # -- runs ------------------------------------------------------------------------------

    def health(self, *, timeout_s: float = _QUICK_S) -> Health:
        """Version, pid and home of the conductor."""
        return self._get("/v1/health", Health, timeout_s=timeout_s)

    def runs(self) -> tuple[RunView, ...]:
        """All runs, newest first."""
        return self._get("/v1/runs", tuple[RunView, ...])

    def run(self, run: str) -> RunView:
        """One run by id or name. Raises NotFound, listing the known ones."""
        return self._get(f"/v1/runs/{quote(run, safe='')}", RunView)

    def train(self, spec: RunSpec) -> RunView:
        """Start a run and return at once.

        Args:
            spec: ``script`` is a path, or the source itself when it holds a line break.

        Raises:
            UsageError: Syntax error, unknown target or a name in use; nothing was started.
            Unavailable: The target's store does not answer.
            Denied: The target's store refuses the credentials, or writing.
        """
        return self._post("/v1/runs", to_json(spec), RunView)

    def stop(self, run: str) -> RunView:
        """Ask a run to save and stop; stopping a stopped run changes nothing."""
        return self._post(f"/v1/runs/{quote(run, safe='')}/stop", b"{}", RunView)

    def resume(self, run: str) -> RunView:
        """Continue a stopped, failed or lost run from its newest commit, where it was."""
        return self._post(f"/v1/runs/{quote(run, safe='')}/resume", b"{}", RunView)

    def logs(self, run: str, *, rank: int | None = None, tail: int = 200) -> str:
        """The newest lines a rank (or the agent, when ``rank`` is None) printed."""
        query = {"tail": tail, **({} if rank is None else {"rank": rank})}
        return self._get(f"/v1/runs/{quote(run, safe='')}/logs", Logs, query=query).text

    def cost(self, run: str, *, until: int | None = None) -> CostView:
        """What a run has cost so far, with its ledger.

        Args:
            run: Id or name.
            until: The step that it is to reach, for a forecast of the whole.

        Raises:
            UsageError: It is past that step.
        """
        path = f"/v1/runs/{quote(run, safe='')}/cost"
        return self._get(path, CostView, query={} if until is None else {"until": until})

    def charges(self, run: str) -> tuple[CostEntry, ...]:
        """A run's ledger, cut at every full hour."""
        path = f"/v1/runs/{quote(run, safe='')}/charges"
        return self._get(path, tuple[CostEntry, ...], timeout_s=_SLOW_S)

    def set_budget(self, run: str, micro_usd: int) -> CostView:
        """Give a run another budget. Raises UsageError when that much is spent already."""
        body = to_json(BudgetAsk(micro_usd))
        return self._post(f"/v1/runs/{quote(run, safe='')}/budget", body, CostView)

    def series(self, run: str, *, points: int = 240) -> Series:
        """A run's curves in at most ``points`` points."""
        return self._get(f"/v1/runs/{quote(run, safe='')}/series", Series, query={"points": points})

    def run_health(self, run: str) -> HealthReport:
        """What the detectors find about a run, and what they looked at."""
        from cloudshift_lab.health.report import HealthReport

        return self._get(f"/v1/runs/{quote(run, safe='')}/health", HealthReport)

    def run_goodput(self, run: str) -> GoodputReport:
        """What a run's time went into. Raises UsageError before its first step."""
        from cloudshift_lab.health.report import GoodputReport

        return self._get(f"/v1/runs/{quote(run, safe='')}/goodput", GoodputReport)

    # -- machines --------------------------------------------------------------------------

    def maintenance(self) -> tuple[MaintenanceView, ...]:
        """All maintenance requests, those that wait for somebody first."""
        return self._get("/v1/maintenance", tuple[MaintenanceView, ...])

    def ask_maintenance(self, ask: MaintenanceAsk) -> MaintenanceView:
        """Open a request, or find the open one about the same thing."""
        return self._post("/v1/maintenance", to_json(ask), MaintenanceView)

    def mark_maintenance(self, request_id: str, mark: MaintenanceMark) -> MaintenanceView:
        """Acknowledge or resolve a request. Raises NotFound, Conflict, UsageError."""
        path = f"/v1/maintenance/{quote(request_id, safe='')}"
        return self._post(path, to_json(mark), MaintenanceView)

    def passport(self, node: str) -> Passport:
        """What has happened to a machine. Raises NotFound, listing the known ones."""
        return self._get(f"/v1/nodes/{quote(node, safe='')}", Passport)

    # -- stored steps ----------------------------------------------------------------------

    def history(self, run: str, *, last: int | None = None) -> History:
        """The stored steps of a run (the newest ``last``), in every store it has been in."""
        path, query = f"/v1/runs/{quote(run, safe='')}/steps", {"last": last or 0}
        return self._get(path, History, query=query, timeout_s=_SLOW_S)

    def branch(self, ask: BranchAsk) -> RunView:
        """Begin a new run from ``RUN@STEP``; it shares all chunks.

        Raises:
            UsageError: No step is named, the name is taken, or the step is elsewhere.
            NotFound: No such run or step; lists those there are.
        """
        return self._post("/v1/branches", to_json(ask), RunView)

    def ask(self, ask: JobAsk) -> JobView:
        """Begin a long job; it goes on without this client.

        Raises:
            UsageError, NotFound: What is asked for cannot be; nothing was begun.
        """
        return self._post("/v1/jobs", to_json(ask), JobView)

    def jobs(self) -> tuple[JobView, ...]:
        """The conductor's jobs, newest first; ended ones are remembered for a while."""
        return self._get("/v1/jobs", tuple[JobView, ...])

    def job(self, job_id: str) -> JobView:
        """One job. Raises NotFound, also when the conductor was started anew since."""
        return self._get(f"/v1/jobs/{quote(job_id, safe='')}", JobView)

    def cancel_job(self, job_id: str) -> JobView:
        """End a job where it next looks up; one that has ended stays as it is."""
        return self._post(f"/v1/jobs/{quote(job_id, safe='')}/cancel", b"{}", JobView)

    # -- migrations ------------------------------------------------------------------------

    def migrate(
        self,
        run: str,
        to: str,
        *,
        expires_s: float | None = None,
        closing: ClosingWish = "auto",
        rehearse: int | None = None,
        missing_nodes: MissingNodesPolicy = "roll-back",
        min_nodes: int = 1,
        elsewhere: tuple[str, ...] = (),
        approvals: int | None = None,
        limit_micro_usd: int | None = None,
        tolerance: float | None = None,
        carrier: Carrier = "pull",
    ) -> MigrationView:
        """Propose a move to ``cloud:region`` and price it; nothing moves before a decision.

        Args:
            run: Id or name.
            to: Where to.
            expires_s: How long it may be approved; by the run's rule, else ten minutes.
            closing: How the last gap is closed; "auto" takes the better way by estimate.
            rehearse: Steps that the target computes, and compares, before the commit.
            missing_nodes: What happens when only some of the target's nodes come up.
            min_nodes: With "shrink": how few nodes are enough.
            elsewhere: Other targets, in order, for when the first does not come up.
            approvals: Different people or policies who must approve; by the run's rule, else 1.
            limit_micro_usd: What the move itself may cost before it is undone.
            tolerance: How far a rehearsed loss may be from the source's, relative; 0: bit by bit.
            carrier: Whether the target pulls the bytes or the source pushes them.

        Raises:
            UsageError: Unknown target, the place it is at already, a run that does not run, or
                something asked for that cannot be.
            Conflict: Another migration of this run is open; names it.
        """
        ask = MoveAsk(
            to=to,
            expires_s=expires_s,
            closing=closing,
            rehearse=rehearse,
            missing_nodes=missing_nodes,
            min_nodes=min_nodes,
            elsewhere=elsewhere,
            approvals=approvals,
            limit_micro_usd=limit_micro_usd,
            tolerance=tolerance,
            carrier=carrier,
        )
        path = f"/v1/runs/{quote(run, safe='')}/migrations"
        return self._post(path, to_json(ask), MigrationView)

    def notice(self, run: str, within_s: float, *, side: Noticed = "source") -> NoticeView:
        """Say that a machine will be taken away in ``within_s`` seconds.

        Args:
            run: Id or name.
            within_s: Seconds from now.
            side: Of an open move; without one ``source`` is where the run is.

        Returns:
            What will be done before, and what cannot be.

        Raises:
            UsageError: The run has ended, or there is no such side.
        """
        body = to_json(NoticeAsk(within_s=within_s, side=side))
        return self._post(f"/v1/runs/{quote(run, safe='')}/notice", body, NoticeView)

    def receipts(self, run: str) -> tuple[Receipt, ...]:
        """What a run's moves came to, oldest first. Raises Corrupt when the chain is broken."""
        return self._get(f"/v1/runs/{quote(run, safe='')}/receipts", tuple[Receipt, ...])

    def migrations(self, run: str | None = None) -> tuple[MigrationView, ...]:
        """All migrations (of one run), newest first."""
        query = {} if run is None else {"run": run}
        return self._get("/v1/migrations", tuple[MigrationView, ...], query=query)

    def migration(self, migration_id: str) -> MigrationView:
        """One migration. Raises NotFound, listing the known ones."""
        return self._get(f"/v1/migrations/{quote(migration_id, safe='')}", MigrationView)

    def decide(self, migration_id: str, decision: Decision) -> MigrationView:
        """Approve or reject the plan that was shown; the same decision again changes nothing.

        Raises:
            StaleDecision: The plan expired, was decided otherwise, or is not the one shown.
        """
        path = f"/v1/migrations/{quote(migration_id, safe='')}/decision"
        return self._post(path, to_json(decision), MigrationView)

    # -- the rest --------------------------------------------------------------------------

    def targets(self) -> tuple[Target, ...]:
        """The places that can be named after ``--on`` or ``--to``."""
        return self._get("/v1/targets", tuple[Target, ...])

    def doctor(self) -> tuple[Check, ...]:
        """Checks of this installation, each with advice when it fails."""
        return self._get("/v1/doctor", tuple[Check, ...], timeout_s=_SLOW_S)

    def changes(self, since: int = 0, *, timeout_s: float = 25.0) -> Changes:
        """Wait until something changed after version ``since``, at most ``timeout_s``."""
        query = {"since": since, "timeout": timeout_s}
        return self._get("/v1/changes", Changes, query=query, timeout_s=timeout_s + _QUICK_S)

    def sql(self, query: str) -> bytes:
        """Run one read-only query on the telemetry store; returns an Arrow IPC stream."""
        body = to_json({"query": query})
        return self._call("POST", "/v1/sql", body=body, timeout_s=_SLOW_S)

    def ingest(self, run: str, *, batch: str, table: str, data: bytes) -> None:
        """Hand over one Arrow IPC telemetry batch; a batch id seen before is dropped."""
        query = {"run": run, "batch": batch, "table": table}
        self._call("POST", "/v1/ingest", body=data, query=query)

    def shutdown(self) -> None:
        """Stop the conductor; runs and their agents go on without it."""
        self._call("POST", "/v1/shutdown", body=b"{}")

    # -- transport -------------------------------------------------------------------------

    def _get(
        self,
        path: str,
        kind: type[T],
        *,
        query: Mapping[str, str | float] | None = None,
        timeout_s: float = _QUICK_S,
    ) -> T:
        try:
            data = self._call("GET", path, query=query, timeout_s=timeout_s)
        except Unavailable:
            if not self._refresh():
                raise
            data = self._call("GET", path, query=query, timeout_s=timeout_s)
        return from_json(data, kind, what="the conductor's answer")

    def _post(self, path: str, body: bytes, kind: type[T]) -> T:
        if self._root is not None and discovery.find_daemon(self._root) is None:
            self._refresh()
        try:
            data = self._call("POST", path, body=body, timeout_s=_SLOW_S)
        except Unavailable as error:
            never_arrived = isinstance(error.__cause__, ConnectionRefusedError)
            if not never_arrived or not self._refresh():
                raise
            data = self._call("POST", path, body=body, timeout_s=_SLOW_S)
        return from_json(data, kind, what="the conductor's answer")

    def _refresh(self) -> bool:
        """Take over the address of a conductor that was restarted; True when it changed.

        A client that was not to start a conductor at first does not start one later either.
        """
        if self._root is None:
            return False
        fresh = Client.connect(self._root) if self._may_start else _attach(self._root)
        if fresh is None:
            return False
        changed = (fresh.url, fresh._token) != (self.url, self._token)
        self.url, self._token = fresh.url, fresh._token
        return changed

    def _call(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        query: Mapping[str, str | float] | None = None,
        timeout_s: float = _QUICK_S,
    ) -> bytes:
        address = urlsplit(self.url)
        target = f"{path}?{urlencode(query)}" if query else path
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        connection = http.client.HTTPConnection(
            address.hostname or "", address.port, timeout=timeout_s
        )
        with contextlib.closing(connection):
            try:
                connection.request(method, target, body=body, headers=headers)
                answer = connection.getresponse()
                data = answer.read()
            except (OSError, http.client.HTTPException) as error:
                raise Unavailable(lost_message(method, error, timeout_s)) from error
        if answer.status >= 400:
            raise problem(answer.status, data)
        return data


def _attach(root: Path) -> Client | None:
    """A client for the running, answering conductor of our version; None when there is none."""
    daemon = discovery.find_daemon(root)
    if daemon is None:
        return None
    client = Client(daemon.url, daemon.token, root=root)
    try:
        health = from_json(
            client._call("GET", "/v1/health", timeout_s=_HEALTH_S), Health, what="health"
        )
    except (Unavailable, Denied, Corrupt):
        return None
    ours = health.pid == daemon.pid and Path(health.home).resolve() == root
    return client if ours and health.version == __version__ else None
