"""All runs of one conductor: found by id or name, loaded after a restart, ticked in threads."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cloudshift_lab.conductor.journal import Journal
from cloudshift_lab.conductor.moves import Surroundings
from cloudshift_lab.conductor.records import RunRecord
from cloudshift_lab.conductor.tending import RunTender
from cloudshift_lab.core.errors import CloudshiftError, NotFound
from cloudshift_lab.telemetry.spool import Ingest

_PAUSE_S = 0.2
_MOVING_PAUSE_S = 0.08
_NUM_THREADS = 16
_LISTED = 12


class Registry:
    """Holds every run's tender.

    Args:
        around: What the runs share.
        ingest: Takes spooled telemetry.
        changed: Called when any run has something new to see.
    """

    def __init__(
        self, around: Surroundings, *, ingest: Ingest, changed: Callable[[], None]
    ) -> None:
        self._around = around
        self._ingest = ingest
        self._changed = changed
        self._lock = threading.Lock()
        self._tenders: dict[str, RunTender] = {}
        self.damaged: dict[str, str] = {}
        for folder in sorted((around.root / "runs").glob("run-*"), key=run_number):
            self._load(folder)

    def add(self, record: RunRecord) -> RunTender:
        """Take up a run that was just created."""
        tender = RunTender(record, self._around, ingest=self._ingest, changed=self._changed)
        with self._lock:
            self._tenders[record.run_id] = tender
        self._changed()
        return tender

    def all(self) -> tuple[RunTender, ...]:
        """Every run, oldest first."""
        with self._lock:
            return tuple(self._tenders.values())

    def find(self, run: str) -> RunTender:
        """A run by id or name.

        Raises:
            NotFound: No such run; lists the newest ones.
            Corrupt: Its journal is damaged.
        """
        tenders = self.all()
        for tender in tenders:
            if run in (tender.run_id, tender.record.spec.name):
                return tender
        if run in self.damaged:
            raise NotFound(self.damaged[run])
        known = [f"{t.run_id} ({t.record.spec.name})" for t in reversed(tenders)][:_LISTED]
        raise NotFound(f"no run called '{run}'; choose one of: {', '.join(known) or 'none yet'}")

    def next_number(self) -> int:
        """One more than any run's number below this state directory, readable or not."""
        folders = (self._around.root / "runs").glob("run-*")
        return max((run_number(folder) for folder in folders), default=0) + 1

    def _load(self, folder: Path) -> None:
        """Take a run up again; one whose journal is damaged must not keep the others away."""
        try:
            journal = Journal(folder / "journal.jsonl")
            if not journal.replay() and not (folder / "attempts").exists():
                return  # its creation was cut off before anything was started
            record = RunRecord(journal)
            self._tenders[record.run_id] = RunTender(
                record, self._around, ingest=self._ingest, changed=self._changed
            )
        except CloudshiftError as error:
            self.damaged[folder.name] = error.message
            print(f"{folder.name}: {error.message}", file=sys.stderr, flush=True)


class Ticker:
    """Ticks every live run from its own thread, so that one that waits holds up nobody.

    Args:
        registry: Whose runs.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._busy: set[str] = set()
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._is_stopping = False
        self._pool = ThreadPoolExecutor(max_workers=_NUM_THREADS, thread_name_prefix="tick")
        self._thread = threading.Thread(target=self._loop, name="ticker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Tick at once: somebody decided something."""
        self._woken.set()

    def stop(self, patience_s: float = 3.0) -> None:
        """Begin no more ticks and give those under way a moment; a cut-off one is made up for."""
        self._is_stopping = True
        self._woken.set()
        if self._thread.ident is not None:
            self._thread.join(patience_s)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _loop(self) -> None:
        while not self._is_stopping:
            for tender in self._registry.all():
                self._tick_once(tender)
            self._woken.wait(_MOVING_PAUSE_S if self._is_moving() else _PAUSE_S)
            self._woken.clear()

    def _is_moving(self) -> bool:
        """Somebody's training stands still, or soon will: look more often."""
        return any(
            move is not None and move.is_under_way
            for move in (tender.open_move for tender in self._registry.all())
        )

    def _tick_once(self, tender: RunTender) -> None:
        with self._lock:
            if tender.run_id in self._busy or not tender.is_live:
                return
            self._busy.add(tender.run_id)
        self._pool.submit(self._tick, tender)

    def _tick(self, tender: RunTender) -> None:
        try:
            tender.tick()
        except Exception as error:  # noqa: BLE001 - shown with the run and logged: our own bug
            tender.trouble = f"the conductor failed ({error}); see conductor.log"
            traceback.print_exc()
        finally:
            with self._lock:
                self._busy.discard(tender.run_id)


def run_number(folder: Path) -> int:
    """``7`` of ``run-7``; 0 of anything else."""
    number = folder.name.removeprefix("run-")
    return int(number) if number.isdigit() else 0
