"""``health replay``: what a real trace of node faults costs a job, practice after practice.

REAL: which node faults when and for how long. SIMULATED: the job and where it is placed (random, by
seed), and how long detection, restart and saves take, which are given for each practice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.save_policy import NODE_MTBF_H, young_daly_interval_s
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.health.goodput import GoodputFacts, forecast
from cloudshift_lab.sim.bench import surroundings
from cloudshift_lab.sim.bench.rows import Result, Row, at_least, row
from cloudshift_lab.sim.bench.table import table
from cloudshift_lab.sim.health.data import faults
from cloudshift_lab.sim.health.node_faults import CLEAN_PER_FAULTY
from cloudshift_lab.sim.health.placing import (
    DAY_S,
    PLACINGS,
    Fleet,
    Interruptions,
    Placing,
    interruptions,
)

STEP_S = 10.0
MOST_NODES, SHARE_OF_FLEET = 124, 0.45
_MONTH_S = 30 * DAY_S


@dataclass(frozen=True)
class Setup:
    """What is replayed. ``nodes`` None: 124, or 45 % of a smaller fleet."""

    nodes: int | None = None
    seeds: int = 20


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """A practice; seconds. ``interval_s`` None: Daly's optimum for the assumed failure rate."""

    name: str
    detect_s: float
    restart_s: float
    save_s: float
    interval_s: float | None = None
    jit_share: float = 0.0
    jit_s: float = 0.0
    placing: Placing = "back"


