"""What a move is expected to take, how far that may be off, and what may go wrong meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from cloudshift_lab.conductor.pricing import ASSUMED_PROVISION_S
from cloudshift_lab.core.approval import planned_pause_s
from cloudshift_lab.core.asks import FuturesAsk
from cloudshift_lab.core.money import HOUR_S, format_bytes
from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.save_policy import NODE_MTBF_H, format_seconds
from cloudshift_lab.market.closing import ASSUMED_RESTORE_S
from cloudshift_lab.market.estimate import ASSUMED_BYTES_PER_S
from cloudshift_lab.migration import EffectName

ASSUMED_STEP_S = 0.5
LINK_OUTAGES_PER_H = 0.2
OUTAGE_S = 30.0
CONDUCTOR_CRASHES_PER_H = 0.05
CONDUCTOR_BACK_S = 10.0
NOTICE_S = 30.0
ANSWER_S = 60.0
_COMMIT_S = 0.2
_VERIFY_SHARE = 0.1
_MEASURED, _ASSUMED, _STEPS, _SPEED = 0.25, 0.5, 0.1, 0.05


class Lasting(NamedTuple):
    """A duration: its median, and the sigma of the lognormal factor on it (0: always exact)."""

    seconds: float
    sigma: float


@dataclass(frozen=True)
class Hazards:
    """How often something goes wrong, per hour. A notice announces that a spot machine goes."""

    source: float = 0.0
    target: float = 0.0
    source_notice: float = 0.0
    target_notice: float = 0.0
    link: float = 0.0
    conductor: float = 0.0

    def words(self) -> str:
        """Those that can happen, for people."""
        told = [
            (self.source, "source lost"),
            (self.target, "target lost"),
            (self.source_notice, "spot notice at the source"),
            (self.target_notice, "spot notice at the target"),
            (self.link, "link down"),
            (self.conductor, "conductor killed"),
        ]
        return ", ".join(f"{what} {rate:.2g}" for rate, what in told if rate) or "none"


@dataclass(frozen=True)
class Odds:
    """Everything that futures are drawn from.

    ``slower`` is the sigma of what a rehearsal finds of the target's speed beside the catalogue.
    """

    takes: dict[EffectName, Lasting]
    step_s: float
    restore_s: float
    hazards: Hazards
    slower: float
    basis: str


def odds_of(ask: FuturesAsk, hazards: Hazards | None = None) -> Odds:
    """From what was measured and planned to what is drawn.

    Args:
        ask: The plan and what was measured.
        hazards: How often something goes wrong; None: as assumed for machines of that market.
    """
    link = _MEASURED if ask.bytes_per_s else _ASSUMED
    restore = _measured(ask.restore_s, ASSUMED_RESTORE_S)
    step = Lasting(ask.step_s or ASSUMED_STEP_S, _STEPS)
    rehearsed_s = restore.seconds + ask.plan.rehearsal_steps * step.seconds
    hazards = assumed_hazards(ask) if hazards is None else hazards
    takes: dict[EffectName, Lasting] = {
        "provision": _measured(ask.provision_s, ASSUMED_PROVISION_S),
        "precopy": Lasting(_transfer_s(ask), link),
        "rehearse": Lasting(rehearsed_s, restore.sigma),
        **_pause_parts(ask, link),
        "retire": Lasting(1.0, _ASSUMED),
        "cancel": Lasting(_COMMIT_S, _ASSUMED),
        "resume": Lasting(restore.seconds, restore.sigma),
        "release": Lasting(1.0, _ASSUMED),
    }
    slower = _SPEED if ask.plan.rehearsal_steps else 0.0
    return Odds(takes, step.seconds, restore.seconds, hazards, slower, _basis(ask, hazards))


def assumed_hazards(ask: FuturesAsk) -> Hazards:
    """By the machines' market: hardware dies, and a spot machine is taken away with a notice."""
    sides = (ask.plan.source, ask.plan.target)
    given = ask.node_mtbf_h or (None, None)
    (source, source_notice), (target, target_notice) = (
        _of_machines(side, hours) for side, hours in zip(sides, given, strict=True)
    )
    return Hazards(
        source, target, source_notice, target_notice, LINK_OUTAGES_PER_H, CONDUCTOR_CRASHES_PER_H
    )


