"""The saver process: saves what is staged; killed, stopped, starved or refused, it is replaced."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from cloudshift_lab.checkpoint import open_checkpoint
from cloudshift_lab.checkpoint.saver_process import SaverProcess
from cloudshift_lab.checkpoint.saving import FailedAnswer, Outcome, SavedAnswer, SaverJob
from cloudshift_lab.core.staging import slot_file
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.storage.store import open_store

from .staged_node import make_job, stage, until, weights


class PatientWorld:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds

    def random(self) -> float:
        return 0.5

    def new_id(self, prefix: str) -> str:
        return f"{prefix}-1"


@pytest.fixture
def job(tmp_path: Path) -> SaverJob:
    return make_job(f"file://{tmp_path}/store")


@pytest.fixture
def world() -> PatientWorld:
    return PatientWorld()


@pytest.fixture
def saver(job: SaverJob, world: PatientWorld, tmp_path: Path) -> Iterator[SaverProcess]:
    node = tmp_path / "node"
    node.mkdir()
    made = SaverProcess(
        job, node, tmp_path / "logs" / "saver.log",
        deadline_s=60.0, world=world,
    )  # fmt: skip
    yield made
    made.close()


def stage_both(tmp_path: Path, step: int) -> None:
    for rank in range(2):
        stage(tmp_path / "node", rank, step, weights(step, rank))


def outcome(saver: SaverProcess) -> Outcome:
    return until(saver.poll)


def test_a_staged_step_is_sealed_with_every_ranks_share(
    saver: SaverProcess, job: SaverJob, tmp_path: Path
) -> None:
    stage_both(tmp_path, 7)
    saver.start(7)
    assert saver.busy
    saved = outcome(saver)
    assert isinstance(saved, SavedAnswer)
    assert not saver.busy
    assert (saved.coverage, saved.raw_bytes) == ("complete", 400_000)
    opened = open_checkpoint(
        open_store(job.store_url), job.run_id, saved.manifest_key, digest=saved.manifest_digest
    )
    assert opened.names() == ("model/w0", "model/w1")
    assert opened.leaves(1) == {"rank": 1}
    assert float(opened.tensor("model/w1")[0]) == 71.0  # type: ignore[arg-type]


def test_what_a_commit_holds_is_not_uploaded_again(saver: SaverProcess, tmp_path: Path) -> None:
    stage_both(tmp_path, 7)
    saver.start(7)
    first = outcome(saver)
    assert isinstance(first, SavedAnswer) and first.new_bytes > 0
    saver.learn(first.manifest_key, first.manifest_digest)
    for rank in range(2):
        stage(tmp_path / "node", rank, 8, weights(7, rank))
    saver.start(8)
    second = outcome(saver)
    assert isinstance(second, SavedAnswer)
    assert (second.step, second.new_bytes) == (8, 0)


def test_a_step_that_is_not_staged_is_an_answer_not_an_end(
    saver: SaverProcess, tmp_path: Path
) -> None:
    saver.start(3)
    failed = outcome(saver)
    assert isinstance(failed, FailedAnswer)
    assert failed.error_kind == "NotFound"
    stage_both(tmp_path, 4)
    saver.start(4)
    assert isinstance(outcome(saver), SavedAnswer)


def test_a_saver_that_dies_is_noticed_and_replaced(saver: SaverProcess, tmp_path: Path) -> None:
    stage_both(tmp_path, 7)
    assert saver.pid is not None
    os.kill(saver.pid, signal.SIGSTOP)
    saver.start(7)
    assert saver.poll() is None
    os.kill(saver.pid, signal.SIGKILL)
    failed = outcome(saver)
    assert isinstance(failed, FailedAnswer)
    assert (failed.step, failed.error_kind) == (7, "CloudshiftError")
    assert "SIGKILL" in failed.message and "saver.log" in failed.message
    saver.start(7)
    assert isinstance(outcome(saver), SavedAnswer)


def test_a_saver_that_stands_still_is_ended_and_the_next_save_works(
    saver: SaverProcess, world: PatientWorld, tmp_path: Path
) -> None:
    stage_both(tmp_path, 7)
    stopped = saver.pid
    assert stopped is not None
    os.kill(stopped, signal.SIGSTOP)
    saver.start(7)
    world.time += 59.0
    assert saver.poll() is None and saver.busy
    world.time += 1.0
    failed = saver.poll()
    assert isinstance(failed, FailedAnswer)
    assert (failed.step, failed.error_kind) == (7, "Exhausted")
    assert "no progress for 60 s" in failed.message
    assert not Path(f"/proc/{stopped}").exists()
    saver.start(7)
    assert isinstance(outcome(saver), SavedAnswer)
    assert saver.pid != stopped


def test_a_save_that_is_abandoned_ends_and_the_more_important_one_is_saved(
    saver: SaverProcess, tmp_path: Path
) -> None:
    noise = np.random.default_rng(1).standard_normal((2, 2_000_000), dtype=np.float32)
    for rank in range(2):
        stage(tmp_path / "node", rank, 7, {f"model/w{rank}": noise[rank]})
        stage(tmp_path / "node", rank, 8, weights(8, rank), slot=1)
    assert saver.pid is not None
    os.kill(saver.pid, signal.SIGSTOP)
    saver.start(7)
    saver.abandon()
    os.kill(saver.pid, signal.SIGCONT)
    failed = outcome(saver)
    assert isinstance(failed, FailedAnswer)
    assert (failed.step, failed.error_kind) == (7, "Conflict")
    saver.start(8)
    assert isinstance(outcome(saver), SavedAnswer)
    saver.abandon()
    saver.start(7)
    assert isinstance(outcome(saver), SavedAnswer), "an abandoned step may be saved after all"


SLOW_SAVER = """#!{python}
import pathlib, time
news = pathlib.Path({news!r})
input()
for number in (1, 2, 3):
    while not (news / str(number)).exists():
        time.sleep(0.01)
    print('{{"type": "progress", "step": 7, "done_bytes": %d}}' % number, flush=True)
