"""The itemised bill of a move against staying, and what it says to do."""

from __future__ import annotations

from typing import Literal

import msgspec

from cloudshift_lab.core.money import HOUR_S, format_usd
from cloudshift_lab.core.plan import Bill
from cloudshift_lab.market.inputs import MoveInputs, check_inputs
from cloudshift_lab.market.lines import bill_items
from cloudshift_lab.market.reasons import reasons

__all__ = ["MoveInputs", "price_move", "verdict"]


def price_move(inputs: MoveInputs) -> Bill:
    """Itemise a move against staying.

    Both sides do the same work: while the target starts and copies, the source trains on; from
    the hand-over the target does ``horizon_s`` of the source's work in ``horizon_s / ratio``.

    Invariant: ``total_micro_usd`` is the exact sum of the items, ``one_off_micro_usd`` that of
    all but ``compute``, and at ``break_even_s`` of training the two cancel out.

    Raises:
        UsageError: A size, price or duration is out of range, or the egress tiers are.
    """
    check_inputs(inputs)
    items = bill_items(inputs)
    one_off = sum(item.amount_micro_usd for item in items if item.kind != "compute")
    saving = inputs.saving_micro_usd_per_h
    bill = Bill(
        items=items,
        total_micro_usd=sum(item.amount_micro_usd for item in items),
        one_off_micro_usd=one_off,
        saving_micro_usd_per_h=saving,
        break_even_s=one_off * HOUR_S / saving if saving > 0 else None,
        pause_s=inputs.pause_s,
        transfer_bytes=inputs.transfer_bytes,
        simulated=inputs.is_simulated,
    )
    return msgspec.structs.replace(bill, reasons=reasons(inputs, bill))


def verdict(bill: Bill) -> tuple[Literal["move", "stay"], tuple[str, ...]]:
    """Move when the total is a saving, stay otherwise; with the sentences that say why."""
    amount = format_usd(abs(bill.total_micro_usd))
    if bill.total_micro_usd < 0:
        return "move", (
            f"Moving is {amount} cheaper than staying, all costs counted.",
            *bill.reasons,
        )
    if bill.total_micro_usd == 0:
        return "stay", ("Moving and staying cost the same, so nothing is gained.", *bill.reasons)
    return "stay", (f"Staying is {amount} cheaper than moving, all costs counted.", *bill.reasons)
