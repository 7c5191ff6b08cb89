"""Captures that are interrupted or fail: nothing hangs, and nothing half filled is announced."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudshift_lab.training.arena import Arena
from cloudshift_lab.training.capture import Capture
from cloudshift_lab.training.copying import Copying
from cloudshift_lab.training.flight import Lost
from cloudshift_lab.training.parts import Share
from cloudshift_lab.training.watching import Watch

from .test_capture import Job, is_staged

HANG_S = 120.0


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    made = Job(tmp_path)
    yield made
    made.capture.close()


def test_an_interrupted_last_copy_is_not_announced(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(copying: Copying) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(Copying, "read", read)
        with pytest.raises(KeyboardInterrupt):
            job.capture.hold(7, job.share())
    assert job.capture.held_step is None
    job.capture.announce_held()
    assert not is_staged(job, 7)
    job.capture.hold(7, job.share())
    job.capture.announce_held()
    assert job.staged(7) == job.now()


NICED = """
import sys, torch
from pathlib import Path
from cloudshift_lab.training.arena import Arena
from cloudshift_lab.training.capture import Capture
from cloudshift_lab.training.parts import Part, Share

weight = torch.ones(10, requires_grad=True)
capture = Capture(Arena(Path(sys.argv[1]), 0, 1), [torch.optim.SGD([weight])])
capture.begin(1, Share((Part("w", weight, (10,), (0,)),), (), None))
capture.finish()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a niceness on Linux only")
def test_a_process_that_was_niced_is_captured_too(tmp_path: Path) -> None:
    unprivileged = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"] if _is_root() else []
    done = subprocess.run(
        [*unprivileged, "nice", "-n", "10", sys.executable, "-c", NICED, str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=HANG_S,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "rank-0.slot-0.json").exists()


def _is_root() -> bool:
    return os.geteuid() == 0


def _finish(capture: Capture) -> None:
    """Finish on another thread, so that a hang fails the test."""
    finishing = threading.Thread(target=capture.finish, daemon=True)
    finishing.start()
    finishing.join(HANG_S)
    assert not finishing.is_alive()


@pytest.mark.parametrize(
    ("kind", "method"), [(Copying, "read"), (Watch, "changed"), (Arena, "announce")]
)
def test_an_error_of_any_kind_on_the_way_loses_the_capture_and_nothing_else(
    job: Job, monkeypatch: pytest.MonkeyPatch, kind: type, method: str
) -> None:
    def fail() -> object:
        raise KeyError("out of the blue")

    share = Share(job.share().steady, (), None)
    with monkeypatch.context() as broken:
        original = getattr(kind, method)

        def only_in_the_copy(*args: object) -> object:
            return fail() if job.capture._flight is not None else original(*args)

        broken.setattr(kind, method, only_in_the_copy)
        job.capture.begin(1, share)
        _finish(job.capture)
    assert job.capture.lost == Lost.FAILED
    assert len(job.said) == 1 and "step 1 is not saved: KeyError: 'out of the blue'" in job.said[0]
    assert not is_staged(job, 1)
    job.backward()
    job.optimizer.step()
    job.capture.begin(2, share)
    _finish(job.capture)
    assert job.staged(2) == job.now()


def test_a_thread_that_cannot_be_started_leaves_no_capture_to_wait_for(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as broken:
        broken.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="new thread"):
            job.capture.begin(1, job.share())
    _finish(job.capture)
    assert not is_staged(job, 1)
