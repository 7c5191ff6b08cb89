"""Long work of the conductor in threads of its own: seen, cancelled, and kept for a while."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec

from cloudshift_lab.core.errors import CloudshiftError, Conflict, NotFound
from cloudshift_lab.core.steps import ENDED_JOB, JobView
from cloudshift_lab.core.views import Problem
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.core.world import World

_NUM_THREADS = 2
_MOST_WAITING = 20
_KEPT = 50
_ID_CHARS = len("job-") + 6


class _Cancelled(Exception):
    """Ends the work of a job that somebody cancelled; never leaves this module."""


class Task:
    """What the work of a job is given: where to tell how far it is, and to hear of its end."""

    def __init__(self, tell: Callable[[int, int, str], None]) -> None:
        self._tell = tell
        self._cancelled = threading.Event()

    def tell(self, done: int, total: int, unit: str = "bytes") -> None:
        """Say how far the work is. Call it often: this is where a cancelled job ends."""
        self.check()
        self._tell(done, total, unit)

    def check(self) -> None:
        """End the work here if it was cancelled."""
        if self._cancelled.is_set():
            raise _Cancelled

    @property
    def is_cancelled(self) -> bool:
        """For work that must clean up by itself before it calls ``check``."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        self._cancelled.set()


Work = Callable[[Task], object]


class Jobs:
    """The jobs of one conductor; they do not outlive it. Safe to call from any thread.

    Args:
        world: Clock and ids.
        changed: Called when a job has begun or ended.
    """

    def __init__(self, world: World, changed: Callable[[], None]) -> None:
        self._world = world
        self._changed = changed
        self._lock = threading.Lock()
        self._views: dict[str, JobView] = {}
        self._tasks: dict[str, Task] = {}
        self._pool = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="job")

    def close(self) -> None:
        """Begin no more jobs and cancel those under way; what they had done is safe to redo."""
        for task in list(self._tasks.values()):
            task.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def start(self, kind: str, title: str, work: Work) -> JobView:
        """Do ``work`` in a thread; its result must be JSON-able.

        Raises:
            Conflict: Too many jobs wait already.
        """
        job_id = self._world.new_id("job")[:_ID_CHARS]
        task = Task(lambda done, total, unit: self._told(job_id, done, total, unit))
        view = JobView(
            job_id=job_id, kind=kind, title=title, state="waiting", started_at=self._world.now()
        )
        with self._lock:
            if sum(each.state == "waiting" for each in self._views.values()) >= _MOST_WAITING:
                raise Conflict(f"{_MOST_WAITING} jobs wait already; cancel one, then try again")
            self._views[job_id], self._tasks[job_id] = view, task
            self._forget_old()
        self._pool.submit(self._run, job_id, task, work)
        return self.get(job_id)

    def all(self) -> tuple[JobView, ...]:
        """Every job that is remembered, newest first."""
        with self._lock:
            views = tuple(reversed(self._views.values()))
        return tuple(self._as_of_now(view) for view in views)

    def get(self, job_id: str) -> JobView:
        """One job.

        Raises:
            NotFound: No such job (any more); lists the newest ones.
        """
        with self._lock:
            view = self._views.get(job_id)
            known = list(reversed(self._views))[:8]
        if view is None:
            raise NotFound(
                f"no job called '{job_id}' (jobs end with the conductor that runs them); "
                f"ask again for what it did, or choose one of: {', '.join(known) or 'none yet'}"
            )
        return self._as_of_now(view)

    def cancel(self, job_id: str) -> JobView:
        """End a job where it next looks up; cancelling one that has ended changes nothing."""
        view = self.get(job_id)
        with self._lock:
            task = self._tasks.get(job_id)
        if task is not None:
            task.cancel()
        if view.state == "waiting":
            self._end(job_id, "cancelled")
        return self.get(job_id)

    def _run(self, job_id: str, task: Task, work: Work) -> None:
        if task.is_cancelled:
            return
        self._change(job_id, state="running", started_at=self._world.now())
        try:
            result = msgspec.Raw(to_json(work(task)))
        except _Cancelled:
            self._end(job_id, "cancelled")
        except CloudshiftError as error:
            problem = Problem(type(error).__name__, error.message, error.action)
            self._end(job_id, "failed", error=problem)
        except Exception as error:  # noqa: BLE001 - shown with the job and logged: our own bug
            traceback.print_exc(file=sys.stderr)
            text = f"the conductor failed inside ({type(error).__name__}: {error})"
            self._end(
                job_id,
                "failed",
                error=Problem("CloudshiftError", f"{text}; see conductor.log", "stop"),
            )
        else:
            self._end(job_id, "done", result=result)

    def _told(self, job_id: str, done: int, total: int, unit: str) -> None:
        self._change(job_id, done=done, total=total, unit=unit)

    def _end(self, job_id: str, state: str, **changes: object) -> None:
        self._change(job_id, state=state, ended_at=self._world.now(), **changes)
        with self._lock:
            self._tasks.pop(job_id, None)
        self._changed()

    def _change(self, job_id: str, **changes: object) -> None:
        with self._lock:
            view = self._views.get(job_id)
            if view is not None and view.state not in ENDED_JOB:
                self._views[job_id] = msgspec.structs.replace(view, **changes)

    def _forget_old(self) -> None:
        ended = [job_id for job_id, view in self._views.items() if view.state in ENDED_JOB]
        for job_id in ended[: max(0, len(self._views) - _KEPT)]:
            del self._views[job_id]

    def _as_of_now(self, view: JobView) -> JobView:
        return msgspec.structs.replace(view, as_of=self._world.now())
