"""What must always hold of the run's logs, checked at every record in the moment it lands.

Written against the words of PROTOCOL.md, on purpose without the code that it judges.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from cloudshift_lab.core.wire import from_json
from cloudshift_lab.sim.faulty_store import Mutation
from cloudshift_lab.storage.log import LogRecord

_LOG_KEY = re.compile(r"runs/(?P<run>[^/]+)/log/(?P<seq>\d{12})\.json")
Report = Callable[[str, str], None]


class Violation(msgspec.Struct, frozen=True):
    """An invariant that did not hold, with the seed that shows it again."""

    seed: int
    invariant: str
    detail: str
    at_s: float


def log_record(mutation: Mutation) -> tuple[str, LogRecord] | None:
    """Whose log a mutation is in, and the record that landed; None for any other object."""
    match = _LOG_KEY.fullmatch(mutation.key)
    if match is None or mutation.data is None:
        return None
    return match["run"], from_json(mutation.data, LogRecord, what=mutation.key)


class LogWatch:
    """The ownership of one run over all its logs, as the records alone tell it.

    Args:
        run_id: Whose logs; other keys are ignored.
        report: Called with the invariant's name and what was seen.
    """

    def __init__(self, run_id: str, report: Report) -> None:
        self._run_id = run_id
        self._report = report
        self.logs: dict[str, list[LogRecord]] = {}
        self.home_url: str | None = None
        self.owner: str | None = None
        self.generation = 0
        self.handed_over: tuple[str, LogRecord] | None = None
        self.commits: list[tuple[str, LogRecord]] = []
        self._nonces: set[str] = set()
        self._cancelled: set[str] = set()
        self._moved: set[str] = set()

    def see(self, mutation: Mutation) -> LogRecord | None:
        """Judge one effect on a store; returns the record when it is one of this run's log."""
        match = _LOG_KEY.fullmatch(mutation.key)
        if match is None or match["run"] != self._run_id:
            return None
        if mutation.data is None or mutation.before is not None:
            self._report("log is append-only", f"{mutation.key} was replaced by {mutation.actor}")
            return None
        record = from_json(mutation.data, LogRecord, what=mutation.key)
        log = self.logs.setdefault(mutation.url, [])
        if not int(match["seq"]) == record.seq == len(log):
            self._report("log has no holes", f"{mutation.key} after {len(log)} records")
        if record.nonce in self._nonces:
            self._report("one record per request", f"{record.nonce} landed twice")
        self._nonces.add(record.nonce)
        log.append(record)
        self._judge(mutation.url, record)
        return record

    def check_acked(self, url: str, record: LogRecord) -> None:
        """An answer that somebody got must be true for ever."""
        log = self.logs.get(url, [])
        if record.seq >= len(log) or log[record.seq] != record:
            self._report("acknowledged records stay", f"{record.kind} {record.seq} at {url}")

    def _judge(self, url: str, record: LogRecord) -> None:
        if record.kind == "acquire":
            self._judge_acquire(url, record)
        elif record.kind == "cancel":
            if record.migration_id in self._moved:
                self._report("a cancel never follows the handover", f"{record.migration_id}")
            self._cancelled.add(record.migration_id or "")
        elif record.kind == "forget":
            self._judge_forget(url, record)
        elif record.kind != "sweep":
            self._judge_owner(url, record)

    def _judge_acquire(self, url: str, record: LogRecord) -> None:
        if record.generation <= self.generation and self.handed_over is None:
            self._report("generation only grows", _name(url, record))
        if self.handed_over is not None:
            self._judge_takeup(url, record, *self.handed_over)
        elif self.home_url not in (None, url):
            self._report("one home at a time", f"{_name(url, record)} while at {self.home_url}")
        self.home_url, self.owner, self.generation = url, record.owner, record.generation
        self.handed_over = None

    def _judge_takeup(self, url: str, record: LogRecord, from_url: str, given: LogRecord) -> None:
        wanted = (given.to_url, given.generation, given.owner)
        is_named = (url, record.owner) == (given.to_url, given.owner)
        if not is_named or record.generation < given.generation:
            self._report("only the named owner takes over", f"{_name(url, record)} not {wanted}")
        base = record.base
        if from_url != url and (
            base is None or (base.url, base.seq, base.digest) != (from_url, given.seq, given.digest)
        ):
            self._report("a log names what it continues", _name(url, record))

    def _judge_owner(self, url: str, record: LogRecord) -> None:
        """Commit, handover, release: the owner's alone."""
        generation = record.generation - (record.kind == "handover")
        is_owner = (
            self.handed_over is None
            and self.owner is not None
            and (url, generation) == (self.home_url, self.generation)
            and (record.kind == "handover" or record.owner == self.owner)
        )
        if not is_owner:
            self._report(
                f"{record.kind} by the owner only",
                f"{_name(url, record)} while generation {self.generation} of {self.owner} "
                f"owns it at {self.home_url}",
            )
        if record.kind == "commit":
            self._judge_step(url, record)
        elif record.kind == "release":
            self.owner = None
        else:
            self._judge_handover(url, record)

    def _judge_step(self, url: str, record: LogRecord) -> None:
        last = self.commits[-1][1].step if self.commits else None
        if last is not None and record.step is not None and record.step < last:
            self._report("committed steps never go back", f"{_name(url, record)} after {last}")
        self.commits.append((url, record))

    def _judge_forget(self, url: str, record: LogRecord) -> None:
        newest = [commit.step for at, commit in self.commits if at == url][-1:]
        if not record.steps or set(newest) & set(record.steps):
            self._report("the newest step is never forgotten", f"{record.steps} at {url}")

    def _judge_handover(self, url: str, record: LogRecord) -> None:
        if record.migration_id in self._cancelled:
            self._report("a handover never follows its cancel", _name(url, record))
        self._moved.add(record.migration_id or "")
        self.handed_over = (url, record)
        self.owner, self.generation = None, record.generation


def _name(url: str, record: LogRecord) -> str:
    step = "" if record.step is None else f" step {record.step}"
    return f"{record.kind} {record.seq}{step} of generation {record.generation} at {url}"
