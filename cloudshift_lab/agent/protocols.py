"""What the node agent needs of its ranks and of its saver; real in this room, simulated in sim."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from cloudshift_lab.checkpoint.saving import FailedAnswer, Outcome, SavedAnswer

RanksState = Literal[
    "absent", "starting", "gate", "running", "held", "drained", "finished", "failed"
]


@dataclass(frozen=True)
class Restore:
    """The committed step that ranks continue from, in the agent's own store."""

    step: int
    manifest_key: str
    manifest_digest: str


@dataclass(frozen=True)
class RankError:
    """The first failure among the ranks; ``rank`` is None when it cannot be blamed on one."""

    rank: int | None
    message: str
    traceback: str = ""


@dataclass(frozen=True)
class RanksView:
    """All ranks of the attempt at one moment.

    ``absent``: never started. ``gate``: every rank is built and waits for ``go``. ``held``: every
    rank waits after ``held_step`` for the limit to be raised. ``drained``: every rank has staged
    its last state for a drain and will not run another step. ``finished``: every rank has exited by
    itself with code 0.
    ``staged_step`` is the newest step that *every* rank has staged completely; ``staged_last``
    says that no rank will execute another one (so that step closes the attempt).
    ``first_step_at`` and ``last_step_at`` are wall-clock seconds of this start's steps without
    those under a limit. ``num_steps``, all without the first (which compiles), took ``steps_s``
    seconds together; ``step_s`` is the median of the newest of them.
    ``losses``: the newest steps of rank 0 with their exact losses, oldest first, at most 64.
    ``staged_loss`` is the loss of the staged step, if it was told. ``warning`` is a rank's own.
    ``nodes_up``: nodes whose agents are there, this one included.
    """

    state: RanksState = "absent"
    step: int | None = None
    loss: float | None = None
    first_step_at: float | None = None
    last_step_at: float | None = None
    staged_step: int | None = None
    staged_last: bool = False
    staged_loss: float | None = None
    state_bytes: int = 0
    num_steps: int = 0
    steps_s: float = 0.0
    step_s: float | None = None
    held_step: int | None = None
    losses: tuple[tuple[int, float], ...] = ()
    warning: str | None = None
    error: RankError | None = None
    nodes_up: int = 1


class RanksProtocol(Protocol):
    """The ranks of this node. No call blocks for long; none raises for a rank's failure."""

    def start(self, restore: Restore | None, *, standby: bool) -> None:
        """Start all ranks (again); what an earlier start had staged or reported is forgotten.

        Args:
            restore: Where to continue; None for a fresh start, or for standby.
            standby: Build everything, then wait at the gate for ``go``.
        """

    def restart(self) -> None:
        """Start all ranks again, up to the gate; what they had staged stays until ``go``."""

    def go(self, restore: Restore | None, limit: int | None = None) -> None:
        """Open the gate; said again with the same words it changes nothing.

        Args:
            restore: Where to continue; None: at the script's own beginning.
            limit: The ranks hold after this step, as ``limit`` says; None: they train on.
        """

    def limit(self, step: int | None) -> None:
        """Have all ranks hold after ``step`` until a later one is said; None: they train on.

        What they do under a limit is a rehearsal: the policy captures nothing then, and step
        reports are marked. A limit that is set while they run freely is heard a step or two later.
        """

    def request_drain(self) -> None:
        """Ask for a last state: all ranks stop after the same step, stage it and exit."""

    def capture(self) -> None:
        """Ask for a state to save: all ranks stage the same step soon, and go on.

        Under a limit it is the step after which they hold that is staged, while they hold.
        """

    def release(self, step: int) -> None:
        """The staged ``step`` is committed: its memory may be used for the next one."""

    def poll(self) -> RanksView:
        """Where the ranks are now."""

    def kill(self) -> None:
        """End every rank at once; nothing more is staged. No error when there is none."""


Saved = SavedAnswer
"""A staged step whose packs, rank records and manifest are in the store, not yet committed."""

SaveFailed = FailedAnswer
"""A save that did not get through; the staged step is still there to be saved again."""


class SaverProtocol(Protocol):
    """Encodes and uploads staged steps, one at a time, without holding up anybody."""

    def start(self, step: int, *, standalone: bool = False) -> None:
        """Begin to save a staged step; ``standalone``: without deltas. Only when not busy."""

    @property
    def busy(self) -> bool:
        """Whether a save has begun whose outcome ``poll`` has not returned yet."""

    def poll(self) -> Outcome | None:
        """The outcome of the save, once; None while there is none."""

    def abandon(self) -> None:
        """Have the save under way end soon, as failed with ``Conflict``: another matters more."""

    def learn(self, manifest_key: str, manifest_digest: str) -> None:
        """A manifest was committed: its chunks need not be uploaded again."""

    def close(self) -> None:
        """Stop at once; an unfinished save is given up."""
