"""How many bytes a move of this very run will carry, measured on its last saves."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong
from typing import NamedTuple

from cloudshift_lab.checkpoint.copy import copy_plan
from cloudshift_lab.checkpoint.predict import predict_step
from cloudshift_lab.checkpoint.reader import open_checkpoint
from cloudshift_lab.core.errors import CloudshiftError
from cloudshift_lab.core.money import format_bytes
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.store import Store

DEADLINE_S = 5.0
_CONCURRENCY = 8
_STEPS_LATER = 100  # the drained step is no direct successor of a commit: nothing can be replayed


class Forecast(NamedTuple):
    """Bytes of a move ``before`` the pause and ``within`` it; in words how that is known."""

    before: int
    within: int
    brief: str
    reason: str

    @property
    def num_bytes(self) -> int:
        return self.before + self.within


def forecast(source: Store, target: Store, run_id: str) -> Forecast | None:
    """What the target lacks of the newest checkpoint, and what the last save will add to it.

    Args:
        source: Where the run is.
        target: Where it would go.
        run_id: Which run.

    Returns:
        None when nothing is stored yet.

    Raises:
        Corrupt: A manifest or record is damaged.
        Unavailable, Denied, NotFound: As a store reported.
    """
    commits = RunLog(source, run_id).sync().commits
    if not commits:
        return None
    newest, *older = [open_checkpoint(source, run_id, commit) for commit in commits[:-3:-1]]
    last_save = predict_step(
        newest, older[0] if older else None, steps_later=_STEPS_LATER, concurrency=_CONCURRENCY
    )
    lacking = copy_plan(
        source, target, run_id, newest.manifest_key, newest.manifest_digest,
        concurrency=_CONCURRENCY,
    ).num_bytes  # fmt: skip
    total = format_bytes(lacking + last_save.expected_bytes)
    gap = _range(last_save.low, last_save.high)
    return Forecast(
        lacking,
        last_save.expected_bytes,
        f"{format_bytes(lacking)} before the pause, {gap} in it (measured on this run)",
        f"To carry about {total}: {format_bytes(lacking)} of the newest checkpoint that the "
        f"target lacks, then {gap} for the last step, "
        f"measured on this run ({last_save.basis}).",
    )


def _range(low: int, high: int) -> str:
    if format_bytes(low) == format_bytes(high):
        return format_bytes(low)
    return f"{format_bytes(low)} to {format_bytes(high)}"


class Carried(NamedTuple):
    """What a move will carry, or why that is not known."""

    forecast: Forecast | None
    why_not: str = ""


class Forecaster:
    """Makes forecasts without letting a slow store hold a plan up."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="forecast")

    def close(self) -> None:
        """Begin no more; what is under way ends by the stores' own deadlines."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def ask(self, source: Store, target: Store, run_id: str) -> Carried:
        """A forecast, if the stores tell it in time."""
        asked: Future[Forecast | None] = self._pool.submit(forecast, source, target, run_id)
        try:
            made = asked.result(DEADLINE_S)
        except TookTooLong:
            asked.cancel()
            return Carried(None, f"the stores did not tell within {DEADLINE_S:.0f} s")
        except CloudshiftError as error:
            return Carried(None, error.message.partition(";")[0])
        return Carried(made, "" if made else "nothing is stored yet")
