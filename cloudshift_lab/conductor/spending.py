"""What a run has spent by now, line by line: its attempts, and what its moves carried."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from cloudshift_lab.conductor.moves import Move
from cloudshift_lab.conductor.places import Places
from cloudshift_lab.conductor.pricing import move_lines
from cloudshift_lab.conductor.records import Attempt, RunRecord
from cloudshift_lab.core.money import format_duration, format_usd
from cloudshift_lab.core.placement import Cloud
from cloudshift_lab.core.views import CostLine


def cost_lines(
    record: RunRecord, moves: Iterable[Move], places: Places, now: float
) -> tuple[CostLine, ...]:
    """Every attempt and every move's bytes; overlapping attempts both count.

    Args:
        record: The run.
        moves: Its moves, oldest first.
        places: Prices of bytes and requests.
        now: Wall-clock seconds.
    """
    lines = [_attempt_line(attempt, now) for attempt in record.attempts.values()]
    for found in carried_lines(moves, places).values():
        lines += found
    return tuple(lines)


def carried_lines(moves: Iterable[Move], places: Places) -> dict[str, tuple[CostLine, ...]]:
    """Per move, egress and requests as they happened; empty where nothing was carried.

    Prices, and the bytes of the month before, are those of the move's own bill: what was paid does
    not change with a price, nor is it forgotten with a cloud that is not configured any more.
    """
    sold = {cloud.name: cloud for cloud in places.clouds().clouds}
    carried: dict[str, int] = {}
    found = {}
    for move in moves:
        source, known = move.plan.source.cloud, move.opened.inputs
        used = carried.get(source, 0)
        if known is not None:
            used = max(used, known.egress_used_bytes)
        saga = msgspec.structs.replace(move.saga, bytes_moved=carried_bytes(move))
        clouds = sold | clouds_of(move)
        found[move.opened.migration_id] = move_lines(saga, clouds, egress_used_bytes=used)
        carried[source] = carried.get(source, 0) + saga.bytes_moved
    return found


def clouds_of(move: Move) -> dict[str, Cloud]:
    """Both ends of a move with the prices that its bill was made of; empty where it has none."""
    plan, known = move.plan, move.opened.inputs
    if known is None or move.saga.moved_to is not None:
        return {}
    source = Cloud(
        name=plan.source.cloud,
        title=plan.source.cloud,
        store_url=plan.source_url,
        egress=known.source_egress,
        get_micro_usd_per_1000=known.source_get_micro_usd_per_1000,
        put_micro_usd_per_1000=known.target_put_micro_usd_per_1000,
        simulated=known.is_simulated,
    )
    target = msgspec.structs.replace(
        source, name=plan.target.cloud, title=plan.target.cloud, store_url=plan.target_url
    )
    return {target.name: target, source.name: source}


def carried_bytes(move: Move) -> int:
    """What a move has carried so far, with what is on its way."""
    return move.saga.bytes_moved + move.carried_bytes(move.saga)


def spent_micro_usd(record: RunRecord, moves: Iterable[Move], places: Places, now: float) -> int:
    """The exact sum of all lines."""
    return sum(line.amount_micro_usd for line in cost_lines(record, moves, places, now))


def _attempt_line(attempt: Attempt, now: float) -> CostLine:
    started, placement = attempt.started, attempt.job.placement
    until = now if attempt.ended_at is None else attempt.ended_at
    return CostLine(
        label=f"attempt {attempt.job.generation}",
        target=placement.target,
        amount_micro_usd=attempt.cost_micro_usd(now),
        basis=f"{format_duration(max(0.0, until - started.at))} x "
        f"{format_usd(started.price_micro_usd_per_h)}/h "
        f"({placement.nodes} x {placement.instance_type}, {started.price_source})",
        simulated=started.simulated,
    )
