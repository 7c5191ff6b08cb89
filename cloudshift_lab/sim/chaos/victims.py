"""Who can be hit while a run moves, and how the hit is undone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Literal

from cloudshift_lab.conductor import discovery
from cloudshift_lab.core.plan import Plan
from cloudshift_lab.engines.local import LocalEngine
from cloudshift_lab.sim.chaos.report import Victim
from cloudshift_lab.sim.clouds import GCP_SIM, SimClouds
from cloudshift_lab.sim.link import Link
from cloudshift_lab.sim.servers import Server, start_server

Undo = Callable[[], None]
Side = Literal["source", "target"]
_MOST_TRIES = 8


class Victims:
    """The processes of one state directory.

    Args:
        home: The state directory.
        clouds: Its two simulated clouds, joined by ``link``.
        link: Between them, and between them and the conductor.
    """

    def __init__(self, home: Path, clouds: SimClouds, link: Link) -> None:
        self._home = home
        self._clouds = clouds
        self._link = link
        self._engine = LocalEngine(home)

    def strike(self, victim: Victim, plan: Plan) -> Undo | None:
        """Hit at once.

        Returns:
            What undoes it (nothing, for a process that others start again); None when there is no
            such victim now.
        """
        by_name: dict[Victim, Callable[[], Undo | None]] = {
            "conductor": self._conductor,
            "source agent": lambda: self._agent(plan, "source"),
            "target agent": lambda: self._agent(plan, "target"),
            "source rank": lambda: self._rank(plan, "source"),
            "target rank": lambda: self._rank(plan, "target"),
            "source rank 0": lambda: self._rank(plan, "source", is_first=True),
            "target rank 0": lambda: self._rank(plan, "target", is_first=True),
            "source store frozen": lambda: self._freeze(plan.source.cloud),
            "target store frozen": lambda: self._freeze(plan.target.cloud),
            "store on disk killed": self._kill_server,
            "link cut": self._cut,
            "link reset": self._reset,
        }
        return by_name[victim]()

    def _cut(self) -> Undo:
        self._link.cut()
        return self._link.restore

    def _reset(self) -> Undo:
        self._link.reset()
        return _nothing

    def _conductor(self) -> Undo | None:
        daemon = discovery.find_daemon(self._home)
        return None if daemon is None else _kill(daemon.pid)

    def _agent(self, plan: Plan, side: Side) -> Undo | None:
        pid = self._agent_pid(plan, side)
        return None if pid is None else _kill(pid)

    def _rank(self, plan: Plan, side: Side, *, is_first: bool = False) -> Undo | None:
        """Rank 0, whose end also ends the store where its peers meet, or the last one."""
        agent = self._agent_pid(plan, side)
        below = () if agent is None else _ranks_below(agent)
        ranks = {rank: pid for pid in below if (rank := _rank_of(pid)) is not None}
        chosen = 0 if is_first else max(ranks, default=0)
        return _kill(ranks[chosen]) if chosen in ranks else None

    def _agent_pid(self, plan: Plan, side: Side) -> int | None:
        first = plan.generation + (side == "target")
        last = plan.generation + (_MOST_TRIES if side == "target" else 0)
        for generation in range(last, first - 1, -1):
            handle = self._engine.find(plan.run_id, generation)
            if handle is not None and not self._engine.observe(handle).is_gone:
                return handle.pid
        return None

    def _freeze(self, cloud: str) -> Undo | None:
        server = self._clouds.server(cloud)
        if server is None:
            return None
        server.freeze()
        return server.thaw

    def _kill_server(self) -> Undo | None:
        server = self._clouds.server(GCP_SIM)
        if server is None:
            return None
        os.killpg(server.pid, signal.SIGKILL)
        return lambda: self._revive(server)

    def _revive(self, server: Server) -> None:
        start_server(self._home / "sim", server.name, server.kind, port=server.port)


def _kill(pid: int) -> Undo | None:
    """SIGKILL; None when the process was gone."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return None
    return _nothing


def _nothing() -> None:
    """Nothing is to be undone."""


def _ranks_below(pid: int) -> Iterator[int]:
    """The rank processes that descend from an agent."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    pending = [pid]
    while pending:
        for child in children.get(pending.pop(), ()):
            pending.append(child)
            if _is_rank(child):
                yield child


def _is_rank(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    is_ours = any(b"bootstrap" in a and b == b"rank" for a, b in pairwise(words))
    return is_ours and b"launch" not in words


def _rank_of(pid: int) -> int | None:
    """Its number as torchrun gave it; None when the process is gone."""
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    given = [word.removeprefix(b"RANK=") for word in words if word.startswith(b"RANK=")]
    return int(given[0]) if given else None
