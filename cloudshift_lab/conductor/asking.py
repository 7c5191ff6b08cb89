"""Asking again about a move that is under way: for how long, and what waiting may cost."""

from __future__ import annotations

from dataclasses import dataclass

from cloudshift_lab.conductor.driver import SPENT_SHARE
from cloudshift_lab.core.approval import ApprovalRule, Judgement, clock_at, second_of_day, zone_of
from cloudshift_lab.core.money import format_usd
from cloudshift_lab.market.lines import for_duration
from cloudshift_lab.migration import Saga
from cloudshift_lab.migration.deciding import ASK_AGAIN_S


@dataclass(frozen=True)
class Held:
    """What a target costs that waits for an answer.

    ``spent_micro_usd`` is what the whole move has cost by now.
    """

    micro_usd_per_h: int
    spent_micro_usd: int


def question_s(rule: ApprovalRule, now: float) -> float:
    """How long a question stands that comes up now: its ten minutes begin after quiet hours."""
    return rule.quiet_left_s(second_of_day(now)) + ASK_AGAIN_S


def outlives_quiet_hours(rule: ApprovalRule, saga: Saga, now: float) -> bool:
    """Whether an open question came up in the quiet hours of now, so that it outlives them."""
    return saga.plan.expires_at > now + rule.quiet_left_s(second_of_day(now))


def in_quiet_hours(found: Judgement, saga: Saga, held: Held, now: float) -> Judgement:
    """What becomes of a question that nobody may be asked now, while the target waits for it.

    The run trains on at its source all the time. Where the target can wait until people may be
    asked, by the limit that was approved, it does; else the move is called off at once, not after
    its money is gone. A question that was open before the quiet hours is as open as it was.
    """
    until_s = saga.plan.expires_at - now
    waiting = for_duration(held.micro_usd_per_h, max(0.0, until_s))
    limit = saga.limit_micro_usd
    if not limit or held.spent_micro_usd + waiting < limit * SPENT_SHARE:
        until = f"{clock_at(saga.plan.expires_at)} {zone_of(now)}"
        price = format_usd(held.micro_usd_per_h)
        told = f"{found.because}; the target waits at {price}/h, the question stands until {until}"
        return Judgement("later", told)
    return Judgement(
        "refuse",
        f"{found.because}; to hold the target until then costs {format_usd(waiting)} and the move "
        f"may cost {format_usd(limit)}: propose it again when somebody can be asked",
    )
