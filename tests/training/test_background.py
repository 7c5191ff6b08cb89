"""A step is carried to its commit, whatever collections do to the store meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudshift_lab.checkpoint.keep import KeepAll
from cloudshift_lab.checkpoint.saver_process import SaverProcess
from cloudshift_lab.core.errors import CloudshiftError, Conflict
from cloudshift_lab.storage.log import LogState
from cloudshift_lab.storage.store import Store, open_store
from cloudshift_lab.training.background import Background, SaveHandle, Work
from cloudshift_lab.training.ownership import Ownership, new_owner
from tests.checkpoint.staged_node import make_job, stage, weights


class Swept(Ownership):
    """An owner whose store is swept just after each save has begun, so many times."""

    def __init__(self, store: Store, sweeps: int) -> None:
        super().__init__(store, "run-a", new_owner("run-a"))
        self.left = sweeps

    def hold(self) -> LogState:
        state = super().hold()
        if self.left:
            self.left -= 1
            self._log.sweep(collection=f"gc-{self.left}", nonce=f"sweep-{self.left}")
        return state


class Carrier:
    """One rank's saver and background thread over a store in a folder."""

    def __init__(self, root: Path, sweeps: int) -> None:
        store = open_store(f"file://{root}/store")
        stage(root / "node", 0, 7, weights(7, 0), world_size=1)
        job = make_job(store.url, ranks=(0,), world_size=1)
        saver = SaverProcess(job, root / "node", root / "saver.log")
        self.owned = Swept(store, sweeps)
        self.background = Background(
            store, "run-a", self.owned, saver, keep=KeepAll(), generation=1, incarnation=""
        )

    def save(self) -> int:
        handle = SaveHandle(7)
        self.background.submit(Work(handle, lambda: True))
        return handle.upload_completion.result(timeout=120)


@pytest.fixture
def carrier(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Carrier]:
    made = Carrier(tmp_path, request.param)
    yield made
    made.background.close()


@pytest.mark.parametrize("carrier", [0, 1, 5], indirect=True)
def test_a_step_is_saved_again_each_time_the_store_was_swept_meanwhile(carrier: Carrier) -> None:
    assert carrier.save() == 7
    assert carrier.owned.left == 0
    last = carrier.owned.look().last_commit
    assert last is not None and last.step == 7


@pytest.mark.parametrize("carrier", [99], indirect=True)
def test_a_store_that_is_swept_all_the_time_is_an_error_in_the_end(carrier: Carrier) -> None:
    with pytest.raises(Conflict):
        carrier.save()


@pytest.mark.parametrize("carrier", [0], indirect=True)
def test_an_unexpected_error_is_told_and_the_next_step_is_carried(carrier: Carrier) -> None:
    def odd() -> bool:
        raise ZeroDivisionError("odd")

    handle = SaveHandle(7)
    carrier.background.submit(Work(handle, odd))
    with pytest.raises(CloudshiftError, match="step 7 was not saved: ZeroDivisionError: odd"):
        handle.upload_completion.result(timeout=60)
    assert carrier.save() == 7
