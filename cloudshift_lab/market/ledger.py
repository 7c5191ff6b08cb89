"""The ledger of a run: every paid second and byte, by what it went into, to the micro-dollar."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from cloudshift_lab.core.costs import COST_KINDS, CostEntry, CostKind, Ledger
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.money import HOUR_S, MICRO, format_bytes, format_duration, format_usd
from cloudshift_lab.core.placement import Placement

TRAINING, PAUSE = "training", "nobody trains during the hand-over"
STARTS, COPIES = "the target starts", "the state is copied"
REHEARSES, ASKS, DRAINS = "the target rehearses", "a question is open", "the source ends its step"
STANDS_BY, AFTER = "the target stands by", "the source is retired"
_OWN: dict[str, CostKind] = {
    TRAINING: "compute", "lost work": "lost_work", "idle": "idle", "waiting for nodes": "idle",
    "slow ranks": "idle",
}  # fmt: skip
_BESIDE: dict[str, CostKind] = {PAUSE: "overhead"}


class Use(msgspec.Struct, frozen=True):
    """What a stretch of time went into; wall-clock seconds."""

    part: str
    begin: float
    end: float


class Stay(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt as it is paid.

    Args:
        generation: Its.
        placement: Where.
        micro_usd_per_h: Of all its nodes, >= 0.
        begin: Paid since, wall-clock seconds.
        end: Paid until.
        works_from: Since when the run is its, and not another attempt's.
        works_until: Until when; not later than ``works_from``: never.
        beside: What it did outside of that, in order.
        migration_id: The move that this time outside belongs to; empty: none.
        next_migration_id: The move that took the run away; empty: none.
        source: Where the price comes from.
        simulated: Nobody sends a bill for it.
    """

    generation: int
    placement: Placement
    micro_usd_per_h: int
    begin: float
    end: float
    works_from: float
    works_until: float
    beside: tuple[Use, ...] = ()
    migration_id: str = ""
    next_migration_id: str = ""
    source: str = ""
    simulated: bool = False


class Carried(msgspec.Struct, frozen=True, kw_only=True):
    """What a move carried between two stores, priced; wall-clock seconds and micro-dollars."""

    migration_id: str
    source: Placement
    begin: float
    end: float
    num_bytes: int
    egress_micro_usd: int
    egress_basis: str
    num_requests: int
    requests_micro_usd: int
    requests_basis: str
    simulated: bool = False


class Work(msgspec.Struct, frozen=True):
    """What came of it: steps that were kept, and the tokens in them (None: not counted)."""

    steps: int = 0
    tokens: int | None = None


class _Piece(msgspec.Struct, frozen=True):
    kind: CostKind
    part: str
    migration_id: str
    begin: float
    end: float


def account(
    stays: Sequence[Stay],
    uses: Sequence[Use],
    carried: Sequence[Carried] = (),
    *,
    work: Work | None = None,
    every_s: float | None = None,
) -> Ledger:
    """Enter everything that a run has cost.

    Each amount is the difference of two rounded totals since its attempt began, so the entries of
    an attempt add up to ``round(price x time)`` exactly, however its time is split.

    Args:
        stays: All its attempts.
        uses: What the run's own time went into, in order and not overlapping; what is not named is
            training.
        carried: What its moves carried.
        work: What came of it.
        every_s: Cut the time at every multiple of it (3600: at full hours, UTC); None: one entry
            for each part of an attempt.

    Raises:
        UsageError: A price is below 0, or time runs backwards.
    """
    entries = [entry for stay in stays for entry in _entries(stay, uses, every_s)]
    entries += [entry for each in carried for entry in _carrying(each)]
    entries.sort(key=lambda entry: (entry.begin, entry.generation, entry.kind))
    by_kind: dict[str, int] = {
        kind: sum(entry.micro_usd for entry in entries if entry.kind == kind) for kind in COST_KINDS
    }
    total, done = sum(by_kind.values()), work or Work()
    return Ledger(
        entries=tuple(entries),
        by_kind=by_kind,
        total_micro_usd=total,
        steps=done.steps,
        tokens=done.tokens,
        micro_usd_per_million_tokens=None
        if not done.tokens
        else round(total * MICRO / done.tokens),
    )