def _of_machines(placement: Placement, mtbf_h: float | None) -> tuple[float, float]:
    """Losses and notices per hour of all nodes; a known rate of a spot machine is its notices'."""
    hours = mtbf_h or NODE_MTBF_H[placement.market]
    if placement.market == "spot":
        return placement.nodes / NODE_MTBF_H["on-demand"], placement.nodes / hours
    return placement.nodes / hours, 0.0


def _measured(seconds: float | None, assumed_s: float) -> Lasting:
    return Lasting(assumed_s, _ASSUMED) if seconds is None else Lasting(seconds, _MEASURED)


def _transfer_s(ask: FuturesAsk) -> float:
    """What the bill counts for copying while the source trains; else bytes over speed."""
    price = ask.price_micro_usd_per_h[1]
    billed = [item.amount_micro_usd for item in ask.plan.bill.items if item.kind == "transfer"]
    if price and billed:
        return sum(billed) * HOUR_S / price
    return ask.plan.bill.transfer_bytes / (ask.bytes_per_s or ASSUMED_BYTES_PER_S)


def _pause_parts(ask: FuturesAsk, link: float) -> dict[EffectName, Lasting]:
    """The planned pause, split into what happens in it; the parts add up to it exactly.

    The save and the first step are known, a restore is not needed by ranks that caught up, and
    what is left is the closing itself.
    """
    pause_s = planned_pause_s(ask.plan)
    step_s = ask.step_s or 0.0
    restore_s = 0.0 if ask.plan.closing == "replay" else ask.restore_s or 0.0
    known = {"drain": ask.save_s or 0.0, "commit": _COMMIT_S, "go": step_s + restore_s}
    scale = min(1.0, pause_s / sum(known.values()))
    rest_s = pause_s - scale * sum(known.values())
    parts: dict[EffectName, Lasting] = {
        "drain": Lasting(scale * known["drain"], _MEASURED),
        "commit": Lasting(scale * known["commit"], _ASSUMED),
        "go": Lasting(scale * known["go"], _MEASURED),
        "copy": Lasting(rest_s * (1 - _VERIFY_SHARE), link),
        "verify": Lasting(rest_s * _VERIFY_SHARE, _MEASURED),
        "catch_up": Lasting(rest_s, _STEPS),
    }
    return parts


def _basis(ask: FuturesAsk, hazards: Hazards) -> str:
    """What was drawn from what, for people."""
    speed = ask.bytes_per_s
    figures = [
        ("step", ask.step_s, format_seconds(ask.step_s or ASSUMED_STEP_S)),
        ("link", speed, f"{format_bytes(round(speed or ASSUMED_BYTES_PER_S))}/s"),
        ("start", ask.provision_s, format_seconds(_or(ask.provision_s, ASSUMED_PROVISION_S))),
        ("restore", ask.restore_s, format_seconds(_or(ask.restore_s, ASSUMED_RESTORE_S))),
    ]
    measured = [f"{what} {shown}" for what, value, shown in figures if value is not None]
    assumed = [f"{what} {shown}" for what, value, shown in figures if value is None]
    return "; ".join(
        [
            *(
                [f"measured: {', '.join(measured)} (1 in 3 off by {_MEASURED:.0%})"]
                * bool(measured)
            ),
            *([f"assumed: {', '.join(assumed)} (1 in 3 off by {_ASSUMED:.0%})"] * bool(assumed)),
            f"failures per hour, assumed: {hazards.words()}",
        ]
    )


def _or(value: float | None, assumed: float) -> float:
    return assumed if value is None else value
