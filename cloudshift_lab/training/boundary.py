"""What a rank does between two steps: hears its agent, agrees with the others, captures."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import nn

from cloudshift_lab.core.errors import CloudshiftError, Exhausted
from cloudshift_lab.core.save_policy import fixed_steps
from cloudshift_lab.core.staging import RankState
from cloudshift_lab.training.agreement import Agreement, Flags
from cloudshift_lab.training.arena import Arena
from cloudshift_lab.training.capture import Capture
from cloudshift_lab.training.flight import Lost
from cloudshift_lab.training.inventory import Optimizers, listed
from cloudshift_lab.training.node import Node
from cloudshift_lab.training.parts import Part, Share
from cloudshift_lab.training.rescue import Lifeline
from cloudshift_lab.training.state import TrainingState
from cloudshift_lab.training.watching import Watch

NUM_MARKED = 32
LIMIT_POLL_S = 0.005


class Boundary:
    """Captures the state when the policy, the agent or the end of the loop wants it.

    Whether to capture is decided from what all ranks agreed upon and from the step alone, so that
    all ranks capture the same steps. A rank that loses its copy tells the others at the next
    boundary; all then drop the step, which nobody could save.

    Under a limit the ranks hold after its step. They agree anew whenever one of them has heard
    something, until the limit that all know of is a later one: each sees the agent's words at
    moments of its own, but none leaves, captures or stops without the others. ``waited_s`` is the
    time that the newest boundary was held, seconds.

    Args:
        node: The agent's line.
        state: What to capture.
        optimizers: Of the state.
        model: Of the state.
        world_size: Ranks of the job.
        say: Shows the researcher a line.
    """

    def __init__(
        self,
        node: Node,
        state: TrainingState,
        optimizers: Optimizers,
        model: nn.Module,
        *,
        world_size: int,
        say: Callable[[str], None],
    ) -> None:
        self._node = node
        self._state = state
        self._say = say
        self._agreement = Agreement()
        arena = Arena(
            node.node_dir,
            node.rank,
            world_size,
            released=lambda: node.control().released_step,
            say=say,
        )
        self._capture = Capture(arena, listed(optimizers), model, say=partial(self._warn, "copy"))
        self._every = fixed_steps(node.job.save_policy)
        self._warnings: dict[str, str] = {}
        self._has_failed = False
        self._num_served = 0
        self._is_first = True
        self._state_word: Literal["running", "held"] = "running"
        self.waited_s = 0.0
        self._step = 0
        self._marked: tuple[Part, ...] | None = None
        self._mark: Watch | None = None
        self._lifeline: Lifeline | None = None
        if node.job.restarts > 0 and node.job.placement.nodes == 1:
            self._lifeline = Lifeline(
                node, state, listed(optimizers), world_size=world_size,
                is_steady=self._is_steady, say=say,
            )  # fmt: skip

    @property
    def kept_step(self) -> int | None:
        """The newest step that is announced or held."""
        return self._capture.held_step or self._capture.staged_step

    @property
    def is_limited(self) -> bool:
        """Whether the ranks have agreed upon a limit: what they do is a rehearsal."""
        return self._agreement.limit is not None

    def enter(self, step: int) -> bool:
        """Training begins after ``step``, unless the limit is reached already.

        Returns:
            Whether all ranks stop here, to be drained.

        Raises:
            UsageError: A leaf that a checkpoint cannot hold.
        """
        self._step = step
        self._tell()
        if self._lifeline is not None:
            self._lifeline.enter(step)
        flags = self._agreement.agree(self._heard())
        return flags.holds(step) and self._wait(step).drain

    def cross(self, step: int, *, is_last: bool) -> bool:
        """Pass the boundary after ``step``.

        Returns:
            Whether all ranks stop here, to be drained.

        Raises:
            UsageError: A leaf that a checkpoint cannot hold.
        """
        self._step = step
        if self._lifeline is not None:
            self._lifeline.mark(step)
        if self._mark is not None:
            self._mark.begin()
        self._capture.settle()
        flags = self._agreement.read()
        self.waited_s = 0.0
        if flags.holds(step):
            flags, is_wanted = self._wait(step), False
        else:
            is_wanted = self._drop(flags) or (self._is_due(step, flags) and not flags.is_busy)
        if is_last or flags.drain:
            return flags.drain and not is_last
        if is_wanted:
            self._num_served = flags.capture
            self._begin(step, self._capture.begin)
        elif self._is_first:
            self._rehearse(step)
        if self._is_first:
            self._is_first = False
            self._tell()
        self._agreement.send(self._heard())
        return False

    def stage_last(self, step: int) -> None:
        """Capture the state after which no step follows; it is announced on return.

        Raises:
            Exhausted: The shared memory is full.
            UsageError: A leaf that a checkpoint cannot hold.
        """
        self._capture.begin(step, self._state.share(step), is_last=True)

    def hold(self, step: int) -> None:
        """Copy a state that is perhaps the last; ``release_held`` announces it.

        Nothing is raised: this runs while a generator is closed, which would swallow it.
        """
        try:
            self._capture.finish()
            if step == self.kept_step or sys.is_finalizing():
                return
            changed = None if self._mark is None else self._mark.changed()
            if changed is not None:
                self._say(
                    f"step {step} is not saved: '{changed}' was changed after it, outside of the "
                    "loop; write `for step in session.steps(n)`, so that its end is seen at once"
                )
                return
            self._capture.hold(step, self._state.share(step))
        except CloudshiftError as error:
            self._say(f"step {step}, after which the loop was left, is not saved: {error.message}")

    def release_held(self) -> None:
        """Announce what is under way or held."""
        self._capture.finish()
        self._capture.announce_held()

    def _is_steady(self) -> bool:
        """Whether only the optimizer's steps are seen to change parameters."""
        is_seen = self._mark is not None and self._mark.changed() is not None
        return self._capture.mode == "overlapped" and not is_seen

    # -- the limit --------------------------------------------------------------------------------

    def _wait(self, step: int) -> Flags:
        """Hold until the limit is raised or a drain is asked for; saves are taken at once.

        No rank waits for others in vain: whoever sees a word that not all have heard makes all
        agree again, and all will see it.
        """
        began = time.perf_counter()
        self._capture.finish()
        while True:
            flags = self._agreement.agree(self._heard())
            self._serve(step, flags)
            if flags.drain or not flags.holds(step):
                break
            self._enter_state("held")
            self._rest(flags.serial)
        self._enter_state("running")
        self.waited_s = time.perf_counter() - began
        return flags

    def _rest(self, heard: int) -> None:
        """Until this rank's agent has news; other agents' news only their ranks can tell."""
        time.sleep(LIMIT_POLL_S)
        while self._node.job.placement.nodes == 1 and self._node.control().serial <= heard:
            time.sleep(LIMIT_POLL_S)

    def _serve(self, step: int, flags: Flags) -> None:
        """Take a save that was asked for, once the one before is committed."""
        is_again = self._drop(flags)
        if (is_again or flags.capture > self._num_served) and not flags.is_busy:
            self._num_served = flags.capture
            self._begin(step, self._capture.take)

    # -- captures ---------------------------------------------------------------------------------

    def _is_due(self, step: int, flags: Flags) -> bool:
        if flags.limit is not None:
            return False  # what is rehearsed is saved only where it is held
        is_wanted = flags.capture > self._num_served
        return is_wanted or (self._every is not None and step % self._every == 0)

    def _begin(self, step: int, capture: Callable[[int, Share], None]) -> None:
        try:
            capture(step, self._share(step))
        except Exhausted as error:
            self._has_failed = True
            self._warn("room", f"step {step} is not saved: {error.message}")
        else:
            self._calm("room")

    def _rehearse(self, step: int) -> None:
        try:
            self._capture.rehearse(self._share(step))
        except Exhausted as error:
            self._warn("room", f"nothing will be saved: {error.message}")

    def _share(self, step: int) -> Share:
        """This rank's share; its values are remembered, as those at every later boundary."""
        share = self._state.share(step)
        if share.steady is not self._marked:
            names = [part.name for part in share.steady]
            tensors = [part.tensor for part in share.steady]
            self._mark = Watch(names, tensors, max_sampled=NUM_MARKED)
            self._mark.begin()
            self._marked = share.steady
        return share

    def _drop(self, flags: Flags) -> bool:
        """Drop a step that some rank has lost; whether to capture again at once."""
        if flags.lost == Lost.NOTHING:
            return False
        self._capture.drop()
        self._has_failed = False
        return flags.lost == Lost.TORN

    def _heard(self) -> Flags:
        control = self._node.control()
        lost = max(self._capture.lost, Lost.FAILED if self._has_failed else Lost.NOTHING)
        is_busy = self._capture.is_busy
        return Flags(control.drain, is_busy, control.capture, lost, control.limit, control.serial)

    # -- words ------------------------------------------------------------------------------------

    def _warn(self, topic: str, what: str) -> None:
        """Show a warning here and let the agent show it; one per topic."""
        if topic not in self._warnings:
            self._say(what)
        self._warnings[topic] = what
        self._tell()

    def _calm(self, topic: str) -> None:
        if self._warnings.pop(topic, None) is not None:
            self._tell()

    def _enter_state(self, state: Literal["running", "held"]) -> None:
        if state != self._state_word:
            self._state_word = state
            self._tell()

    def _tell(self) -> None:
        self._node.tell(
            RankState(
                self._node.rank,
                self._state_word,
                self._step,
                state_bytes=self._state.state_bytes,
                warning="; ".join(self._warnings.values()) or None,
            )
        )
