"""Resuming an ended run: what it must continue from, and the attempt that does."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from cloudshift_lab.conductor.records import AttemptStarted, RunRecord
from cloudshift_lab.core.errors import NotFound
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


def refuse_lost_checkpoint(store: Store, run_id: str, step: int | None, world: World) -> None:
    """See that a store still holds what a run shall continue from.

    The log is read from its beginning: what was seen of it earlier may be gone.

    Raises:
        NotFound: It does not; starting again from step 1 would pass for continuing.
    """
    if step is None:
        return
    commits = RunLog(store, run_id, world).sync().commits
    if all(commit.step != step for commit in commits):
        raise NotFound(
            f"{store.url} no longer holds {run_id}'s checkpoint of step {step}; "
            "bring that bucket back, or start a new run"
        )


def resumed_attempt(
    owner: AttemptStarted, *, generation: int, restore_step: int | None, folder: Path, world: World
) -> AttemptStarted:
    """The attempt that goes on where the last owner was.

    Args:
        owner: The last owner.
        generation: Its own, new one.
        restore_step: Must be committed; later commits, if any, are continued from instead.
        folder: The run's, below the state directory.
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
    )
    return msgspec.structs.replace(owner, job=job, at=world.now(), migration_id=None)
