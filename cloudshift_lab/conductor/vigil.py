"""Watches every live run: newest rows go through the detectors, findings are written down."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from cloudshift_lab.conductor.automation import load_automation
from cloudshift_lab.conductor.moves import Surroundings
from cloudshift_lab.conductor.registry import Registry
from cloudshift_lab.conductor.requests import ask_people
from cloudshift_lab.conductor.stacks import find_py_spy, rank_stacks
from cloudshift_lab.conductor.tending import RunTender
from cloudshift_lab.conductor.wellbeing import (
    Heal,
    agent_word,
    facts_found,
    found_in_rows,
    goodput_report,
    health_report,
    newest_heal,
    watch_from_rows,
)
from cloudshift_lab.core.errors import CloudshiftError
from cloudshift_lab.health.finding import Finding, Severity
from cloudshift_lab.health.hang import name_hang
from cloudshift_lab.health.live import LiveWatch, Looked
from cloudshift_lab.health.report import GoodputReport, HealthReport
from cloudshift_lab.health.standing import QUIET_S, Change, Standing, stand
from cloudshift_lab.telemetry import schema
from cloudshift_lab.telemetry.findings import (
    found_row,
    gone_row,
    heal_row,
    heals,
    leave,
    newest_rows,
    past_findings,
    save_row,
)
from cloudshift_lab.telemetry.store import TelemetryStore

LOOK_EVERY_S = 1.0
_AGAIN_S = 2.0
"""Rows may come late: so far back they are read again."""
_OFF_S = 3600.0
"""So far clocks of ranks may be behind ours before their first rows are overlooked."""
_LEVELS: dict[Severity, schema.Severity] = {
    "info": "info", "watch": "info", "warning": "warning", "critical": "error",
}  # fmt: skip


class Vigil:
    """Follows all live runs of a conductor from a thread of its own.

    Args:
        registry: Whose runs.
        around: What the conductor shares.
        telemetry: Where the rows are, and the findings go.
        stacks: Looks at the ranks of an attempt on this machine by its folder; None: nothing can.
    """

    def __init__(
        self, registry: Registry, around: Surroundings, telemetry: TelemetryStore, *,
        stacks: Callable[[Path], dict[int, str]] | None = None,
    ) -> None:  # fmt: skip
        self._registry = registry
        self._around = around
        self._telemetry = telemetry
        self._stacks = stacks or _py_spy_stacks()
        self._followed: dict[str, _Followed] = {}
        self._lock = threading.Lock()
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="vigil", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, patience_s: float = 3.0) -> None:
        """Look no more; waits a moment for a look that is under way."""
        self._is_stopping.set()
        if self._thread.ident is not None:
            self._thread.join(patience_s)

    def _loop(self) -> None:
        while not self._is_stopping.wait(LOOK_EVERY_S):
            self.look()

    def look(self) -> None:
        """Look at every live run once."""
        for tender in self._registry.all():
            if not tender.is_live:
                self._followed.pop(tender.run_id, None)
                continue
            try:
                self._follow(tender).look()
            except CloudshiftError as error:
                self._follow(tender).trouble = error.message
            except Exception:  # noqa: BLE001 - logged: our own bug must not end the watch of others
                traceback.print_exc(file=sys.stderr)

    def _follow(self, tender: RunTender) -> _Followed:
        with self._lock:
            if tender.run_id not in self._followed:
                self._followed[tender.run_id] = _Followed(
                    tender, self._around, self._telemetry, self._stacks
                )
            return self._followed[tender.run_id]

    # -- asked by people ---------------------------------------------------------------------------

    def health(self, tender: RunTender) -> HealthReport:
        """What stands against a run now, what stood, and what was looked at."""
        now, followed = self._around.world.now(), self._followed.get(tender.run_id)
        if followed is None or not tender.is_live:
            watch = watch_from_rows(self._telemetry, tender)
            return health_report(self._telemetry, tender, watch, now)
        with followed.lock:
            return health_report(
                self._telemetry, tender, followed.watch, now, standing=followed.standing,
                also=followed.looked(),
            )  # fmt: skip

    def goodput(self, tender: RunTender) -> GoodputReport:
        """What a run's time went into, and what is to be expected.

        Raises:
            UsageError: It has not trained yet.
        """
        followed = self._followed.get(tender.run_id)
        standing = () if followed is None else followed.standing
        return goodput_report(
            self._telemetry, tender, self._around.run_folder(tender.run_id),
            self._around.world.now(),
            is_still=any(each.finding.rule_id.startswith("hang.") for each in standing),
        )  # fmt: skip


class _Followed:
    """One run: its watch, what stands against it, and what was written of that."""

    def __init__(
        self, tender: RunTender, around: Surroundings, telemetry: TelemetryStore,
        stacks: Callable[[Path], dict[int, str]] | None,
    ) -> None:  # fmt: skip
        self.lock = threading.Lock()
        self.standing: tuple[Standing, ...] = ()
        self.trouble: str | None = None
        self._tender = tender
        self._around = around
        self._telemetry = telemetry
        self._stacks = stacks
        self._nonce = around.world.new_id("vigil")
        self._num_batches = 0
        self._committed: tuple[int, int] | None = None
        self._hang: tuple[float | None, Finding] | None = None
        self._heal: Heal | None = None
        self._since = around.world.now()
        self._left_open = {
            each.key for each in past_findings(telemetry, tender.run_id) if each.until is None
        }
        self.watch: LiveWatch = watch_from_rows(telemetry, tender)

    def look(self) -> None:
        """Read what is new, judge it, and write down what has changed."""
        tender, now = self._tender, self._around.world.now()
        with self.lock:
            self._read()
            word = agent_word(tender, now)
            found = [self._named(each) for each in found_in_rows(tender, self.watch, word)]
            change = stand(self.standing, (*facts_found(tender, now), *found), now)
            self.standing = change.standing
            self.trouble = None
        self._write(change, now)
        for each in change.raised:
            self._ask_people(each.finding, now)

    def _ask_people(self, finding: Finding, now: float) -> None:
        """Have a machine looked after; of several nodes only the first one's is known."""
        owner, around = self._tender.owner, self._around
        if any(rank >= owner.job.placement.ranks_per_node for rank in finding.ranks):
            return
        ask_people(
            finding, self._tender.side(owner).machine(), around.maintenance,
            load_automation(around.root), run_id=self._tender.run_id, now=now,
        )  # fmt: skip

    def looked(self) -> tuple[Looked, ...]:
        """What else is to be told of the looks."""
        spying = "installed" if self._stacks else "not installed: a hang's rank may stay unnamed"
        trouble = () if self.trouble is None else (Looked("trouble", self.trouble),)
        return (Looked("stacks", f"py-spy is {spying}"), *trouble)

    def _read(self) -> None:
        """Rows of the owner since the newest that is known: a table of weeks is not read anew."""
        owner, watch = self._tender.owner, self.watch
        generation, newest_at = owner.job.generation, watch.newest_at
        if generation == watch.generation and newest_at is not None:
            since = newest_at - _AGAIN_S
        else:
            since = owner.at - _OFF_S
        watch.take(
            newest_rows(self._telemetry, self._tender.run_id, generation=generation, since=since)
        )

    def _named(self, finding: Finding) -> Finding:
        """A hang with its culprit, by the ranks' stacks; they are looked at once per hang."""
        if not finding.rule_id.startswith("hang.") or self._stacks is None:
            return finding
        if self._hang is None or self._hang[0] != self.watch.newest_at:
            workdir = Path(self._tender.owner.job.workdir)
            self._hang = (self.watch.newest_at, name_hang(finding, self._stacks(workdir)))
        return self._hang[1]

    def _write(self, change: Change, now: float) -> None:
        run_id, generation = self._tender.run_id, self._tender.owner.job.generation
        rows = [
            found_row(
                run_id, generation, now, key=each.key, words=each.finding.words,
                severity=_LEVELS[each.finding.severity],
            )
            for each in change.raised
        ]  # fmt: skip
        gone = {each.key for each in change.gone} | self._gone_while_away(now)
        rows += [gone_row(run_id, generation, now, key=key) for key in sorted(gone)]
        saved = self._newly_saved()
        if saved is not None:
            step, lost_s = saved
            rows.append(save_row(run_id, generation, now, step=step, lost_s=lost_s))
        rows += self._newly_healed(now)
        if rows:
            self._num_batches += 1
            leave(self._telemetry, f"{run_id}-{self._nonce}-{self._num_batches}", rows)

    def _gone_while_away(self, now: float) -> set[str]:
        """What an earlier conductor found and we have not, in as long as makes a finding gone."""
        self._left_open -= {each.key for each in self.standing}
        if now - self._since < QUIET_S:
            return set()
        gone, self._left_open = self._left_open, set()
        return gone

    def _newly_healed(self, now: float) -> list[schema.EventRow]:
        """That the ranks began anew since the last look, once however often that is looked at."""
        tender, status = self._tender, self._tender.status
        heal = None if status is None else newest_heal(status)
        if heal is None or heal == self._heal:
            return []
        self._heal = heal
        if heal.step in heals(self._telemetry, tender.run_id):
            return []
        generation = tender.owner.job.generation
        return [heal_row(tender.run_id, generation, now, step=heal.step, words=heal.words)]

    def _newly_saved(self) -> tuple[int, float | None] | None:
        """A step that was committed since the last look, and what that save took of training."""
        status = self._tender.status
        if status is None or status.committed_step is None:
            return None
        newest = (status.generation, status.committed_step)
        before, self._committed = self._committed, newest
        if before == newest or (before is None and self._is_old(status.committed_at)):
            return None
        return status.committed_step, status.saves.lost_s

    def _is_old(self, at: float | None) -> bool:
        """Committed before this conductor could see it: an earlier one has noted it."""
        return at is None or self._around.world.now() - at > LOOK_EVERY_S * 5


def _py_spy_stacks() -> Callable[[Path], dict[int, str]] | None:
    py_spy = find_py_spy()
    if py_spy is None:
        return None
    return lambda workdir: rank_stacks(workdir, py_spy)
