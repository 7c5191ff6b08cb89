"""Owning a run without an agent: one process takes it, commits under it and gives it back."""

from __future__ import annotations

import socket
from collections.abc import Collection
from pathlib import Path

import msgspec
from blake3 import blake3

from cloudshift_lab.checkpoint.saving import SavedAnswer
from cloudshift_lab.checkpoint.seal import Sealed
from cloudshift_lab.core.errors import Conflict, Fenced, NotFound, UsageError
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.core.world import REAL_WORLD, World
from cloudshift_lab.storage.log import LogRecord, LogState, RunLog
from cloudshift_lab.storage.store import Store

_OWNER = "own"


class Claim(msgspec.Struct, frozen=True):
    """Content of ``runs/<run>/claim.json``: which run has this id in this store."""

    run_id: str
    owner: str


def new_owner(run_id: str, world: World = REAL_WORLD) -> str:
    """A name that is used once in the world, for one process that owns a run by itself."""
    return f"{run_id}:{_OWNER}:{_this_machine()}:{world.new_id('process')}"


def is_of_this_machine(owner: str) -> bool:
    """Whether a process of this machine gave itself that name."""
    return f":{_OWNER}:{_this_machine()}:" in owner


def _this_machine() -> str:
    """This machine since its last start, without telling its name."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    started = boot.read_text() if boot.exists() else ""
    return blake3(f"{socket.gethostname()}\n{started}".encode()).hexdigest()[:12]


class Ownership:
    """One process's hold on a run, proved by the run's log before each commit.

    Taking a run fences whoever held it before: their next commit fails. Use from one thread.

    Args:
        store: Where the log is.
        run_id: Which run.
        owner: From ``new_owner``; the same name may take the run again and again.
        world: Clock and nonces.
    """

    def __init__(self, store: Store, run_id: str, owner: str, world: World = REAL_WORLD) -> None:
        self._store = store
        self._run_id = run_id
        self._owner = owner
        self._world = world
        self._log = RunLog(store, run_id, world)

    def look(self) -> LogState:
        """What the run's log says now."""
        return self._log.sync()

    def hold(self) -> LogState:
        """Own the run from now on; no request but the log's when it is ours already.

        Raises:
            Fenced: It was ours, and a newer process has taken it over.
            Conflict: It is a run that an agent trains, or one that moved to another store.
        """
        state = self._log.sync()
        if (state.owner, state.home_url) == (self._owner, None):
            return state
        self._check_takeable(state)
        self._claim(state)
        self._log.acquire(
            generation=state.generation + 1,
            owner=self._owner,
            nonce=self._world.new_id("acquire"),
        )
        return self._log.sync()

    def check_step(self, state: LogState, step: int) -> None:
        """Refuse a step that could never be committed, before anything of it is written.

        Raises:
            UsageError: The run has that step, or a later one, already.
        """
        last = state.last_commit
        if last is not None and last.step is not None and step <= last.step:
            raise UsageError(
                f"run '{self._run_id}' has committed step {last.step} already and steps never go "
                f"back: save a later step than {step}, or save under another run id"
            )

    def commit(self, sealed: Sealed | SavedAnswer, generation: int, *, since: int) -> LogRecord:
        """Make a sealed step exist.

        Args:
            sealed: What exists from now on.
            generation: Ours.
            since: ``next_seq`` of the log before the save read the tombstones.

        Raises:
            Fenced: The run is not ours any more; nothing was published.
            Conflict: A collection swept the store meanwhile; save again.
            Unavailable: No answer in time.
        """
        return self._log.commit(
            generation=generation,
            step=sealed.step,
            manifest_key=sealed.manifest_key,
            manifest_digest=sealed.manifest_digest,
            nonce=self._world.new_id("commit"),
            since=since,
        )

    def forget(self, steps: Collection[int]) -> None:
        """Make committed steps exist no longer; no-op for none.

        Raises:
            Unavailable: No answer in time; nothing is lost by asking again.
        """
        if steps:
            self._log.forget(steps=steps, nonce=self._world.new_id("forget"))

    def release(self) -> None:
        """Give the run back; no-op when it is not ours.

        Raises:
            Fenced: Somebody took it between our look and our word.
        """
        state = self._log.sync()
        if (state.owner, state.home_url) == (self._owner, None):
            self._log.release(generation=state.generation, nonce=self._world.new_id("release"))

    def _check_takeable(self, state: LogState) -> None:
        if state.home_url is not None:
            raise Conflict(
                f"run '{self._run_id}' moved to {state.home_url}; save there or use another run id"
            )
        mine = [r for r in state.records if r.kind == "acquire" and r.owner == self._owner]
        if mine and state.generation > mine[-1].generation:
            raise Fenced(
                f"another process took run '{self._run_id}' over (generation {state.generation}); "
                "stop this one, or save under another run id",
                generation=mine[-1].generation,
                current=state.generation,
            )

    def _claim(self, state: LogState) -> None:
        """Make sure that the id is ours to use: not that of a run which an agent trains."""
        found = self._read_claim()
        if found is None and not state.records:
            mine = Claim(self._run_id, self._owner)
            self._store.create(self._claim_key, to_json(mine))
            found = self._read_claim()
        if found is None or not found.owner.startswith(f"{self._run_id}:{_OWNER}:"):
            raise Conflict(
                f"run '{self._run_id}' in {self._store.url} was started by CloudShift and is saved "
                "by its own agent; use another run id"
            )

    def _read_claim(self) -> Claim | None:
        try:
            data = self._store.get(self._claim_key)
        except NotFound:
            return None
        return from_json(data, Claim, what=f"{self._store.url}/{self._claim_key}")

    @property
    def _claim_key(self) -> str:
        return f"runs/{self._run_id}/claim.json"
