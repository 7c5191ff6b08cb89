"""Whether a run should move, where to, what that is worth, and what would change the answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple

import msgspec

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.money import format_duration, format_usd
from cloudshift_lab.core.placement import EgressTier
from cloudshift_lab.core.plan import Bill, Spread
from cloudshift_lab.market.commitments import Commitment, check_commitments, stranded
from cloudshift_lab.market.place_costs import Costs, Plan, cost_there
from cloudshift_lab.market.quotes import Quote, Rejected, badge, checked, may_move_alone

HOUR_S = 3600.0
_LEAST_CHANCE = 0.8
_LEAST_MICRO_USD = 5_000_000
_LEAST_SHARE = 0.02
_MOVE_MAY_TAKE_S = 6 * HOUR_S
_P90 = NormalDist().inv_cdf(0.9)
Verdict = Literal["move", "stay"]


class Link(msgspec.Struct, frozen=True):
    """From the run to one place: what leaving for it costs, and how fast bytes go there."""

    egress: tuple[EgressTier, ...] = ()
    bytes_per_s: float | None = None


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that advice is a function of.

    Args:
        here: What the run pays now.
        offers: Everything that could be had instead.
        nodes: Of the run; as many are taken elsewhere.
        left_s: Training left at the pace here, seconds; None: unknown, one hour is counted.
        carry_bytes: What a move has to carry, all rounds together.
        links: By place (``cloud:region``); without one nothing is known about egress.
        now: Unix seconds.
        deadline_s: From now, seconds; None: none.
        pause_s: Nobody trains in a move.
        start_s: A machine elsewhere is paid before it can train.
        spot_life_s: Spot machines elsewhere last so long on average; None: assumed.
        egress_used_bytes: Carried out of the run's cloud already this month.
        commitments: Reserved capacity.
        budget_micro_usd: What the run may cost at all; None: as much as it takes.
        spent_micro_usd: Of it, until now.
        most_slowdown: Places where the rest takes longer than so many times as here are left out.
    """

    here: Quote
    offers: tuple[Quote, ...]
    now: float
    nodes: int = 1
    left_s: float | None = None
    carry_bytes: int = 0
    links: dict[str, Link] = {}
    deadline_s: float | None = None
    pause_s: float = 10.0
    start_s: float = 300.0
    spot_life_s: float | None = None
    egress_used_bytes: int = 0
    commitments: tuple[Commitment, ...] = ()
    budget_micro_usd: int | None = None
    spent_micro_usd: int = 0
    most_slowdown: float = 2.0


