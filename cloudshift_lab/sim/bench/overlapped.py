"""Our save in a training process: the arena, the overlapped copy, and the saver beside it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.optim.optimizer import register_optimizer_step_pre_hook

from cloudshift_lab.checkpoint.saver_process import SaverProcess
from cloudshift_lab.checkpoint.saving import SavedAnswer, SaverJob
from cloudshift_lab.core.errors import CloudshiftError
from cloudshift_lab.core.staging import NUM_SLOTS, slot_file
from cloudshift_lab.sim.bench import gpt
from cloudshift_lab.sim.bench.footprint import PeakMemory, cpu_s
from cloudshift_lab.sim.bench.ours import GENERATION, RUN
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.store import open_store
from cloudshift_lab.training.arena import Arena
from cloudshift_lab.training.capture import Capture
from cloudshift_lab.training.state import TrainingState

_SHARED_MEMORY = Path("/dev/shm")


class Overlapped:
    """Saves while the next steps compute.

    What an agent does in a process of its own (telling the saver, committing) is done here between
    steps, and so counts as lost training time.

    Args:
        training: Whose state is saved.
        folder: The store.
    """

    name = "ours"

    def __init__(self, training: gpt.Training, folder: Path) -> None:
        self.url = f"file://{folder}"
        self._memory = tempfile.TemporaryDirectory(
            prefix="cloudshift-bench-", dir=_SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None
        )
        node_dir = Path(self._memory.name)
        self.node_dir = node_dir
        self._log = RunLog(open_store(self.url), RUN)
        self._log.acquire(generation=GENERATION, owner="bench", nonce="bench")
        job = SaverJob(RUN, GENERATION, 1, (0,), self.url)
        self._saver = SaverProcess(job, node_dir / "job.json", node_dir, folder / "saver.log")
        self._released = -1
        self._asked: int | None = None
        self._cpu_s = 0.0
        self.waits_s: list[float] = []
        self.answers: list[SavedAnswer] = []
        self.saver_cpu_s: list[float] = []
        self._first_hook = register_optimizer_step_pre_hook(self._before_wait)
        self._state = TrainingState(training.model, training.optimizer, {}, rank=0, world_size=1)
        arena = Arena(node_dir, 0, 1, released=lambda: self._released)
        self.capture = Capture(arena, [training.optimizer], training.model)
        self._last_hook = training.optimizer.register_step_pre_hook(self._after_wait)
        self.capture.rehearse(self._state.share(0))
        assert self._saver.pid is not None, "there is a saver"
        self._peak = PeakMemory(self._saver.pid)

    @property
    def state_bytes(self) -> int:
        return self._state.state_bytes

    def forget(self) -> None:
        """Nothing: older steps stay in the store, new ones refer to them."""

    def save(self, state: Mapping[str, Any], step: int) -> None:
        """Begin to copy the state; everything else happens beside training."""
        del state
        self.waits_s.clear()
        self.capture.begin(step, self._state.share(step))
        self._asked = step

    def between_steps(self) -> None:
        """Hand a complete copy to the saver, and commit what it has sealed.

        Raises:
            CloudshiftError: The save failed.
        """
        self.capture.settle()
        if self._asked is None:
            return
        if not self._saver.busy and self.capture.staged_step == self._asked:
            assert self._saver.pid is not None, "there is a saver"
            self._cpu_s = cpu_s(self._saver.pid)
            self._saver.start(self._asked)
        outcome = self._saver.poll()
        if isinstance(outcome, SavedAnswer):
            self._commit(outcome)
        elif outcome is not None:
            raise CloudshiftError(f"a save of the benchmark failed: {outcome}; see its saver's log")

    def _commit(self, saved: SavedAnswer) -> None:
        assert self._saver.pid is not None, "it has just answered"
        self.saver_cpu_s.append(cpu_s(self._saver.pid) - self._cpu_s)
        self._log.commit(
            generation=GENERATION, step=saved.step, manifest_key=saved.manifest_key,
            manifest_digest=saved.manifest_digest, nonce=f"bench-{saved.step}",
        )  # fmt: skip
        self._saver.learn(saved.manifest_key, saved.manifest_digest)
        self._released, self._asked = saved.step, None
        self.answers.append(saved)

    @property
    def is_done(self) -> bool:
        """Whether the newest save is committed."""
        return self._asked is None

    @property
    def stored_bytes(self) -> int:
        return self.answers[-1].stored_bytes

    @property
    def extra_bytes(self) -> int:
        """The arena and the most that the saver had of its own."""
        arena = sum(
            slot_file(self.node_dir, 0, number).stat().st_blocks * 512
            for number in range(NUM_SLOTS)
            if slot_file(self.node_dir, 0, number).exists()
        )
        return arena + self._peak.peak_bytes

    def close(self) -> None:
        """End the saver, give the memory back."""
        self.capture.close()
        self._first_hook.remove()
        self._last_hook.remove()
        self._saver.close()
        self._peak.close()
        self._memory.cleanup()

    # -- how long the optimizer waits for the copy ------------------------------------------------

    def _before_wait(self, *call: object) -> None:
        del call
        self._wait_began = time.perf_counter()

    def _after_wait(self, *call: object) -> None:
        del call
        self.waits_s.append(time.perf_counter() - self._wait_began)
