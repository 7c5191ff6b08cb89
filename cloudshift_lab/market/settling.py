"""A finished move's bill beside the ledger: as forecast, as settled, and as it was entered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from cloudshift_lab.core.costs import BillCheck, CostEntry
from cloudshift_lab.core.money import HOUR_S
from cloudshift_lab.core.plan import Bill, BillItem, BillKind
from cloudshift_lab.market.bill import price_move
from cloudshift_lab.market.inputs import MoveInputs
from cloudshift_lab.market.ledger import COPIES, PAUSE, REHEARSES, STARTS

_PARTS: tuple[tuple[BillKind, str, str], ...] = (
    ("overlap", "both run while the target starts", STARTS),
    ("transfer", "both run while the state is copied", COPIES),
    ("overlap", "both run while the target rehearses", REHEARSES),
    ("pause", "nobody trains during the hand-over", PAUSE),
)
_COMPUTE = "training there instead of here"


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What a move turned out to be; durations in seconds.

    Args:
        generation: Of the attempt that it went to.
        num_bytes: Carried between the stores.
        num_requests: Made for that.
        starts_s: Until its target was ready.
        copies_s: Copying while the source trained.
        rehearses_s: Rehearsing while the source trained.
        pause_s: From the source's last step to the target's first new one.
        trained_s: The target's time since then, as far as it has been paid.
    """

    generation: int
    num_bytes: int
    num_requests: int
    starts_s: float
    copies_s: float
    rehearses_s: float
    pause_s: float
    trained_s: float


def settled_inputs(inputs: MoveInputs, measured: Measured) -> MoveInputs:
    """What the bill would have been computed from, had everything been known."""
    return msgspec.structs.replace(
        inputs,
        transfer_bytes=measured.num_bytes,
        num_objects=measured.num_requests,
        provision_s=measured.starts_s,
        transfer_s=measured.copies_s,
        rehearsal_s=measured.rehearses_s,
        pause_s=measured.pause_s,
        remaining_s=measured.trained_s * inputs.throughput_ratio_target,
    )


def check_bill(
    migration_id: str,
    bill: Bill,
    inputs: MoveInputs,
    measured: Measured,
    entries: Sequence[CostEntry],
) -> tuple[BillCheck, ...]:
    """Every priced line of a move's bill beside what the ledger entered.

    The settled line is the bill's own arithmetic with measured bytes and durations; the ledger
    comes from the prices and times at which the attempts were paid. Where these two differ, a
    price, a byte or a second was counted by one and not by the other; where the forecast differs
    from both, the move took more or less than was expected.

    Args:
        migration_id: The move.
        bill: As it was decided on.
        inputs: What it was computed from.
        measured: What the move turned out to be.
        entries: The run's ledger.
    """
    settled = price_move(settled_inputs(inputs, measured)).items
    mine = [entry for entry in entries if entry.migration_id == migration_id]
    found = list(_carrying(bill.items, settled, mine))
    for kind, label, part in _PARTS:
        paid = [each for each in mine if each.part == part and not _is_sunk(each, measured)]
        found.append((kind, label, _of(settled, kind, label), sum(each.micro_usd for each in paid)))
    found.append(("compute", _COMPUTE, _of(settled, "compute"), _saved(inputs, measured, entries)))
    return tuple(
        BillCheck(
            migration_id=migration_id, kind=kind, label=label, settled_micro_usd=amount,
            forecast_micro_usd=_of(bill.items, kind, label if kind == "overlap" else ""),
            ledger_micro_usd=entered,
        )
        for kind, label, amount, entered in found
    )  # fmt: skip


def _carrying(
    forecast: Sequence[BillItem], settled: Sequence[BillItem], mine: Sequence[CostEntry]
) -> Iterator[tuple[BillKind, str, int, int]]:
    kinds: tuple[BillKind, ...] = ("egress", "requests")
    for kind in kinds:
        label = next((item.label for item in forecast if item.kind == kind), kind)
        entered = sum(entry.micro_usd for entry in mine if entry.kind == kind)
        yield kind, label, _of(settled, kind), entered


def _is_sunk(entry: CostEntry, measured: Measured) -> bool:
    """A reserved source is paid whether the run is there or not: no bill counts it."""
    return entry.placement.market == "reserved" and entry.generation != measured.generation


def _saved(inputs: MoveInputs, measured: Measured, entries: Iterable[CostEntry]) -> int:
    """What the target has cost since it trains, less what the same at the source would have."""
    paid = sum(
        entry.micro_usd
        for entry in entries
        if entry.generation == measured.generation and not entry.migration_id
    )
    source_s = measured.trained_s * inputs.throughput_ratio_target
    return paid - round(inputs.source_micro_usd_per_h * source_s / HOUR_S)


def _of(items: Iterable[BillItem], kind: str, label: str = "") -> int:
    return sum(
        item.amount_micro_usd
        for item in items
        if item.kind == kind and item.label.startswith(label)
    )