class Flip(msgspec.Struct, frozen=True):
    """A condition under which the answer would be another."""

    condition: str
    then: Verdict


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One place beside the others; ``net`` is what moving there saves, micro-dollars."""

    quote: Quote
    bill: Bill
    net: Spread
    chance: float
    hours: float
    reason: str


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """The answer.

    Invariant: ``bill.total_micro_usd`` is the exact sum of its items, and ``-net.p50``.

    Args:
        target: Where to, or the best place that was not good enough; None: there is none.
        net: What moving there saves, all costs counted, micro-dollars.
        chance: That it saves anything, 0 to 1.
        break_even_h: Of training, after which the move has paid for itself; None: never.
        margin_h: Until the deadline when staying and when moving; None without a deadline.
        forced: The deadline is missed here and kept there: money does not decide.
        may_act_alone: No price in it is stale, a snapshot or an estimate.
        oldest_price_s: Age of the oldest price that it rests on.
    """

    verdict: Verdict
    because: str
    here: Quote
    target: Quote | None
    bill: Bill | None
    net: Spread
    chance: float
    break_even_h: float | None
    margin_h: tuple[float, float] | None
    forced: bool
    may_act_alone: bool
    oldest_price_s: float
    flips_if: tuple[Flip, ...]
    assumptions: tuple[str, ...]
    options: tuple[Option, ...]
    rejected: tuple[Rejected, ...]
    simulated: bool


class _Weighed(NamedTuple):
    quote: Quote
    costs: Costs
    net: Spread
    chance: float


def advise(question: Question) -> Advice:
    """Weigh every offer against staying.

    A move has to be worth it with a chance of 80 % and by $5 or 2 % of what is left, whichever is
    more, unless the deadline forces it: prices wobble, and a move is never free of trouble.

    Raises:
        UsageError: The question contradicts itself: a budget that is spent, a deadline that has
            passed, commitments that cannot be, sizes or prices out of range.
    """
    _check(question)
    good, bad = checked(question.offers, question.now)
    weighed = [_weigh(question, quote) for quote in good if not _is_here(question, quote)]
    possible, late = _in_time(question, weighed)
    ranked = sorted(possible, key=lambda each: (-each.net.p50, each.quote.place))
    if not ranked:
        return _alone(question, (*bad, *late))
    return _answer(question, ranked, (*bad, *late))


def _answer(question: Question, ranked: Sequence[_Weighed], rejected: Sequence[Rejected]) -> Advice:
    best = ranked[0]
    bill, net = best.costs.bill, best.net
    enough = _enough(question)
    forced = _is_late_here(question)
    moves = forced or (best.chance >= _LEAST_CHANCE and net.p50 >= enough)
    oldest = max(question.now - quote.priced_at for quote in (question.here, best.quote))
    prices = (question.here, best.quote)
    return Advice(
        verdict="move" if moves else "stay", because=_because(best, enough, forced=forced),
        here=question.here, target=best.quote, bill=bill, net=net, chance=best.chance,
        break_even_h=None if bill.break_even_s is None else bill.break_even_s / HOUR_S,
        margin_h=_margins(question, best.costs), forced=forced,
        may_act_alone=all(may_move_alone(quote, question.now) for quote in prices),
        oldest_price_s=oldest, flips_if=_flips(question, best, "move" if moves else "stay"),
        assumptions=(*best.costs.assumptions, *_stranded(question), *_ages(question, prices)),
        options=tuple(_option(each, best, question) for each in ranked),
        rejected=tuple(rejected), simulated=bill.simulated,
    )  # fmt: skip


def _alone(question: Question, rejected: Sequence[Rejected]) -> Advice:
    why = "no offer elsewhere can be used" if rejected else "no offer elsewhere is known"
    here = question.here
    return Advice(
        verdict="stay", because=f"Stay: {why}.", here=here, target=None, bill=None,
        net=Spread(0, 0, 0), chance=0.0, break_even_h=None, margin_h=None, forced=False,
        may_act_alone=False, oldest_price_s=question.now - here.priced_at, flips_if=(),
        assumptions=_ages(question, (here,)), options=(), rejected=tuple(rejected),
        simulated=here.confidence == "simulated",
    )  # fmt: skip


def _weigh(question: Question, quote: Quote) -> _Weighed:
    link = question.links.get(f"{quote.cloud}:{quote.region}", Link())
    costs = cost_there(
        Plan(
            here=question.here, there=quote, nodes=question.nodes, left_s=question.left_s,
            carry_bytes=question.carry_bytes, egress=link.egress, bytes_per_s=link.bytes_per_s,
            egress_used_bytes=question.egress_used_bytes, pause_s=question.pause_s,
            start_s=question.start_s, spot_life_s=question.spot_life_s,
            commitments=question.commitments,
        )
    )  # fmt: skip
    mid = -costs.bill.total_micro_usd
    low, high = min(-costs.dearest_micro_usd, mid), max(-costs.cheapest_micro_usd, mid)
    spread = (high - low) / (2 * _P90)
    chance = (1.0 if mid > 0 else 0.0) if spread <= 0 else NormalDist(mid, spread).cdf(0)
    return _Weighed(quote, costs, Spread(low, mid, high), chance if spread <= 0 else 1 - chance)


def _in_time(
    question: Question, weighed: Sequence[_Weighed]
) -> tuple[list[_Weighed], list[Rejected]]:
    """Those that keep the deadline, and do not take far longer; the others with the reason."""
    good, late = [], []
    for each in weighed:
        reason = _too_late(question, each.costs.finish_s)
        if reason:
            what = f"{each.quote.place} {each.quote.instance_type} {each.quote.market}"
            late.append(Rejected(what, reason))
        else:
            good.append(each)
    return good, late


def _too_late(question: Question, finish_s: float) -> str:
    if question.deadline_s is not None and finish_s > question.deadline_s:
        return f"it would miss the deadline by {format_duration(finish_s - question.deadline_s)}"
    left_s = HOUR_S if question.left_s is None else question.left_s
    if finish_s - question.start_s > question.most_slowdown * left_s + _MOVE_MAY_TAKE_S:
        return (
            f"the rest would take {format_duration(finish_s)} instead of "
            f"{format_duration(left_s)}; allow that with most_slowdown"
        )
    return ""


def _enough(question: Question) -> int:
    left_s = HOUR_S if question.left_s is None else question.left_s
    rest = question.here.micro_usd_per_h * question.nodes * left_s / HOUR_S
    return max(_LEAST_MICRO_USD, round(_LEAST_SHARE * rest))


def _because(best: _Weighed, enough: int, *, forced: bool) -> str:
    amount = format_usd(round(abs(best.net.p50)))
    to = best.quote.place
    if forced:
        return f"Move to {to}: here the deadline would be missed, there it is kept."
    if best.net.p50 <= 0:
        return f"Stay: the best offer, {to}, costs {amount} more, the move included."
    if best.chance < _LEAST_CHANCE:
        return (
            f"Stay: {to} may save {amount}, but with a chance of only {best.chance:.0%}; "
            f"{_LEAST_CHANCE:.0%} are asked for."
        )
    if best.net.p50 < enough:
        return (
            f"Stay: {to} would save {amount}; less than {format_usd(enough)} is not worth a move."
        )
    return (
        f"Move to {to}: it saves {amount}, the move included, with a chance of {best.chance:.0%}."
    )


def _flips(question: Question, best: _Weighed, verdict: Verdict) -> tuple[Flip, ...]:
    """What would have to be otherwise, each alone, for the opposite answer to save money."""
    bill, found = best.costs.bill, list[Flip]()
    gains = bill.total_micro_usd < 0
    then: Verdict = "stay" if gains else "move"
    if verdict == then:
        return ()
    more, less = ("less", "more") if gains else ("more", "less")
    if bill.break_even_s is not None:
        found.append(
            Flip(f"{more} than {format_duration(bill.break_even_s)} of training left", then)
        )
    price = best.costs.flip_price_micro_usd_per_h
    if price is not None:
        found.append(Flip(f"the node there costs {less} than {format_usd(price)}/h", then))
    ratio = best.costs.flip_ratio
    if ratio is not None:
        word = "slower" if gains else "faster"
        found.append(Flip(f"it trains {word} than {ratio:.2f} times as fast as here", then))
    egress = _flip_egress(best, question.carry_bytes)
    if egress is not None:
        found.append(Flip(f"egress costs {less} than {format_usd(egress)}/GB", then))
    return tuple(found)


def _flip_egress(best: _Weighed, carry_bytes: int) -> int | None:
    """Micro-dollars per GB of 2^30 bytes at which moving and staying cost the same."""
    paid = sum(i.amount_micro_usd for i in best.costs.bill.items if i.kind == "egress")
    limit = paid - best.costs.bill.total_micro_usd
    if carry_bytes <= 0 or limit < 0:
        return None
    return round(limit / (carry_bytes / 2**30))


def _option(each: _Weighed, best: _Weighed, question: Question) -> Option:
    if each is best:
        reason = "the best of all"
    elif each.net.p50 <= 0:
        reason = f"costs {format_usd(round(-each.net.p50))} more than staying"
    else:
        reason = f"saves {format_usd(round(best.net.p50 - each.net.p50))} less than the best"
    if not may_move_alone(each.quote, question.now):
        reason += f"; price: {badge(each.quote, question.now)}"
    return Option(
        quote=each.quote, bill=each.costs.bill, net=each.net, chance=each.chance,
        hours=each.costs.finish_s / HOUR_S, reason=reason,
    )  # fmt: skip


def _margins(question: Question, costs: Costs) -> tuple[float, float] | None:
    if question.deadline_s is None:
        return None
    stay_s = question.deadline_s - (question.left_s or 0.0)
    return stay_s / HOUR_S, (question.deadline_s - costs.finish_s) / HOUR_S


def _is_late_here(question: Question) -> bool:
    if question.deadline_s is None or question.left_s is None:
        return False
    return question.left_s > question.deadline_s


def _is_here(question: Question, quote: Quote) -> bool:
    here = question.here
    return (quote.cloud, quote.region, quote.zone, quote.instance_type, quote.market) == (
        here.cloud, here.region, here.zone, here.instance_type, here.market,
    )  # fmt: skip


def _stranded(question: Question) -> tuple[str, ...]:
    _, says = stranded(question.here, question.nodes, question.commitments)
    return (says,) if says else ()


def _ages(question: Question, quotes: Sequence[Quote]) -> tuple[str, ...]:
    return tuple(
        f"price of {quote.place}: {badge(quote, question.now)}, {quote.source}"
        for quote in quotes
    )  # fmt: skip


def _check(question: Question) -> None:
    check_commitments(question.commitments, question.now)
    for name in ("left_s", "deadline_s", "spot_life_s"):
        value = getattr(question, name)
        if value is not None and not math.isfinite(value):
            raise UsageError(f"{name} is {value}; give seconds")
    if question.left_s is not None and question.left_s <= 0:
        raise UsageError("no training is left, so nothing is to be gained anywhere; let it end")
    if question.deadline_s is not None and question.deadline_s <= 0:
        ago = format_duration(-question.deadline_s)
        raise UsageError(f"the deadline passed {ago} ago; set a later one or none")
    if question.nodes < 1:
        raise UsageError(f"a run has at least one node, not {question.nodes}; correct it")
    if question.spot_life_s is not None and question.spot_life_s <= 0:
        raise UsageError("spot machines last longer than nothing; correct their life")
    budget = question.budget_micro_usd
    if budget is not None and budget <= question.spent_micro_usd:
        raise UsageError(
            f"the budget of {format_usd(budget)} is spent "
            f"({format_usd(question.spent_micro_usd)}); raise it or stop the run"
        )
    if question.here.micro_usd_per_h < 0:
        raise UsageError("what the run pays now is below zero; correct its price")
