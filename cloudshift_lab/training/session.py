"""The one object a training script needs: steps that can be saved, moved and resumed exactly."""

from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import nn

from cloudshift_lab.checkpoint.reader import open_checkpoint
from cloudshift_lab.core.errors import Unavailable, UsageError
from cloudshift_lab.core.staging import Go, RankState, StepReport
from cloudshift_lab.training.boundary import Boundary
from cloudshift_lab.training.inventory import Optimizers
from cloudshift_lab.training.node import Node
from cloudshift_lab.training.restore import RestoreReport
from cloudshift_lab.training.sections import Section, Sections
from cloudshift_lab.training.state import Stateful, TrainingState
from cloudshift_lab.training.warmup import warm_up as run_warm_up

RESTORE_PATIENCE_S = 600.0
RESTORE_AGAIN_S = 2.0


class Drained(SystemExit):
    """The run goes on elsewhere: this process has staged its last state and ends with code 0."""

    def __init__(self, step: int) -> None:
        super().__init__(0)
        self.step = step


class Session:
    """Connects an ordinary training loop with its run.

    ::

        session = Session(model=ddp_model, optimizer=opt, warm_up=lambda: loss_fn(batch(0)))
        for step in session.steps(total):
            loss = train(batch(step))
            session.step(loss=loss, tokens=n)

    Build model, optimizer and data first; the constructor then waits until the attempt may train
    and puts the saved state back. Every rank must make its session at the same place. Without an
    agent around it (plain ``python script.py``) the loop runs as it is and nothing is saved.

    Args:
        model: The model as the loop uses it (DistributedDataParallel, compiled or plain).
        optimizer: Its optimizer; or several, in a sequence or by name.
        warm_up: One forward pass to a scalar loss, on any batch of the usual shape; run twice and
            undone, so that a resumed run equals an uninterrupted one bit by bit.
        extra: Further objects with ``state_dict``/``load_state_dict``: schedulers, samplers,
            a GradScaler.
        strict: Refuse a saved state that is not one of this script's; else say what does not fit
            and let it keep the values that the script built.

    ``restored`` is the report of the restore, None after a fresh start; ``sections`` adds up the
    times of ``section``.

    Raises:
        UsageError: The saved state is not one of this script's model, optimizer and extras.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizers,
        warm_up: Callable[[], torch.Tensor] | None = None,
        extra: Mapping[str, Stateful] | None = None,
        strict: bool = True,
    ) -> None:
        self.rank, self.world_size = _rank_and_world_size()
        self._node = Node.from_environment(self.rank)
        self._state = TrainingState(
            model, optimizer, extra or {}, rank=self.rank, world_size=self.world_size
        )
        self._strict = strict
        self.restored: RestoreReport | None = None
        if warm_up is not None:
            run_warm_up(model, warm_up)
        self.start_step = 0
        self._current: int | None = None
        self._completed: int | None = None
        self._has_left = False
        self._total = 0
        self._step_began = 0.0
        self.sections = Sections()
        self._boundary: Boundary | None = None
        if self._node is None:
            self._say_alone()
        else:
            self._boundary = Boundary(
                self._node, self._state, optimizer, model,
                world_size=self.world_size, say=self._say,
            )  # fmt: skip
            self._enter(self._node, self._boundary)
            atexit.register(self._depart)

    def steps(self, total: int) -> Iterator[int]:
        """The steps still to be done: from the restored one + 1 to ``total``.

        A loop that is left early, after ``session.step()``, is as finished as a whole one: its
        state is copied at once, and counts when the process ends without an error. A second loop
        goes on after the last completed step.

        Args:
            total: Optimizer steps of the whole run, counted from its very beginning.

        Raises:
            UsageError: An earlier loop ended the run, or was left in the middle of a step.
        """
        done = self._resume()
        self._total = total
        self._step_began = time.perf_counter()
        self.sections.take()
        try:
            for step in range(done + 1, total + 1):
                self._current = step
                yield step
                if self._current is not None:
                    self.step()
        except GeneratorExit:
            self._keep()
            raise
        self._finish(max(total, done))

    def step(self, *, loss: torch.Tensor | float | None = None, tokens: int | None = None) -> None:
        """Mark the end of an optimizer step: the state is whole now.

        Args:
            loss: This rank's loss of the step.
            tokens: This rank's tokens of the step.

        Raises:
            Drained: The run is to move or to stop; let it pass, it ends the process with code 0.
            UsageError: Called twice in a step, or outside ``steps``.
        """
        step, self._current = self._current, None
        if step is None:
            raise UsageError("session.step() belongs once into `for step in session.steps(total)`")
        self._completed = step
        if self._node is None or self._boundary is None:
            return
        self._report(self._node, self._boundary, step, loss, tokens)
        is_drained = self._boundary.cross(step, is_last=step == self._total)
        self._step_began += self._boundary.waited_s
        self.sections.skip()
        if is_drained:
            self._drain(self._node, self._boundary, step)

    def section(self, name: str) -> Section:
        """Time a part of the step, so that a slow rank can be told from those that wait for it. ::

            with session.section("forward"):
                loss = model(*batch)

        The seconds go out with the step's report. They are the host's: work of a device counts
        where the host waits for it. Parts may lie within each other, each second counts for the
        innermost; ``backward`` and whatever has ``wait_for``, ``sync`` or ``collective`` in its
        name is taken for time in which ranks wait for each other. Costs about a microsecond.

        Args:
            name: At most 32 different ones in a script; what goes beyond is counted as ``other``.
        """
        return self.sections.named(name)

    def _resume(self) -> int:
        """The step after which a loop begins."""
        if self._current is not None:
            raise UsageError(
                f"the loop was left in the middle of step {self._current}; call session.step() "
                "before `break` to go on in another loop"
            )
        if self._has_left:
            raise UsageError(
                f"the run ended with step {self._completed or self.start_step}; give "
                "session.steps() the number of all steps of the run in the first loop"
            )
        return self.start_step if self._completed is None else self._completed

    # -- beginning and end ------------------------------------------------------------------------

    def _enter(self, node: Node, boundary: Boundary) -> None:
        """Wait for the word to train, then continue from where it says."""
        if node.control().go is None:
            node.tell(RankState(self.rank, "gate", 0))
        go = node.wait_at_gate()
        if go.manifest_key is not None:
            self._restore(node, go)
        self.start_step = go.step
        if boundary.enter(go.step):
            self._drain(node, boundary, go.step)

    def _restore(self, node: Node, go: Go) -> None:
        """Put the state back; a store that is away for a while is waited for.

        After a handover nobody else may train, so that giving up early would end the run.
        """
        assert go.manifest_key is not None
        manifest_key = go.manifest_key

        def restore() -> None:
            checkpoint = open_checkpoint(
                node.open_store(), node.job.run_id, manifest_key, digest=go.manifest_digest
            )
            self.restored = self._state.restore(checkpoint, strict=self._strict)

        patiently(restore)
        if self.restored is not None and not self.restored.fits:
            self._say(str(self.restored))

    def _finish(self, step: int) -> None:
        if self._node is None or self._boundary is None:
            return
        if step > self.start_step:
            self._boundary.stage_last(step)
        self._leave(self._node, RankState(self.rank, "finished", step))

    def _drain(self, node: Node, boundary: Boundary, step: int) -> NoReturn:
        boundary.stage_last(step)
        self._leave(node, RankState(self.rank, "drained", step))
        raise Drained(step)

    def _leave(self, node: Node, state: RankState) -> None:
        self._has_left = True
        atexit.unregister(self._depart)
        node.rows.close()
        node.tell(state)

    # -- a loop that is left early ----------------------------------------------------------------

    def _keep(self) -> None:
        """Copy the state of the last completed step, now that the loop was left.

        Nobody can tell here whether by ``break``, by an error or by ``Drained``; and an error of
        ours would be swallowed, as in any generator that is closed. Both are for ``_depart``.
        """
        step = self._completed
        if self._boundary is not None and self._current is None and step is not None:
            self._boundary.hold(step)

    def _depart(self) -> None:
        """The process ends, and neither ran the loop to its end nor was drained.

        After an error the last checkpoint stands: the state may be the reason for the error.
        """
        assert self._node is not None and self._boundary is not None
        failed = getattr(sys, "last_value", None) is not None
        if failed or (self._completed is None and self._current is None):
            return
        self._keep()
        self._boundary.release_held()
        kept = self._boundary.kept_step or self.start_step
        if self._current is not None:
            self._say(
                f"the loop was left in the middle of step {self._current}, so nothing after step "
                f"{kept} is saved; call session.step() before `break`"
            )
        self._leave(self._node, RankState(self.rank, "finished", self._completed or kept))

    # -- words ------------------------------------------------------------------------------------

    def _report(
        self, node: Node, boundary: Boundary, step: int,
        loss: torch.Tensor | float | None, tokens: int | None,
    ) -> None:  # fmt: skip
        sections = self.sections.take()
        began, self._step_began = self._step_began, time.perf_counter()
        value = loss.detach().item() if isinstance(loss, torch.Tensor) else loss
        node.rows.add(
            StepReport(
                ts=time.time(),
                rank=self.rank,
                step=step,
                loss=None if value is None else float(value),
                tokens=tokens,
                step_s=self._step_began - began,
                rehearsed=boundary.is_limited,
                sections=sections,
            )
        )

    def _say_alone(self) -> None:
        if self.rank != 0:
            return
        self._say(
            "no agent around this process, so nothing is saved; "
            "start the script with %cloudshift train to make it a run"
        )

    def _say(self, what: str) -> None:
        who = "" if self.rank == 0 else f" rank {self.rank}:"
        print(f"cloudshift:{who} {what}", file=sys.stderr)


def _rank_and_world_size() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def patiently(
    call: Callable[[], None],
    *,
    patience_s: float = RESTORE_PATIENCE_S,
    again_s: float = RESTORE_AGAIN_S,
) -> None:
    """Repeat a call while its store is away.

    Raises:
        Unavailable: It was still away after ``patience_s`` seconds.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return call()
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(again_s)
