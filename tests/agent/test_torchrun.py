"""Real ranks under torchrun, led by hand: gate, limit, captures; compared bit by bit."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudshift_lab.agent.main import place_script
from cloudshift_lab.agent.protocols import RanksView, Restore
from cloudshift_lab.agent.rows import RowReceiver
from cloudshift_lab.agent.torchrun import TorchrunRanks
from cloudshift_lab.checkpoint import seal, write_rank
from cloudshift_lab.checkpoint.saving import read_slot
from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.staging import StepReport
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.storage.store import open_store

from .test_attempt import SCRIPT as BARE_SCRIPT

LIMIT_S = 120.0
STEPS = 24
SCRIPT = BARE_SCRIPT.replace(
    "random.seed(seed + rank)",
    "import numpy\nrandom.seed(seed + rank), numpy.random.seed(seed + rank)",
)


class Led:
    """One start of two ranks, and the agent's few words to them."""

    def __init__(self, root: Path, **env: str) -> None:
        self.job = JobSpec(
            run_id="led", generation=1, owner="o",
            placement=Placement("local", "r", "m", ranks_per_node=2),
            store_url=f"file://{root.parent}/store", script=SCRIPT, home=str(root.parent / "home"),
            workdir=str(root), save_policy="1h", seed=5, env={"STEPS": str(STEPS), **env},
        )  # fmt: skip
        self.node_dir = root / "node"
        self.node_dir.mkdir()
        (root / "job.json").write_bytes(to_json(self.job))
        self.rows: list[StepReport] = []
        self.receiver = RowReceiver(self.node_dir, self._take)
        self.ranks = TorchrunRanks(
            self.job, place_script(self.job), self.node_dir, REAL_WORLD,
            ship_rows=self.receiver.drain,
        )  # fmt: skip

    def _take(self, rows: list[StepReport]) -> None:
        self.rows += rows
        self.ranks.take(rows)

    def until(self, is_so: Callable[[RanksView], bool]) -> RanksView:
        deadline = time.monotonic() + LIMIT_S
        while not is_so(view := self.ranks.poll()):
            if view.state == "failed" or time.monotonic() > deadline:
                pytest.fail(f"{view}\n{self._log()}")
            time.sleep(0.005)
        return view

    def held(self, step: int) -> RanksView:
        return self.until(lambda view: (view.state, view.held_step) == ("held", step))

    def save(self, step: int) -> Restore:
        """What a saver and a commit make of a staged step."""
        store = open_store(self.job.store_url)
        written = [
            write_rank(store, "led", read_slot(self.node_dir, rank, step), generation=1)
            for rank in range(2)
        ]
        made = seal(store, "led", step, generation=1, world_size=2, written=written)
        return Restore(step, made.manifest_key, made.manifest_digest)

    def staged(self, step: int) -> list[tuple[list[bytes], object]]:
        """Everything that two starts must have in common after a step, to the last bit."""
        slots = [read_slot(self.node_dir, rank, step) for rank in range(2)]
        return [([bytes(b) for b in slot.buffers], slot.leaves) for slot in slots]

    def losses(self, rank: int) -> dict[int, str]:
        text = (Path(self.job.workdir) / "logs" / f"rank-{rank}.log").read_text()
        return {int(step): loss for step, loss in re.findall(r"step (\d+) (\S+)", text)}

    def _log(self) -> str:
        return "\n".join(p.read_text()[-2000:] for p in (Path(self.job.workdir) / "logs").iterdir())

    def close(self) -> None:
        self.ranks.kill()
        self.receiver.close()


@pytest.fixture
def led(tmp_path: Path) -> Iterator[Callable[[str], Led]]:
    made: list[Led] = []

    def make(name: str) -> Led:
        (tmp_path / name).mkdir()
        made.append(Led(tmp_path / name))
        return made[-1]

    yield make
    for start in made:
        start.close()


def test_a_rehearsed_run_that_goes_on_equals_an_uninterrupted_one_bit_by_bit(
    led: Callable[[str], Led],
) -> None:
    whole = led("whole")
    whole.ranks.start(None, standby=False)
    whole.until(lambda view: view.staged_last)

    source = led("source")
    source.ranks.start(None, standby=False)
    source.ranks.limit(8)
    assert source.held(8).losses[-1] == (8, float.fromhex(whole.losses(0)[8]))
    source.ranks.capture()
    source.until(lambda view: view.staged_step == 8)
    restore = source.save(8)

    target = led("target")
    target.ranks.start(None, standby=True)
    target.until(lambda view: view.state == "gate")
    target.ranks.go(restore, limit=11)
    for step in (11, 12, 13, 16):
        target.ranks.limit(step)
        view = target.held(step)
    assert view.losses == tuple((s, float.fromhex(whole.losses(0)[s])) for s in range(9, 17))
    assert view.step_s is not None and view.first_step_at is None
    target.ranks.capture()
    target.until(lambda view: view.staged_step == 16)
    source.ranks.release(8)
    source.ranks.limit(16)
    source.held(16)
    source.ranks.capture()
    source.until(lambda view: view.staged_step == 16)
    assert target.staged(16) == source.staged(16)
    target.ranks.limit(None)
    target.until(lambda view: view.staged_last and view.first_step_at is not None)
    assert target.staged(STEPS) == whole.staged(STEPS)
    for rank in (0, 1):
        expected = {s: loss for s, loss in whole.losses(rank).items() if s > 8}
        assert target.losses(rank) == expected
    rehearsed = {(row.rank, row.step) for row in target.rows if row.rehearsed}
    assert rehearsed == {(rank, step) for rank in (0, 1) for step in range(9, 17)}


def test_held_ranks_drain_at_once_and_end(led: Callable[[str], Led]) -> None:
    start = led("drained")
    start.ranks.start(None, standby=False)
    start.ranks.limit(4)
    start.held(4)
    start.ranks.request_drain()
    view = start.until(lambda view: view.state == "drained")
    assert (view.staged_step, view.staged_last) == (4, True)