def _entries(stay: Stay, uses: Sequence[Use], every_s: float | None) -> Iterator[CostEntry]:
    if stay.micro_usd_per_h < 0 or not stay.end >= stay.begin:
        raise UsageError(
            f"attempt {stay.generation} has a price below 0 or ends before it begins; "
            "mend its journal"
        )
    found: dict[tuple[str, ...], tuple[_Piece, int, float]] = {}
    for whole in _pieces(stay, uses):
        for piece in _cut(whole, every_s):
            amount = _since(stay, piece.end) - _since(stay, piece.begin)
            slot = "" if every_s is None else str(math.floor(piece.begin / every_s))
            key = (piece.kind, piece.part, piece.migration_id, slot)
            first, before, seconds = found.get(key, (piece, 0, 0.0))
            joined = msgspec.structs.replace(first, end=piece.end)
            found[key] = (joined, before + amount, seconds + piece.end - piece.begin)
    for piece, micro_usd, seconds in found.values():
        yield _entry(stay, piece, micro_usd, seconds)


def _entry(stay: Stay, piece: _Piece, micro_usd: int, seconds: float) -> CostEntry:
    placement = stay.placement
    price = f"{format_usd(stay.micro_usd_per_h)}/h"
    machines = f"{placement.nodes} x {placement.instance_type}, {stay.source}"
    return CostEntry(
        kind=piece.kind,
        part=piece.part,
        micro_usd=micro_usd,
        begin=piece.begin,
        end=piece.end,
        placement=placement,
        seconds=seconds,
        generation=stay.generation,
        migration_id=piece.migration_id,
        micro_usd_per_h=stay.micro_usd_per_h,
        basis=f"{format_duration(seconds)} x {price} ({machines})",
        source=stay.source,
        simulated=stay.simulated,
    )


def _carrying(each: Carried) -> Iterator[CostEntry]:
    rows: tuple[tuple[CostKind, str, int, int, str], ...] = (
        ("egress", f"{format_bytes(each.num_bytes)} carried", each.egress_micro_usd,
         each.num_bytes, each.egress_basis),
        ("requests", "object store requests", each.requests_micro_usd, each.num_requests,
         each.requests_basis),
    )  # fmt: skip
    for kind, part, micro_usd, quantity, basis in rows:
        yield CostEntry(
            kind=kind, part=part, micro_usd=micro_usd, begin=each.begin, end=each.end,
            placement=each.source, migration_id=each.migration_id, quantity=quantity, basis=basis,
            source=f"{kind} prices of {each.source.cloud}", simulated=each.simulated,
        )  # fmt: skip


def _since(stay: Stay, at: float) -> int:
    """What a stay costs until a moment."""
    return round(stay.micro_usd_per_h * (at - stay.begin) / HOUR_S)


def _pieces(stay: Stay, uses: Sequence[Use]) -> Iterator[_Piece]:
    """All of a stay's time, in order: before the run is its, while it is, and after that."""
    works_from = min(max(stay.works_from, stay.begin), stay.end)
    works_until = min(max(stay.works_until, works_from), stay.end)
    for use in _filled(stay.begin, works_from, stay.beside, STANDS_BY):
        yield _piece(use, _BESIDE.get(use.part, "overlap"), stay.migration_id)
    for use in _filled(works_from, works_until, uses, TRAINING):
        yield _piece(use, _OWN.get(use.part, "overhead"), "")
    for use in _filled(works_until, stay.end, stay.beside, AFTER):
        yield _piece(use, _BESIDE.get(use.part, "overlap"), stay.next_migration_id)


def _piece(use: Use, kind: CostKind, migration_id: str) -> _Piece:
    return _Piece(kind, use.part, migration_id, use.begin, use.end)


def _filled(begin: float, end: float, known: Iterable[Use], rest: str) -> Iterator[Use]:
    """What is known of a stretch, and ``rest`` for what lies between."""
    at = begin
    for use in known:
        since, until = max(use.begin, at), min(use.end, end)
        if until <= since:
            continue
        if since > at:
            yield Use(rest, at, since)
        yield Use(use.part, since, until)
        at = until
    if at < end:
        yield Use(rest, at, end)


def _cut(piece: _Piece, every_s: float | None) -> Iterator[_Piece]:
    """A piece in parts that do not cross a multiple of ``every_s``."""
    at = piece.begin
    if every_s is not None:
        number = math.floor(at / every_s) + 1
        while number * every_s < piece.end:
            if number * every_s > at:
                yield msgspec.structs.replace(piece, begin=at, end=number * every_s)
                at = number * every_s
            number += 1
    yield msgspec.structs.replace(piece, begin=at)
