"""Why a bill says move or stay, and what would flip it, in plain sentences."""

from __future__ import annotations

from cloudshift_lab.core.money import HOUR_S, format_duration, format_usd
from cloudshift_lab.core.plan import Bill
from cloudshift_lab.market.inputs import MoveInputs
from cloudshift_lab.market.lines import egress_item, requests_item


def reasons(inputs: MoveInputs, bill: Bill) -> tuple[str, ...]:
    """The sentences under the total, most important first."""
    found = [_break_even(bill), *_flips(inputs, bill)]
    if inputs.transfer_reason:
        found.append(inputs.transfer_reason)
    if inputs.remaining_s is None:
        found.append("How long the run still takes is unknown, so one hour of training is counted.")
    if inputs.is_source_reserved:
        found.append(
            "The source is reserved and goes on costing the same, so leaving saves nothing."
        )
    if inputs.is_simulated:
        found.append("These prices are simulated.")
    return tuple(found)


def flip_price_micro_usd_per_h(inputs: MoveInputs) -> int | None:
    """The target's price per node and hour at which moving and staying cost the same.

    None when even a free target does not pay: what is paid once outweighs the horizon.
    """
    hours = inputs.horizon_s / inputs.throughput_ratio_target + _paid_extra_s(inputs)
    worth = _saved_and_fixed(inputs)
    if worth < 0 or hours == 0:
        return None
    return round(worth * HOUR_S / hours / inputs.target_placement.nodes)


def flip_throughput_ratio(inputs: MoveInputs) -> float | None:
    """The target's speed over the source's at which moving and staying cost the same.

    None when no speed does: what is paid once outweighs what staying costs.
    """
    price = inputs.target_micro_usd_per_h
    left = _saved_and_fixed(inputs) - price * _paid_extra_s(inputs) / HOUR_S
    return price * inputs.horizon_s / HOUR_S / left if left > 0 else None


def _saved_and_fixed(inputs: MoveInputs) -> float:
    """Micro-dollars that leaving saves at the source, less what no target price changes."""
    hours = (inputs.horizon_s - inputs.pause_s) / HOUR_S
    fixed = egress_item(inputs).amount_micro_usd + requests_item(inputs).amount_micro_usd
    return inputs.source_micro_usd_per_h * hours - fixed


def _paid_extra_s(inputs: MoveInputs) -> float:
    """Seconds in which the target is paid and does not train."""
    return inputs.provision_s + inputs.transfer_s + inputs.rehearsal_s + inputs.pause_s


def _break_even(bill: Bill) -> str:
    once, saving = format_usd(bill.one_off_micro_usd), bill.saving_micro_usd_per_h
    if bill.break_even_s is None:
        dearer = f"costs {format_usd(-saving)}/h more" if saving else "costs the same"
        return f"The target {dearer} for the same work, so a move never pays for itself."
    if not bill.break_even_s:
        return f"Moving costs nothing once and saves {format_usd(saving)} per hour of training."
    pays_after = format_duration(bill.break_even_s)
    return (
        f"Moving costs {once} once and saves {format_usd(saving)} per hour of training: "
        f"it has paid for itself after {pays_after}."
    )


def _flips(inputs: MoveInputs, bill: Bill) -> list[str]:
    found = []
    if bill.break_even_s:
        side = "less" if bill.total_micro_usd < 0 else "more"
        answer = "staying" if bill.total_micro_usd < 0 else "moving"
        break_even = format_duration(bill.break_even_s)
        found.append(f"With {side} than {break_even} of training left, {answer} is cheaper.")
    price = flip_price_micro_usd_per_h(inputs)
    if price is None:
        found.append("Over this horizon no price of the target would make the move pay.")
    elif bill.total_micro_usd < 0:
        found.append(f"Staying is cheaper if the target costs more than {_per_node_h(price)}.")
    else:
        found.append(f"Moving is cheaper if the target costs less than {_per_node_h(price)}.")
    ratio = flip_throughput_ratio(inputs)
    if bill.total_micro_usd < 0 and ratio:
        found.append(
            f"Staying is cheaper if the target trains slower than {ratio:.2f} x the source."
        )
    return found


def _per_node_h(micro_usd: int) -> str:
    return f"{format_usd(micro_usd)} per node and hour"
