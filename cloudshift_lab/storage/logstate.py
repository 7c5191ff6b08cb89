"""What a run log says: its records, and the state that all of them together make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
from blake3 import blake3

from cloudshift_lab.core.wire import to_json

_POINTER = b'{"log_url":"'
RecordKind = Literal["acquire", "commit", "handover", "cancel", "release", "forget", "sweep"]


class LogBase(msgspec.Struct, frozen=True):
    """The handover record, in another log, that an ``acquire`` continues."""

    url: str
    seq: int
    digest: str


class LogRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One line of the log.

    ``generation`` of a handover is already the new owner's: the old one is fenced from there on.
    ``forget`` and ``sweep`` change no ownership and may be anybody's: ``steps`` exist no longer;
    ``collection`` is about to be deleted from the store, so a save begun before is to be repeated.
    ``check`` tells a flipped bit at rest; records of former versions have none.
    """

    seq: int
    kind: RecordKind
    generation: int
    owner: str
    nonce: str
    at: float
    step: int | None = None
    manifest_key: str | None = None
    manifest_digest: str | None = None
    final: bool = False
    to_url: str | None = None
    migration_id: str | None = None
    base: LogBase | None = None
    steps: tuple[int, ...] = ()
    collection: str | None = None
    check: str = ""

    @property
    def stamp(self) -> str:
        """What ``check`` must say: a short hash of all other fields."""
        rest = msgspec.structs.replace(self, check="")
        return str(blake3(to_json(rest)).hexdigest(length=8))

    @property
    def digest(self) -> str:
        """blake3 of the record's bytes; what a ``LogBase`` points at."""
        return str(blake3(to_json(self)).hexdigest())


class LogPointer(msgspec.Struct, frozen=True):
    """Stands in the place of record 0 where a run's log is kept elsewhere."""

    log_url: str

    def body(self) -> bytes:
        """Its bytes: the same from everybody, so that creating it again counts as ours."""
        return to_json(self)


def pointer_in(body: bytes) -> LogPointer | None:
    """The pointer in a record's place; None for a record."""
    return msgspec.json.decode(body, type=LogPointer) if body.startswith(_POINTER) else None


@dataclass(frozen=True)
class LogState:
    """What all records together say.

    ``home_url`` is set between a handover and the acquire that takes it up: the log to go on in.
    ``owner`` is None before the first acquire and after a release. ``commits`` are the steps that
    exist: forgotten ones are left out. ``sweeps`` are the places of the ``sweep`` records.
    """

    records: tuple[LogRecord, ...] = ()
    generation: int = 0
    owner: str | None = None
    home_url: str | None = None
    commits: tuple[LogRecord, ...] = ()
    cancelled: frozenset[str] = frozenset()
    sweeps: tuple[int, ...] = ()

    @property
    def next_seq(self) -> int:
        return len(self.records)

    @property
    def last_commit(self) -> LogRecord | None:
        return self.commits[-1] if self.commits else None

    @property
    def awaits_step(self) -> bool:
        """Whether the log continues another one whose sealed step was not committed here yet."""
        for record in reversed(self.records):
            if record.kind == "commit":
                return False
            if record.base is not None:
                return True
        return False

    def by_nonce(self, nonce: str) -> LogRecord | None:
        """The record that an earlier, perhaps unanswered, attempt has landed."""
        return next((r for r in reversed(self.records) if r.nonce == nonce), None)

    def handover_of(self, migration_id: str) -> LogRecord | None:
        """The handover of one migration, if it landed."""
        return next(
            (r for r in self.records if r.kind == "handover" and r.migration_id == migration_id),
            None,
        )


def fold(records: Sequence[LogRecord]) -> LogState:
    """The state after all of ``records``, in order. Pure."""
    generation, owner, home_url = 0, None, None
    for record in records:
        if record.kind == "acquire":
            generation, owner, home_url = record.generation, record.owner, None
        elif record.kind == "handover":
            generation, owner, home_url = record.generation, record.owner, record.to_url
        elif record.kind == "release":
            owner = None
    return LogState(
        records=tuple(records),
        generation=generation,
        owner=owner,
        home_url=home_url,
        commits=commits_at(records),
        cancelled=frozenset(
            r.migration_id for r in records if r.kind == "cancel" and r.migration_id
        ),
        sweeps=tuple(r.seq for r in records if r.kind == "sweep"),
    )


def commits_at(
    records: Sequence[LogRecord], *, forgets_before: int | None = None
) -> tuple[LogRecord, ...]:
    """The commits that exist after all of ``records``, in order. Pure.

    Args:
        records: The log from its beginning.
        forgets_before: Overlook the ``forget`` records from this place on; None: heed all.
    """
    found: list[LogRecord] = []
    for record in records:
        if record.kind == "commit":
            found.append(record)
        elif record.kind == "forget" and (forgets_before is None or record.seq < forgets_before):
            found = [commit for commit in found if commit.step not in record.steps]
    return tuple(found)


def log_key(run_id: str, seq: int) -> str:
    """Where record ``seq`` of a run's log lies."""
    return f"runs/{run_id}/log/{seq:012d}.json"