while True:
    time.sleep(1)
"""


def test_a_slow_saver_is_not_ended_while_there_is_news_of_it(
    saver: SaverProcess, world: PatientWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "slow-saver"
    slow.write_text(SLOW_SAVER.format(python=sys.executable, news=str(tmp_path)))
    slow.chmod(0o700)
    saver.close()
    monkeypatch.setattr(sys, "executable", str(slow))
    saver.start(7)
    for number in (1, 2, 3):
        world.time += 59.0
        assert saver.poll() is None
        (tmp_path / str(number)).touch()
        until(lambda: saver.poll() or (saver.done_bytes == number) or None)  # noqa: B023
    assert saver.busy
    world.time += 60.0
    assert isinstance(saver.poll(), FailedAnswer)


def test_a_saver_is_nicer_than_the_ranks_and_dies_before_them_for_memory(
    saver: SaverProcess, tmp_path: Path
) -> None:
    stage_both(tmp_path, 7)
    saver.start(7)
    outcome(saver)
    assert saver.pid is not None
    assert os.getpriority(os.PRIO_PROCESS, saver.pid) == 10
    assert os.getsid(saver.pid) != os.getsid(0)
    assert Path(f"/proc/{saver.pid}/oom_score_adj").read_text().strip() == "500"
    session = Path(f"/proc/{saver.pid}/autogroup")
    assert not session.exists() or session.read_text().split()[-1] == "10"


@pytest.mark.skipif(sys.platform != "linux", reason="limits another process's memory")
def test_a_saver_without_memory_says_so_or_dies_and_the_next_save_works(
    saver: SaverProcess, tmp_path: Path
) -> None:
    import resource

    stage_both(tmp_path, 6)
    saver.start(6)
    assert isinstance(outcome(saver), SavedAnswer)
    for rank in range(2):
        stage(tmp_path / "node", rank, 7, weights(7, rank, 64_000_000))
    assert saver.pid is not None
    pages = int(Path(f"/proc/{saver.pid}/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + 2_000_000
    resource.prlimit(saver.pid, resource.RLIMIT_AS, (room, room))
    saver.start(7)
    failed = outcome(saver)
    assert isinstance(failed, FailedAnswer)
    assert "memory" in failed.message
    saver.close()
    saver.start(7)
    assert isinstance(outcome(saver), SavedAnswer)


def test_a_saver_that_cannot_be_started_is_a_failed_save_and_not_its_owners_end(
    saver: SaverProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage_both(tmp_path, 7)
    saver.close()
    with monkeypatch.context() as context:
        context.setattr(sys, "executable", str(tmp_path / "no-python"))
        saver.start(7)
        failed = outcome(saver)
        assert isinstance(failed, FailedAnswer)
        assert "no saver could be started" in failed.message
    saver.start(7)
    assert isinstance(outcome(saver), SavedAnswer)


def test_credentials_of_the_store_are_written_nowhere(tmp_path: Path) -> None:
    secret = "hunter2-in-plain-words"
    raw = {"auto_mkdir": msgspec.Raw(b"true"), "key": msgspec.Raw(to_json(secret))}
    job = make_job(f"file://{tmp_path}/store", store_options=raw)
    (tmp_path / "node").mkdir()
    saver = SaverProcess(job, tmp_path / "node", tmp_path / "logs" / "saver.log")
    stage_both(tmp_path, 7)
    saver.start(7)
    ended = outcome(saver)
    assert saver.pid is not None
    process = Path(f"/proc/{saver.pid}")
    told = [process / "cmdline", process / "environ"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 2
    assert not [path for path in (*told, *files) if secret.encode() in path.read_bytes()]
    saver.close()
    assert not isinstance(ended, FailedAnswer) or "key" in ended.message


def test_an_error_that_nobody_foresaw_ends_the_saver_with_a_traceback_and_no_abort(
    saver: SaverProcess, tmp_path: Path
) -> None:
    stage_both(tmp_path, 7)
    slot_file(tmp_path / "node", 0, 0).write_bytes(b"")  # which cannot be mapped
    saver.start(7)
    failed = outcome(saver)
    assert isinstance(failed, FailedAnswer)
    assert "ended with code 1;" in failed.message
    assert "Traceback" in (tmp_path / "logs" / "saver.log").read_text()
    stage_both(tmp_path, 8)
    saver.start(8)
    assert isinstance(outcome(saver), SavedAnswer)
