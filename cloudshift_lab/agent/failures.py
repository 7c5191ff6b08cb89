"""Which rank failed first, and how to say it."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Collection
from pathlib import Path

from cloudshift_lab.agent.bootstrap import LAUNCH_FILE
from cloudshift_lab.agent.protocols import RankError
from cloudshift_lab.core.errors import Corrupt
from cloudshift_lab.core.staging import RankFailure
from cloudshift_lab.core.wire import from_json

_PEER_LOST = re.compile(
    r"connection (reset|closed|refused)|closed by peer|gloo|nccl|timed out", re.I
)


def first_failure(errors: Path, log_tail: str, dead: Collection[int] = ()) -> RankError:
    """The failure that explains the others.

    A rank that lost its peer raises too, often with a worse message than the cause; a rank that
    was killed writes nothing itself, so torchrun's exit codes name it.

    Args:
        errors: Where ranks and launcher wrote.
        log_tail: End of the launcher's log, for a failure that nobody wrote down.
        dead: Ranks whose processes had ended before anybody ended the others, if that is known.
    """
    told = sorted(_told(errors), key=lambda failure: failure.at)
    causes = [failure for failure in told if not _PEER_LOST.search(failure.message)]
    has_told = {failure.rank for failure in told}
    killed = [
        end for end in _killed(errors) if end[0] not in has_told and (not dead or end[0] in dead)
    ]
    if not causes and killed:
        return _by_signal(*killed[0])
    silent = [rank for rank in sorted(dead) if rank not in has_told]
    if not causes and silent:
        return RankError(silent[0], f"rank {silent[0]} ended without a word; see its log")
    if told:
        failure = (causes or told)[0]
        return RankError(failure.rank, failure.message, failure.traceback)
    last = next((line for line in reversed(log_tail.splitlines()) if line.strip()), "")
    reason = f": {last.strip()}" if last else ""
    return RankError(None, f"the ranks ended without saying why{reason}", log_tail)


def is_peer_lost(error: RankError) -> bool:
    """Whether a failure may be no more than what another rank's end did to this one."""
    return _PEER_LOST.search(error.message) is not None


def _told(errors: Path) -> list[RankFailure]:
    found = []
    for path in sorted(errors.glob("rank-*.json")):
        try:
            found.append(from_json(path.read_bytes(), RankFailure, what=path.name))
        except Corrupt:
            continue  # torn by the same death it reports: torchrun's exit code stands for it
    return found


def _killed(errors: Path) -> list[tuple[int, int]]:
    """``(rank, signal)`` of the ranks that a signal ended, except torchrun's own SIGTERM."""
    try:
        ends = json.loads((errors / LAUNCH_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return []
    codes = {int(rank): int(code) for rank, code in ends.items()}
    return [(r, -code) for r, code in sorted(codes.items()) if code < 0 and -code != signal.SIGTERM]


def _by_signal(rank: int, number: int) -> RankError:
    name = signal.Signals(number).name
    hint = " (often: out of memory)" if number == signal.SIGKILL else ""
    return RankError(rank, f"rank {rank} was killed by {name}{hint}; see its log")
