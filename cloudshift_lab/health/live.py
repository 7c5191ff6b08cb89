"""A run as it goes on: rows and its agent's word in, findings out. No clock, no I/O."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import msgspec
import numpy as np

from cloudshift_lab.core.step_rows import StepRows
from cloudshift_lab.health.finding import Finding
from cloudshift_lab.health.hang import HangLimits, find_hang, hang_limit_s
from cloudshift_lab.health.live_sections import SectionWatch
from cloudshift_lab.health.loss import find_loss_anomalies
from cloudshift_lab.health.windows import LossWindow, ProgressWindow

_STEPS_KEPT = 260
_DURATIONS_KEPT = 64
_USUAL_STEPS = 20
_PAUSE_TIMES = 2.0
_SKEW_S = 5.0
_SILENT_S = 8.0


@dataclass(frozen=True)
class AgentWord:
    """What is known of a run now, beside its rows.

    Args:
        now: Wall-clock seconds of the reader.
        is_training: Its ranks should compute: no start, stop or move is under way.
        step: Newest step that the agent tells of.
        said_at: When the agent said so, seconds of its own clock; None: it has said nothing.
        silent_s: For how long it has said nothing new.
        healed_after: The step after which its ranks began anew the last time; None: they never did.
    """

    now: float
    is_training: bool
    step: int | None = None
    said_at: float | None = None
    silent_s: float = 0.0
    healed_after: int | None = None


class Looked(msgspec.Struct, frozen=True):
    """What was looked at, and what was there: so that "no finding" can be told from "not seen"."""

    what: str
    seen: str


class LiveWatch:
    """Follows the rows of one run. The same rows and words give the same findings.

    Args:
        ranks_per_node: Neighbours in rank order that share a node.
    """

    def __init__(self, ranks_per_node: int) -> None:
        self._per_node = ranks_per_node
        self.generation = -1
        self._begin(-1)

    def _begin(self, generation: int) -> None:
        self.generation = generation
        self._newest: dict[int, tuple[int, float]] = {}
        self._losses: dict[int, list[float]] = {}
        self._given: dict[int, deque[bool]] = {}
        self._durations: deque[float] = deque(maxlen=_DURATIONS_KEPT)
        self._longest_s = (0.0, 0.0)
        self._sections = SectionWatch(self._per_node)
        self._went_back: tuple[int, float] | None = None

    @property
    def newest_at(self) -> float | None:
        """When the newest step ended that is known; None before the first."""
        return max((at for _, at in self._newest.values()), default=None)

    def take(self, rows: StepRows) -> None:
        """Take in rows, oldest first; those that were taken before change nothing.

        A newer generation begins anew; so does a rank that goes back to an earlier step.
        """
        if rows.generation < self.generation or not len(rows):
            return
        if rows.generation > self.generation:
            self._begin(rows.generation)
        columns = zip(
            rows.at.tolist(), rows.rank.tolist(), rows.step.tolist(), rows.loss.tolist(),
            rows.has_loss.tolist(), rows.step_s.tolist(), strict=True,
        )  # fmt: skip
        for number, (at, rank, step, loss, has_loss, step_s) in enumerate(columns):
            known = self._newest.get(rank)
            if known is not None and at <= known[1]:
                continue
            if known is not None and step <= known[0]:
                self._go_back(step, at, was_at=known[1])
            self._newest[rank] = (step, at)
            self._take_loss(step, rank, loss, has_loss=has_loss)
            self._take_duration(step_s, is_first=known is None)
            own_s = {name: float(values[number]) for name, values in rows.sections_s.items()}
            self._sections.take(step, rank, step_s, own_s, num_ranks=len(self._newest))

    def _go_back(self, step: int, at: float, *, was_at: float) -> None:
        """A rank went back, as all do together: what was done from there on is done again."""
        if self._went_back is not None:
            first, when = self._went_back
            if was_at < when and step >= first:
                return
        self._went_back = (step, at)
        for later in [each for each in self._losses if each >= step]:
            del self._losses[later]
        self._sections = SectionWatch(self._per_node)
        self._given.clear()

    def _take_loss(self, step: int, rank: int, loss: float, *, has_loss: bool) -> None:
        """What is no number has no place in JSON and comes as nothing; nothing is told from that
        by the steps before, which all had a loss.
        """
        given = self._given.setdefault(rank, deque(maxlen=_USUAL_STEPS))
        is_usual = len(given) == _USUAL_STEPS and all(given)
        if has_loss or is_usual:
            self._losses.setdefault(step, []).append(loss if has_loss else float("nan"))
        if has_loss or not is_usual:
            given.append(has_loss)
        if len(self._losses) > _STEPS_KEPT:
            del self._losses[min(self._losses)]

    def _take_duration(self, step_s: float, *, is_first: bool) -> None:
        if is_first or not step_s > 0:  # the first one compiles and warms up
            return
        self._durations.append(step_s)
        _, *longest = sorted((*self._longest_s, step_s))
        self._longest_s = (longest[0], longest[1])

    def look(self, word: AgentWord) -> tuple[Finding, ...]:
        """Everything that is found now."""
        return (*self._hang(word), *self._loss(), *self._sections.standing())

    def hang_limit_s(self) -> float:
        """How long no rank may move: a run that pauses regularly (to evaluate) is known for it."""
        return hang_limit_s(self._progress(0.0, 0.0), self._hang_limits())

    def looked(self, word: AgentWord) -> tuple[Looked, ...]:
        """What was looked at."""
        if not self._newest:
            return (Looked("progress", "no step has been reported yet"),)
        step, at = max(self._newest.values())
        told = f"step {step} of {len(self._newest)} ranks"
        if word.is_training:
            still_s = max(0.0, word.now - _offset_s(word) - at)
            told += f", {still_s:.1f} s ago; a hang is {self.hang_limit_s():.0f} s"
        losses = f"{len(self._losses)} steps" if self._losses else "the script reports none"
        return (
            Looked("progress", told), Looked("loss", losses),
            Looked("slow ranks", self._sections.seen()),
        )  # fmt: skip

    def _hang_limits(self) -> HangLimits:
        """What has happened twice is how the run is: one long stall does not blunt the rule."""
        return HangLimits(least_s=max(HangLimits().least_s, _PAUSE_TIMES * self._longest_s[0]))

    def _hang(self, word: AgentWord) -> tuple[Finding, ...]:
        if not word.is_training or not self._newest or word.silent_s > _SILENT_S:
            return ()
        newest = max(step for step, _ in self._newest.values())
        if word.step is not None and word.step > newest:
            return ()  # the rows are late, not the ranks
        if word.healed_after is not None and newest <= word.healed_after:
            return ()  # the ranks are being started
        return find_hang(self._progress(word.now, _offset_s(word)), self._hang_limits())

    def _progress(self, now: float, offset_s: float) -> ProgressWindow:
        """Ranks are in the step after the one they reported last."""
        ranks = sorted(self._newest)
        return ProgressWindow(
            now=now,
            steps=np.array([self._newest[rank][0] + 1 for rank in ranks], np.int64),
            collectives=np.zeros(len(ranks), np.int64),
            still_s=np.array([now - offset_s - self._newest[rank][1] for rank in ranks]),
            sections=("",) * len(ranks),
            step_s=np.array(self._durations),
        )

    def _loss(self) -> tuple[Finding, ...]:
        if not self._losses:
            return ()
        steps = sorted(self._losses)
        means = np.array([float(np.mean(self._losses[step])) for step in steps])
        found = find_loss_anomalies(LossWindow(0, means))
        return tuple(_at_step(each, steps[int(each.at)]) for each in found)


def _offset_s(word: AgentWord) -> float:
    """How far the ranks' clock is behind ours; what can be a message's way counts as nothing."""
    if word.said_at is None:
        return 0.0
    offset_s = word.now - word.silent_s - word.said_at
    return offset_s if abs(offset_s) > _SKEW_S else 0.0


def _at_step(finding: Finding, step: int) -> Finding:
    """Steps that report a loss may be far apart: a row's number becomes its step's."""
    row = f"step {int(finding.at)}"
    evidence = tuple(
        msgspec.structs.replace(each, at=None if each.at is None else step)
        for each in finding.evidence
    )
    return msgspec.structs.replace(
        finding, at=step, evidence=evidence, words=finding.words.replace(row, f"step {step}")
    )
