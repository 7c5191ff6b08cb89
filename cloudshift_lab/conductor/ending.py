"""How a run has ended: its last facts from its agent's last word, and the words for losing it."""

from __future__ import annotations

import msgspec

from cloudshift_lab.conductor.noticing import is_outlived, taken_words
from cloudshift_lab.conductor.records import AttemptStarted, Outcome, RunEnded, RunRecord
from cloudshift_lab.core.orders import AgentStatus


def ended_as(
    state: Outcome, at: float, error: str | None, status: AgentStatus | None, *, is_gone: bool
) -> RunEnded:
    """A run's end; where its agent never spoke, nothing else is known of it."""
    bare = RunEnded(state=state, at=at, error=error, is_gone=is_gone)
    if status is None:
        return bare
    return msgspec.structs.replace(
        bare,
        error_rank=status.error_rank,
        traceback=status.traceback,
        step=status.step,
        loss=status.loss,
        checkpoint_step=status.committed_step,
        checkpoint_at=status.committed_at,
        heard_at=status.at,
    )


def loss_words(
    record: RunRecord, owner: AttemptStarted, status: AgentStatus | None, *, kept: str, now: float
) -> str:
    """Why a run is lost; with what to do, where it does not go on by itself.

    Args:
        record: The run.
        owner: The attempt that is gone.
        status: Its agent's last word.
        kept: What is saved.
        now: Wall-clock seconds.
    """
    notice = record.notices.get(owner.job.generation)
    goes_on = record.spec.restart == "auto"
    if notice is not None and not is_outlived(notice, status, now=now):
        words = taken_words(notice, kept)
        advice = "continue it where there is one with"
    else:
        words = f"the agent ended without a word ({kept})"
        advice = f"see `cloudshift logs {record.run_id}`, then continue it with"
    return words if goes_on else f"{words}; {advice} `cloudshift resume {record.run_id}`"
