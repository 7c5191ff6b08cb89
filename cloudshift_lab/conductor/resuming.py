"""What a run must continue from, also a branch at its beginning, and the attempt that does."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from cloudshift_lab.checkpoint.branch import branch
from cloudshift_lab.conductor.records import AttemptStarted, RunCreated, RunRecord
from cloudshift_lab.conductor.side import Side
from cloudshift_lab.core.errors import Conflict, NotFound, UsageError
from cloudshift_lab.core.orders import AgentStatus
from cloudshift_lab.core.world import World
from cloudshift_lab.migration import Saga
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.store import Store


def newest_commit_step(
    record: RunRecord, status: AgentStatus | None, sagas: Iterable[Saga]
) -> int | None:
    """The newest step that is known to be committed; None when none ever was.

    Committed steps never go back along a run's logs, so the largest one is the newest.
    """
    told = [
        None if status is None else status.committed_step,
        None if record.ended is None else record.ended.checkpoint_step,
        *(attempt.job.restore_step for attempt in record.attempts.values()),
        *(saga.sealed_step for saga in sagas),
    ]
    return max((step for step in told if step is not None), default=None)


def take_over_origin(created: RunCreated, side: Side, world: World) -> None:
    """Put the step that a branch begins with into its log, before its first attempt starts.

    Args:
        created: The run as it began.
        side: The attempt that is about to start; only the first one has something to take over.
        world: Clock and nonces.
    """
    origin = created.origin
    if origin is None or side.job.generation != created.first.job.generation:
        return
    owner = side.job.owner
    branch(side.store, origin.run_id, origin.step, created.run_id, owner=owner, world=world)


def refuse_resume(record: RunRecord, *, is_moving: bool) -> None:
    """Raise what stands against going on with a run now.

    Args:
        record: The run.
        is_moving: Whether the end of a move is still being settled.

    Raises:
        UsageError: It has not ended, or it has finished.
        Conflict: It is moving.
    """
    run_id, ended = record.run_id, record.ended
    if ended is None:
        raise UsageError(f"{run_id} has not ended; see: cloudshift watch {run_id}")
    if ended.state == "finished":
        raise UsageError(f"{run_id} has finished; nothing is left to resume")
    if is_moving:
        raise Conflict(f"the last move of {run_id} is not settled yet; try again soon")


def refuse_lost_checkpoint(store: Store, run_id: str, step: int | None, world: World) -> int | None:
    """See that a store still holds what a run shall continue from; the newest step it holds.

    The log is read from its beginning: what was seen of it earlier may be gone.

    Raises:
        NotFound: It does not; starting again from step 1 would pass for continuing.
    """
    commits = RunLog(store, run_id, world).sync().commits
    if step is not None and all(commit.step != step for commit in commits):
        raise NotFound(
            f"{store.url} no longer holds {run_id}'s checkpoint of step {step}; "
            "bring that bucket back, or start a new run"
        )
    return max((commit.step for commit in commits if commit.step is not None), default=None)


def resumed_attempt(
    owner: AttemptStarted, *, generation: int, restore_step: int | None, folder: Path,
    exclude: tuple[str, ...], world: World,
) -> AttemptStarted:  # fmt: skip
    """The attempt that goes on where the last owner was.

    Args:
        owner: The last owner.
        generation: Its own, new one.
        restore_step: Must be committed; later commits, if any, are continued from instead.
        folder: The run's, below the state directory.
        exclude: Machines that it must not use.
        world: Clock and ids.
    """
    job = msgspec.structs.replace(
        owner.job,
        generation=generation,
        owner=f"{owner.job.run_id}:resume-{generation}:{world.new_id('owner')}",
        workdir=str(folder / "attempts" / str(generation)),
        standby=False,
        restore_step=restore_step,
        source_cloud=None,
        source_url=None,
        exclude=exclude,
    )
    return msgspec.structs.replace(owner, job=job, at=world.now(), migration_id=None)
