"""The saver process: saves what is staged, dies and is replaced, knows what was committed."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch

from cloudshift_lab.agent.protocols import Saved, SaveFailed
from cloudshift_lab.agent.saver import (
    Encoder,
    FailedAnswer,
    SavedAnswer,
    SaveRequest,
    answer,
)
from cloudshift_lab.agent.saverlink import SaverProcess
from cloudshift_lab.checkpoint import open_checkpoint
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.storage.store import open_store
from cloudshift_lab.training.arena import Arena

from .conftest import make_job


@pytest.fixture
def job(tmp_path: Path) -> JobSpec:
    cloud = msgspec.structs.replace(make_job().placement, ranks_per_node=2)
    made = make_job(
        store_url=f"file://{tmp_path}/store", home=str(tmp_path), workdir=str(tmp_path),
        placement=cloud,
    )  # fmt: skip
    (tmp_path / "job.json").write_bytes(to_json(made))
    return made


@pytest.fixture
def saver(job: JobSpec, tmp_path: Path) -> Iterator[SaverProcess]:
    (tmp_path / "node").mkdir()
    made = SaverProcess(job, tmp_path / "job.json", tmp_path / "node")
    yield made
    made.close()


def outcome(saver: SaverProcess) -> Saved | SaveFailed:
    deadline = time.monotonic() + 60
    while (answer := saver.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return answer


def stage(node_dir: Path, step: int) -> None:
    for rank in range(2):
        share = {f"model/w{rank}": torch.full((50, 1000), float(step * (rank - 1)))}
        Arena(node_dir, rank, 2).stage(step, share, {"rank": rank}, is_last=False)


def test_a_staged_step_is_sealed_with_every_ranks_share(
    saver: SaverProcess, job: JobSpec, tmp_path: Path
) -> None:
    stage(tmp_path / "node", 7)
    saver.start(7)
    assert saver.busy
    saved = outcome(saver)
    assert isinstance(saved, Saved)
    assert not saver.busy
    opened = open_checkpoint(
        open_store(job.store_url), job.run_id, saved.manifest_key, digest=saved.manifest_digest
    )
    assert opened.names() == ("model/w0", "model/w1")
    assert opened.leaves(1) == {"rank": 1}
    assert float(opened.tensor("model/w0")[0, 0]) == -7.0  # type: ignore[arg-type]


def test_what_a_commit_holds_is_not_uploaded_again(saver: SaverProcess, tmp_path: Path) -> None:
    stage(tmp_path / "node", 7)
    saver.start(7)
    first = outcome(saver)
    assert isinstance(first, Saved) and first.new_bytes > 0
    saver.learn(first.manifest_key, first.manifest_digest)
    (tmp_path / "node" / "rank-0.slot-0.json").unlink()
    (tmp_path / "node" / "rank-1.slot-0.json").unlink()
    for rank in range(2):
        share = {f"model/w{rank}": torch.full((50, 1000), float(7 * (rank - 1)))}
        Arena(tmp_path / "node", rank, 2).stage(8, share, {}, is_last=False)
    saver.start(8)
    second = outcome(saver)
    assert isinstance(second, Saved)
    assert (second.step, second.new_bytes) == (8, 0)


def test_a_step_that_is_not_staged_is_an_answer_not_an_end(
    saver: SaverProcess, tmp_path: Path
) -> None:
    saver.start(3)
    failed = outcome(saver)
    assert isinstance(failed, SaveFailed)
    assert failed.error_kind == "NotFound"
    stage(tmp_path / "node", 4)
    saver.start(4)
    assert isinstance(outcome(saver), Saved)


def test_a_saver_that_dies_is_noticed_and_replaced(saver: SaverProcess, tmp_path: Path) -> None:
    stage(tmp_path / "node", 7)
    assert saver._process is not None
    os.kill(saver._process.pid, signal.SIGSTOP)
    saver.start(7)
    assert saver.poll() is None
    os.kill(saver._process.pid, signal.SIGKILL)
    failed = outcome(saver)
    assert isinstance(failed, SaveFailed)
    assert (failed.step, failed.error_kind) == (7, "CloudshiftError")
    assert "SIGKILL" in failed.message and "saver.log" in failed.message
    saver.start(7)
    assert isinstance(outcome(saver), Saved)


def test_a_saver_is_nicer_than_the_ranks(saver: SaverProcess, tmp_path: Path) -> None:
    stage(tmp_path / "node", 7)
    saver.start(7)
    outcome(saver)
    assert saver._process is not None
    assert os.getpriority(os.PRIO_PROCESS, saver._process.pid) == 10
    assert os.getsid(saver._process.pid) != os.getsid(0)


class BrokenEncoder(Encoder):
    """Meets what a machine can run out of."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def save(self, step: int) -> SavedAnswer:
        raise self._error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "Exhausted"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "Exhausted"),
        (MemoryError(), "Exhausted"),
        (OSError(errno.EIO, "Input/output error"), "CloudshiftError"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "Unavailable"),
    ],
)
def test_a_machine_that_ran_out_of_something_is_an_answer_and_not_the_savers_end(
    error: Exception, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reply = answer(BrokenEncoder(error), SaveRequest(7))
    assert isinstance(reply, FailedAnswer)
    assert (reply.step, reply.error_kind) == (7, kind)
    assert "Traceback" in capsys.readouterr().err


def test_a_saver_that_cannot_be_started_is_a_failed_save_and_not_the_agents_end(
    saver: SaverProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(tmp_path / "node", 7)
    saver.close()
    with monkeypatch.context() as context:
        context.setattr(sys, "executable", str(tmp_path / "no-python"))
        saver.start(7)
        failed = outcome(saver)
        assert isinstance(failed, SaveFailed)
        assert "no saver could be started" in failed.message
    saver.start(7)
    assert isinstance(outcome(saver), Saved)
