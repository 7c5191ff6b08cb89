"""The judge of the log, against hand-made forgeries."""

from __future__ import annotations

import msgspec
import pytest

from cloudshift_lab.core.wire import to_json
from cloudshift_lab.sim.faulty_store import Mutation
from cloudshift_lab.sim.watch import LogWatch
from cloudshift_lab.storage.log import LogBase, LogRecord, log_key
from cloudshift_lab.storage.logstate import RecordKind

A, B = "memory://a", "memory://b"


class Judged:
    def __init__(self) -> None:
        self.seen: list[str] = []
        self.watch = LogWatch("run-1", lambda invariant, detail: self.seen.append(invariant))

    def land(self, url: str, record: LogRecord, before: bytes | None = None) -> None:
        key = log_key("run-1", record.seq)
        self.watch.see(Mutation(url, key, to_json(record), before, "test"))


def record(seq: int, kind: RecordKind, generation: int, owner: str, **rest: object) -> LogRecord:
    fields: dict[str, object] = {
        "seq": seq, "kind": kind, "generation": generation, "owner": owner,
        "nonce": f"{kind}-{seq}-{generation}", "at": 0.0, **rest,
    }  # fmt: skip
    return msgspec.convert(fields, LogRecord)


FORGOT = record(2, "forget", 1, "ada", steps=[4])
SWEPT = record(3, "sweep", 7, "nobody", collection="gc-1")
FIRST = record(0, "acquire", 1, "ada")
STEP = record(1, "commit", 1, "ada", step=5)
GIVEN = record(2, "handover", 2, "bob", to_url=B, migration_id="m1")
TAKEN = record(0, "acquire", 2, "bob", base={"url": A, "seq": GIVEN.seq, "digest": GIVEN.digest})


def after(*landed: tuple[str, LogRecord]) -> list[str]:
    judged = Judged()
    for url, entry in landed:
        judged.land(url, entry)
    return judged.seen


def test_an_honest_move_passes() -> None:
    step = record(1, "commit", 2, "bob", step=5)
    assert TAKEN.base == LogBase(A, 2, GIVEN.digest)
    assert after((A, FIRST), (A, STEP), (A, GIVEN), (B, TAKEN), (B, step)) == []


def test_anybody_may_forget_an_older_step_and_announce_a_sweep() -> None:
    assert after((A, FIRST), (A, STEP), (A, FORGOT), (A, SWEPT)) == []


@pytest.mark.parametrize(
    ("url", "forged", "invariant"),
    [
        (A, record(2, "commit", 2, "ada", step=6), "commit by the owner only"),
        (A, record(2, "commit", 1, "eve", step=6), "commit by the owner only"),
        (B, record(0, "commit", 1, "ada", step=6), "commit by the owner only"),
        (A, record(2, "commit", 1, "ada", step=4), "committed steps never go back"),
        (A, record(2, "acquire", 1, "eve"), "generation only grows"),
        (B, record(0, "acquire", 2, "eve"), "one home at a time"),
        (A, record(3, "commit", 1, "ada", step=6), "log has no holes"),
        (A, record(2, "commit", 1, "ada", step=6, nonce="commit-1-1"), "one record per request"),
        (A, record(2, "forget", 1, "ada", steps=[5]), "the newest step is never forgotten"),
        (A, record(2, "forget", 1, "ada"), "the newest step is never forgotten"),
        (A, record(2, "release", 1, "eve"), "release by the owner only"),
        (A, record(2, "handover", 9, "bob", to_url=B, migration_id="m"),
         "handover by the owner only"),
    ],
)  # fmt: skip
def test_a_forgery_is_named(url: str, forged: LogRecord, invariant: str) -> None:
    assert invariant in after((A, FIRST), (A, STEP), (url, forged))


@pytest.mark.parametrize(
    ("url", "forged", "invariant"),
    [
        (A, record(3, "commit", 1, "ada", step=6), "commit by the owner only"),
        (A, record(3, "acquire", 3, "eve"), "only the named owner takes over"),
        (B, record(0, "acquire", 2, "eve", base=msgspec.to_builtins(TAKEN.base)),
         "only the named owner takes over"),
        (B, record(0, "acquire", 2, "bob"), "a log names what it continues"),
        (A, record(3, "cancel", 2, "bob", migration_id="m1"),
         "a cancel never follows the handover"),
    ],
)  # fmt: skip
def test_a_forgery_after_a_handover_is_named(url: str, forged: LogRecord, invariant: str) -> None:
    assert invariant in after((A, FIRST), (A, STEP), (A, GIVEN), (url, forged))


def test_a_handover_after_its_cancel_is_named() -> None:
    cancel = record(2, "cancel", 1, "ada", migration_id="m1")
    late = msgspec.structs.replace(GIVEN, seq=3)
    assert after((A, FIRST), (A, STEP), (A, cancel), (A, late)) == [
        "a handover never follows its cancel"
    ]


def test_replacing_or_deleting_a_record_is_named() -> None:
    judged = Judged()
    judged.land(A, FIRST)
    judged.land(A, FIRST, before=b"{}")
    judged.watch.see(Mutation(A, log_key("run-1", 0), None, b"{}", "test"))
    assert judged.seen == ["log is append-only"] * 2


def test_an_acknowledged_record_that_is_not_there_is_named() -> None:
    judged = Judged()
    judged.land(A, FIRST)
    judged.watch.check_acked(A, FIRST)
    judged.watch.check_acked(A, STEP)
    assert judged.seen == ["acknowledged records stay"]
