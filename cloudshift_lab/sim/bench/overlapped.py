"""Our save in a training loop, called as its documentation says, with its costs measured."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from cloudshift_lab.checkpoint.reader import open_run
from cloudshift_lab.core.errors import Unsupported
from cloudshift_lab.core.staging import NUM_SLOTS, slot_file
from cloudshift_lab.sim.bench import gpt
from cloudshift_lab.sim.bench.footprint import PeakMemory, children, cpu_s
from cloudshift_lab.sim.bench.ours import RUN
from cloudshift_lab.storage.store import open_store
from cloudshift_lab.training.checkpoints import CheckpointManager, SaveHandle

_SAVER = "cloudshift_lab.checkpoint.saving"
_ONLY_WHEN_FORCED = "1000000"


class _Saver(NamedTuple):
    """The saver process, and the folder in shared memory that it reads."""

    pid: int
    place: Path
    memory: PeakMemory


class Overlapped:
    """Saves while the next steps compute.

    ``waits_s``: how long the optimizer's steps since the newest save waited for its copy.

    Args:
        training: Whose state is saved.
        folder: The store.
    """

    name = "ours"

    def __init__(self, training: gpt.Training, folder: Path) -> None:
        self._url = f"file://{folder}"
        self._training = training
        self._first_hook = register_optimizer_step_pre_hook(self._before_wait)
        self._manager = CheckpointManager(self._url, RUN, save_policy=_ONLY_WHEN_FORCED, keep="all")
        self._manager.attach(training.optimizer, training.model)
        self._last_hook = training.optimizer.register_step_pre_hook(self._after_wait)
        self._handle: SaveHandle | None = None
        self._saver: _Saver | None = None
        self._began_cpu_s = 0.0
        self._wait_began = 0.0
        self.waits_s: list[float] = []
        self.saver_cpu_s: list[float] = []

    def forget(self) -> None:
        """Nothing: older steps stay in the store, new ones refer to them."""

    def save(self, state: Mapping[str, Any], step: int) -> None:
        """Begin to copy the state; everything else happens beside training."""
        del state
        self.waits_s.clear()
        if self._saver is not None:
            self._began_cpu_s = cpu_s(self._saver.pid)
        self._handle = self._manager.save(step, app_state(self._training), force=True)

    def between_steps(self) -> None:
        """What a loop calls after every step: not due, so that nothing is saved."""
        self._manager.save(self._training.num_steps, app_state(self._training))
        if self._saver is None:
            self._saver = _find_saver()
        handle = self._handle
        if handle is not None and handle.upload_completion.done():
            handle.upload_completion.result()
            self._handle = None
            self.saver_cpu_s.append(cpu_s(self._saver.pid) - self._began_cpu_s)

    @property
    def is_done(self) -> bool:
        """Whether the newest save is committed."""
        return self._handle is None

    @property
    def stored_bytes(self) -> int:
        """Bytes of the newest step."""
        return open_run(open_store(self._url), RUN).manifest.stored_bytes

    @property
    def extra_bytes(self) -> int:
        """The memory that copies go to, and the most that the saver had of its own."""
        assert self._saver is not None, "something was saved"
        slots = [slot_file(self._saver.place, 0, number) for number in range(NUM_SLOTS)]
        taken = sum(slot.stat().st_blocks * 512 for slot in slots if slot.exists())
        return taken + self._saver.memory.peak_bytes

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Put the newest step into another model and optimizer; its number."""
        return self._manager.restore("latest", {"model": model, "optimizer": optimizer})

    def close(self) -> None:
        """End the saver, give the memory back."""
        if self._saver is not None:
            self._saver.memory.close()
        self._manager.close()
        self._first_hook.remove()
        self._last_hook.remove()

    # -- how long the optimizer waits for the copy ------------------------------------------------

    def _before_wait(self, *call: object) -> None:
        del call
        self._wait_began = time.perf_counter()

    def _after_wait(self, *call: object) -> None:
        del call
        self.waits_s.append(time.perf_counter() - self._wait_began)


def app_state(training: gpt.Training) -> dict[str, Any]:
    """What a loop saves."""
    return {"model": training.model, "optimizer": training.optimizer}


def _find_saver() -> _Saver:
    """The saver among this process's children, by what it was started with.

    Raises:
        Unsupported: There is none.
    """
    for pid, words in children(os.getpid()).items():
        if _SAVER in words:
            return _Saver(pid, Path(words[words.index(_SAVER) + 2]), PeakMemory(pid))
    raise Unsupported("this machine does not say what its processes cost; run this on Linux")
