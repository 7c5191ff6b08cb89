"""Plays one job through a recorded market, tick by tick, as a policy decides."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cloudshift_lab.market.places import Choice, Flags, Floats, Look, Places, Policy, Task
from cloudshift_lab.market.safety import SafetyNet
from cloudshift_lab.sim.market.traces import HOUR_S, Benchmark, Scenario, Trace

_ROUNDING_H = 1e-9


@dataclass(frozen=True)
class Hardship:
    """What the headline benchmark leaves out.

    Args:
        checkpoint_h: Training between two committed checkpoints, undone by a preemption; 0: a
            preempted job loses nothing (a just-in-time save).
        gbit_per_s: How fast a checkpoint is carried to another region while nothing trains, after
            a preemption; None: it is there already.
        usd_per_gb: Between regions, as if each were another cloud; None: as the market says.
        share: Of the window that the job lasts.
    """

    checkpoint_h: float = 0.0
    gbit_per_s: float | None = None
    usd_per_gb: float | None = None
    share: float = 1.0


@dataclass(frozen=True, eq=False)
class Episode:
    """One job in one window of a market.

    Args:
        is_up: [ticks, places].
        spot_usd_h: [ticks, places].
        transfer_h: [places, places], while nothing trains.
        checkpoint_h: Between two commits.
    """

    places: Places
    task: Task
    is_up: Flags
    spot_usd_h: Floats
    transfer_h: Floats
    checkpoint_h: float

    @property
    def net(self) -> SafetyNet:
        """What every policy that keeps deadlines needs."""
        return SafetyNet(self.places, self.task, self.transfer_h, self.checkpoint_h)


@dataclass(frozen=True)
class Outcome:
    """What a job came to, USD and hours; ``on_time``: whether it was done by the deadline."""

    usd: float
    egress_usd: float
    on_demand_usd: float
    num_starts: int
    end_h: float
    on_time: bool


@dataclass
class _Job:
    """Where a job stands. ``left_h``: of the start; ``carry_h``: of carrying the checkpoint."""

    done_h: float = 0.0
    durable_h: float = 0.0
    running: Choice | None = None
    home: int | None = None
    left_h: float = 0.0
    carry_h: float = 0.0


def episode(
    trace: Trace, scenario: Scenario, start: int, benchmark: Benchmark,
    hardship: Hardship | None = None,
) -> Episode:  # fmt: skip
    """The job of a scenario that begins at a tick."""
    hard = hardship or Hardship()
    ticks = round(benchmark.window_ticks[scenario.provider] * hard.share)
    window = slice(start, start + ticks)
    deadline_h = ticks * trace.tick_s / HOUR_S
    is_far = trace.usd_per_gb > 0
    usd_per_gb = trace.usd_per_gb
    if hard.usd_per_gb is not None:
        usd_per_gb = np.where(is_far, hard.usd_per_gb, 0.0)
    hours = 0.0 if hard.gbit_per_s is None else scenario.ckpt_gb * 8 / hard.gbit_per_s / HOUR_S
    return Episode(
        places=Places.of(
            trace.zones, trace.regions, trace.on_demand_usd_h, usd_per_gb * scenario.ckpt_gb
        ),
        task=Task(
            work_h=deadline_h / scenario.deadline_ratio, deadline_h=deadline_h,
            start_h=benchmark.job.cold_start_h, tick_h=trace.tick_s / HOUR_S,
        ),
        is_up=trace.is_up[window], spot_usd_h=trace.spot_usd_h[window],
        transfer_h=np.where(is_far, hours, 0.0), checkpoint_h=hard.checkpoint_h,
    )  # fmt: skip


def play(each: Episode, policy: Policy) -> Outcome:
    """Let a policy decide at every tick; a tick that was begun is paid for in full."""
    task, job = each.task, _Job()
    bill = Outcome(0.0, 0.0, 0.0, 0, len(each.is_up) * task.tick_h, on_time=False)
    for tick in range(len(each.is_up)):
        _preempt(job, each.is_up[tick])
        look = Look(
            tick * task.tick_h, job.durable_h, each.spot_usd_h[tick], each.is_up[tick],
            job.running, job.left_h + job.carry_h, job.home,
        )  # fmt: skip
        choice = policy.choose(look)
        bill = _go(each, job, choice, tick, bill)
        if job.running is None:
            continue
        bill = _pay(each, job.running, tick, bill)
        _train(each, job)
        if job.done_h >= task.work_h - _ROUNDING_H:
            return replace(bill, end_h=(tick + 1) * task.tick_h, on_time=True)
    return bill


def _preempt(job: _Job, is_up: Flags) -> None:
    if job.running is None or job.running.mode == "on-demand" or is_up[job.running.place]:
        return
    job.running, job.done_h, job.carry_h = None, job.durable_h, 0.0


def _go(each: Episode, job: _Job, choice: Choice | None, tick: int, bill: Outcome) -> Outcome:
    """Follow a decision; whatever is left by choice is saved first."""
    was_running = job.running is not None
    if choice == job.running:
        return bill
    if was_running:
        job.durable_h = job.done_h
    job.running = choice
    if choice is None:
        return bill
    if choice.mode == "spot" and not each.is_up[tick, choice.place]:
        raise AssertionError(f"{each.places.names[choice.place]} has no spot machines at that time")
    egress_usd = 0.0
    job.left_h, job.carry_h = each.task.start_h, 0.0
    if job.home is not None:
        egress_usd = float(each.places.carry_usd[job.home, choice.place])
        job.carry_h = 0.0 if was_running else float(each.transfer_h[job.home, choice.place])
    if job.carry_h == 0:
        job.home = choice.place
    return replace(
        bill, usd=bill.usd + egress_usd, egress_usd=bill.egress_usd + egress_usd,
        num_starts=bill.num_starts + 1,
    )  # fmt: skip


def _pay(each: Episode, running: Choice, tick: int, bill: Outcome) -> Outcome:
    if running.mode == "spot":
        usd = float(each.spot_usd_h[tick, running.place]) * each.task.tick_h
        return replace(bill, usd=bill.usd + usd)
    usd = float(each.places.on_demand_usd_h[running.place]) * each.task.tick_h
    return replace(bill, usd=bill.usd + usd, on_demand_usd=bill.on_demand_usd + usd)


def _train(each: Episode, job: _Job) -> None:
    """One tick: first what is left of the copy, then of the start, then training and commits."""
    assert job.running is not None
    left_h = each.task.tick_h
    carried = min(job.carry_h, left_h)
    job.carry_h -= carried
    left_h -= carried
    if carried and job.carry_h <= _ROUNDING_H:
        job.carry_h, job.home = 0.0, job.running.place
    started = min(job.left_h, left_h)
    job.left_h -= started
    job.done_h += (left_h - started) * float(each.places.pace[job.running.place])
    if job.running.mode == "on-demand" or each.checkpoint_h == 0:
        job.durable_h = job.done_h
    else:
        commits = np.floor((job.done_h - job.durable_h + _ROUNDING_H) / each.checkpoint_h)
        job.durable_h += float(commits) * each.checkpoint_h
