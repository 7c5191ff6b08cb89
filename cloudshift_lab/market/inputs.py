"""Everything a bill is a function of."""

from __future__ import annotations

import math

import msgspec

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.money import HOUR_S
from cloudshift_lab.core.placement import EgressTier, Offer, Placement

DEFAULT_HORIZON_S = HOUR_S
ASSUMED_EQUAL = "no measurement on the target; assumed equal"


class MoveInputs(msgspec.Struct, frozen=True, kw_only=True):
    """A proposed move, measured and priced; money in micro-dollars, prices per node and hour.

    Args:
        source_egress: Tiers for leaving the source; empty when no price is known.
        egress_used_bytes: Carried out of the source already this month.
        state_bytes: Size of the whole training state.
        transfer_bytes: Expected to be copied (what the target lacks).
        transfer_basis: What that number is made of, a few words; empty when it is assumed.
        transfer_reason: Where that number comes from, a sentence.
        num_objects: Objects to be copied; None: estimated from ``transfer_bytes``.
        remaining_s: Training left when the target takes over, at the source's pace; None when
            unknown: then one hour is counted, and the bill says so.
        tokens_per_s_source: Measured over all ranks; None when not measured.
        throughput_ratio_target: The target's tokens per second over the source's, > 0.
        throughput_reason: Where the ratio comes from.
        pause_s: Nobody trains, both sides are paid.
        transfer_s: The target is paid while state is copied and the source trains on.
        provision_s: The target is paid while it starts and the source trains on.
        rehearsal_s: The target is paid while it rehearses and the source trains on.
        rehearsal_steps: How many steps it rehearses.
        simulated: More is simulated than the two offers say themselves.
        as_of: When the request and egress prices were taken.
    """

    source_offer: Offer
    target_offer: Offer
    source_placement: Placement
    target_placement: Placement
    source_egress: tuple[EgressTier, ...] = ()
    egress_used_bytes: int = 0
    source_get_micro_usd_per_1000: int = 0
    target_put_micro_usd_per_1000: int = 0
    state_bytes: int = 0
    transfer_bytes: int = 0
    transfer_basis: str = ""
    transfer_reason: str = ""
    num_objects: int | None = None
    remaining_s: float | None = None
    tokens_per_s_source: float | None = None
    throughput_ratio_target: float = 1.0
    throughput_reason: str = ASSUMED_EQUAL
    pause_s: float = 0.0
    transfer_s: float = 0.0
    provision_s: float = 0.0
    rehearsal_s: float = 0.0
    rehearsal_steps: int = 0
    simulated: bool = False
    as_of: str = ""

    @property
    def horizon_s(self) -> float:
        """Training over which compute prices are compared, seconds at the source's pace."""
        return DEFAULT_HORIZON_S if self.remaining_s is None else self.remaining_s

    @property
    def is_simulated(self) -> bool:
        return self.simulated or self.source_offer.simulated or self.target_offer.simulated

    @property
    def is_source_reserved(self) -> bool:
        return self.source_offer.market == "reserved"

    @property
    def source_micro_usd_per_h(self) -> int:
        """What stops being paid when the source ends, all nodes: nothing if it is reserved."""
        if self.is_source_reserved:
            return 0
        return self.source_offer.price_micro_usd_per_h * self.source_placement.nodes

    @property
    def target_micro_usd_per_h(self) -> int:
        """The target's price, all nodes."""
        return self.target_offer.price_micro_usd_per_h * self.target_placement.nodes

    @property
    def saving_micro_usd_per_h(self) -> int:
        """Saved per hour of training at the source's pace; negative when the target is dearer."""
        return self.source_micro_usd_per_h - round(
            self.target_micro_usd_per_h / self.throughput_ratio_target
        )


def check_inputs(inputs: MoveInputs) -> None:
    """Hold the numbers to their ranges.

    Raises:
        UsageError: One is negative or not finite, or the throughput ratio is not above 0.
    """
    numbers = {
        "source price": inputs.source_offer.price_micro_usd_per_h,
        "target price": inputs.target_offer.price_micro_usd_per_h,
        "request price of the source": inputs.source_get_micro_usd_per_1000,
        "request price of the target": inputs.target_put_micro_usd_per_1000,
        "state_bytes": inputs.state_bytes,
        "transfer_bytes": inputs.transfer_bytes,
        "num_objects": inputs.num_objects or 0,
        "remaining_s": inputs.horizon_s,
        "pause_s": inputs.pause_s,
        "transfer_s": inputs.transfer_s,
        "provision_s": inputs.provision_s,
        "rehearsal_s": inputs.rehearsal_s,
        "rehearsal_steps": inputs.rehearsal_steps,
    }
    for name, number in numbers.items():
        if not (math.isfinite(number) and number >= 0):
            raise UsageError(f"a bill needs {name} >= 0, not {number}; mend the inputs")
    ratio = inputs.throughput_ratio_target
    if not (math.isfinite(ratio) and ratio > 0):
        raise UsageError(f"a bill needs a throughput ratio above 0, not {ratio}; mend the inputs")