_MANUAL = Way(
    name="3 h checkpoints, restarted by hand", detect_s=1800, restart_s=1800, save_s=60,
    interval_s=3 * 3600.0,
)  # fmt: skip
_DALY = msgspec.structs.replace(_MANUAL, name="+ Daly's interval", interval_s=None)
_FOUND = msgspec.structs.replace(
    _DALY, name="+ detection and automatic restart", detect_s=60, restart_s=300
)
_ASYNC = msgspec.structs.replace(_FOUND, name="+ asynchronous saves", save_s=2)
_JIT = msgspec.structs.replace(_ASYNC, name="+ just-in-time saves", jit_share=0.9, jit_s=10)
_WARM = msgspec.structs.replace(_JIT, name="+ spares and interpreters kept warm", restart_s=120)
_PLACED = msgspec.structs.replace(_WARM, name="+ placement by history", placing="history")
WAYS = (_MANUAL, _DALY, _FOUND, _ASYNC, _JIT, _WARM, _PLACED)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one practice costs, averaged over the placements.

    Args:
        way: The practice; its durations are SIMULATED.
        interval_s: Training between two saves.
        interruptions_per_day: Faults that hit the job.
        unplanned_s: Lost and down, over the whole trace.
        by_cause_s: Of it: detecting, restarting, saving after a failure, lost work.
        goodput: Share of the time that trains and is kept.
        forecast: The same from the formula, at the rate of interruptions that was seen.
        less: Share of the first practice's unplanned time that is gone.
        share: This component's part of all that is saved in the end.
    """

    way: Way
    interval_s: float
    interruptions_per_day: float
    unplanned_s: float
    by_cause_s: dict[str, float]
    goodput: float
    forecast: float
    less: float
    share: float


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """The document behind ``--json``."""

    result: Result
    real: str
    simulated: str
    days: float
    nodes: int
    fleet: int
    outcomes: tuple[Outcome, ...]


@dataclass
class _Ledger:
    """Seconds so far."""

    kept_s: float = 0.0
    lost_s: float = 0.0
    detecting_s: float = 0.0
    restarting_s: float = 0.0
    saving_s: float = 0.0

    @property
    def unplanned_s(self) -> float:
        return self.lost_s + self.detecting_s + self.restarting_s + self.saving_s


def replay(trace: Path, setup: Setup, *, num_clean: int | None = None) -> Replay:
    """Play a trace against all practices, one component after another.

    Raises:
        UsageError: The job does not fit into the fleet, or there is nothing to play.
    """
    machine, began = surroundings.machine(), REAL_WORLD.monotonic()
    episodes = faults(trace)
    if not episodes or setup.seeds < 1:
        raise UsageError(
            "there is nothing to replay; give a trace with faults and one seed or more"
        )
    num_faulty = len({each.node for each in episodes})
    clean = round(CLEAN_PER_FAULTY * num_faulty) if num_clean is None else num_clean
    fleet = Fleet.of(episodes, clean)
    nodes = setup.nodes or min(MOST_NODES, int(SHARE_OF_FLEET * fleet.num_nodes))
    if not 0 < nodes < fleet.num_nodes:
        raise UsageError(f"{nodes} nodes of {fleet.num_nodes} leave no spare; give fewer --nodes")
    histories = {
        placing: [interruptions(fleet, nodes, seed, placing) for seed in range(setup.seeds)]
        for placing in PLACINGS
    }
    outcomes = _outcomes(fleet, nodes, histories)
    result = Result(
        bench="health replay", size="full",
        command=f"python -m cloudshift_lab health replay --trace CSV --seeds {setup.seeds}",
        date=surroundings.date(), commit=surroundings.commit(), machine=machine,
        versions=surroundings.versions(), seconds=round(REAL_WORLD.monotonic() - began, 1),
        rows=(*_rows(outcomes), *_interruption_rows(histories, fleet.days)),
    )  # fmt: skip
    return Replay(
        result=result, real="which node faults when and for how long (the trace)",
        simulated="the job, its placements, and how long detection, restart and saves take",
        days=fleet.days, nodes=nodes, fleet=fleet.num_nodes, outcomes=outcomes,
    )  # fmt: skip


def text_of(document: Replay) -> str:
    """A table, and below it what is real and what is not."""
    lines = [
        table(document.result), "",
        f"REAL: {document.real}. SIMULATED: {document.simulated}.",
        f"A job of {document.nodes} of {document.fleet} nodes over {document.days:.0f} days.",
    ]  # fmt: skip
    return "\n".join(lines)


def _outcomes(
    fleet: Fleet, nodes: int, histories: Mapping[Placing, Sequence[Interruptions]]
) -> tuple[Outcome, ...]:
    mtbf_s = NODE_MTBF_H["reserved"] * 3600.0 / nodes
    played = [_play_all(way, histories[way.placing], fleet.days * DAY_S, mtbf_s) for way in WAYS]
    first_s, last_s = played[0].unplanned_s, played[-1].unplanned_s
    if first_s <= last_s:
        raise UsageError("no fault of the trace hit the job; give more --nodes or a longer trace")
    before = [first_s, *(each.unplanned_s for each in played)]
    return tuple(
        msgspec.structs.replace(
            each,
            less=1 - each.unplanned_s / first_s,
            share=(before_s - each.unplanned_s) / (first_s - last_s),
        )
        for each, before_s in zip(played, before, strict=False)
    )


def _play_all(
    way: Way, histories: Sequence[Interruptions], whole_s: float, mtbf_s: float
) -> Outcome:
    interval_s = way.interval_s or young_daly_interval_s(way.save_s, mtbf_s)
    ledgers = [
        _play(way, interval_s, history, whole_s, seed) for seed, history in enumerate(histories)
    ]
    hits = float(np.mean([len(history) for history in histories]))
    kept_s = float(np.mean([each.kept_s for each in ledgers]))
    causes = {
        "lost work": float(np.mean([each.lost_s for each in ledgers])),
        "detecting": float(np.mean([each.detecting_s for each in ledgers])),
        "restarting": float(np.mean([each.restarting_s for each in ledgers])),
        "saving after a failure": float(np.mean([each.saving_s for each in ledgers])),
    }
    unplanned_s = sum(causes.values())
    return Outcome(
        way=way, interval_s=interval_s, interruptions_per_day=hits / (whole_s / DAY_S),
        unplanned_s=unplanned_s, by_cause_s=causes, goodput=kept_s / whole_s,
        forecast=_forecast(way, interval_s, (whole_s - unplanned_s) / max(hits, 1.0)), less=0.0,
        share=0.0,
    )  # fmt: skip


def _play(
    way: Way, interval_s: float, history: Interruptions, whole_s: float, seed: int
) -> _Ledger:
    """One job from the first day to the last."""
    rng = np.random.default_rng(seed)
    ledger, cycle_s = _Ledger(), interval_s + way.save_s
    up_s = 0.0
    for place, at_s in enumerate(history):
        if at_s < up_s:  # another fault before it trained again: all over once more
            ledger.restarting_s += at_s + way.detect_s + way.restart_s - up_s
            up_s = at_s + way.detect_s + way.restart_s
            continue
        num_saves = math.floor((at_s - up_s) / cycle_s)
        since_s = at_s - up_s - num_saves * cycle_s
        ledger.kept_s += num_saves * interval_s
        is_alone = place + 1 == len(history) or history[place + 1] > at_s + way.detect_s
        if is_alone and rng.random() < way.jit_share:
            lost_s, saving_s = STEP_S * rng.random(), way.jit_s
            ledger.kept_s += max(0.0, min(since_s, interval_s) - lost_s)
        else:
            lost_s, saving_s = since_s, 0.0
        ledger.lost_s += lost_s
        ledger.saving_s += saving_s
        ledger.detecting_s += way.detect_s
        ledger.restarting_s += way.restart_s
        up_s = at_s + way.detect_s + saving_s + way.restart_s
    rest_s = max(0.0, whole_s - up_s)
    num_saves = math.floor(rest_s / cycle_s)
    ledger.kept_s += num_saves * interval_s + min(rest_s - num_saves * cycle_s, interval_s)
    return ledger


def _forecast(way: Way, interval_s: float, mtbf_s: float) -> float:
    return forecast(
        GoodputFacts(
            mtbf_s=mtbf_s,
            save_s=way.save_s,
            detect_s=way.detect_s,
            restart_s=way.restart_s,
            interval_s=interval_s,
            step_s=STEP_S,
            jit_share=way.jit_share,
            jit_s=way.jit_s,
        )
    ).share


def _rows(outcomes: Sequence[Outcome]) -> tuple[Row, ...]:
    rows = [
        row(f"SIMULATED {each.way.name}", each.unplanned_s / 3600, "h",
            note=f"detection {each.way.detect_s:g} s, restart {each.way.restart_s:g} s, a save "
            f"costs {each.way.save_s:g} s each {each.interval_s / 60:.0f} min; "
            f"{each.interruptions_per_day:.2f} interruptions a day; {each.less:.1%} less than the "
            f"first, this component {each.share:.1%} of all that is saved; goodput "
            f"{each.goodput:.3f}, by the formula {each.forecast:.3f}")
        for each in outcomes
    ]  # fmt: skip
    rows.append(
        row("unplanned downtime, all of it against the first: less", outcomes[-1].less, "share",
            goal=at_least(0.95), note="lost work, detection, restart and saves after a failure")
    )  # fmt: skip
    rows.append(row("the same without placement by history: less", outcomes[-2].less, "share"))
    return tuple(rows)


def _interruption_rows(
    histories: Mapping[Placing, Sequence[Interruptions]], days: float
) -> list[Row]:
    return [
        row(f"interruptions a day: {PLACINGS[placing]}",
            float(np.mean([len(each) for each in played])) / days, "",
            samples=[round(len(each) / days, 4) for each in played])
        for placing, played in histories.items()
    ]  # fmt: skip
