"""Who may approve a move: rules that a person types once and that are judged at every plan."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import Literal

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.money import HOUR_S, MICRO
from cloudshift_lab.core.plan import Plan

GRAMMAR = (
    "ask | never | auto [if CONDITION and CONDITION ...], where a condition is price < 2.5/h, "
    "break-even < 4h, pause < 30s or at 22:00-06:00; behind ask or auto may stand "
    "quiet 23:00-07:00, approvers 2 and expires 30m"
)
DAY_S = 86_400.0
_SHORTEST_S, _LONGEST_S = 1e-3, 1e9
_UNIT_S = {"s": 1.0, "m": 60.0, "min": 60.0, "h": HOUR_S, "d": DAY_S}
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(s|min|m|h|d)")
_PRICE = re.compile(r"\$?([0-9]{1,9}(?:\.[0-9]{1,6})?)(?:usd)?(?:/h)?")
_WINDOW = re.compile(r"([0-9]{1,2}):([0-9]{2})-([0-9]{1,2}):([0-9]{2})")
_TOKEN = re.compile(r"<|[^\s<]+")
_LOOSE_UNIT = re.compile(r"(?<=[0-9]) +(?=(?:s|m|min|h|d|usd|usd/h|/h)(?:\s|$))")

Mode = Literal["ask", "auto", "never"]
Answer = Literal["approve", "ask", "refuse", "later"]


@dataclass(frozen=True)
class Window:
    """A span of the local day, minutes from midnight; ``end_min`` < ``start_min`` crosses it."""

    start_min: int
    end_min: int

    def __str__(self) -> str:
        return f"{_clock(self.start_min)}-{_clock(self.end_min)}"

    def holds(self, second_of_day: float) -> bool:
        """Whether a time of the day lies in it; its end does not."""
        start_s, end_s = self.start_min * 60.0, self.end_min * 60.0
        if start_s < end_s:
            return start_s <= second_of_day < end_s
        return second_of_day >= start_s or second_of_day < end_s

    def left_s(self, second_of_day: float) -> float:
        """Seconds until it ends, from a time inside of it."""
        return (self.end_min * 60.0 - second_of_day) % DAY_S


@dataclass(frozen=True)
class ApprovalRule:
    """A parsed rule. ``str(rule)`` is its shortest spelling, and parses to the same rule.

    ``price_micro_usd_per_h``, ``break_even_s`` and ``pause_s`` are limits that a plan must be
    below, ``at`` the local hours in which ``auto`` approves; None: no such condition. In ``quiet``
    hours nobody is asked. ``approvers``: how many different people or policies must approve.
    ``expires_s``: how long a question stands; None: as long as the plan says.
    """

    mode: Mode
    price_micro_usd_per_h: int | None = None
    break_even_s: float | None = None
    pause_s: float | None = None
    at: Window | None = None
    quiet: Window | None = None
    approvers: int = 1
    expires_s: float | None = None

    def __str__(self) -> str:
        words = [self.mode, *(["if " + " and ".join(self._conditions())] * self.has_conditions)]
        words += [f"quiet {self.quiet}"] if self.quiet else []
        words += [f"approvers {self.approvers}"] if self.approvers != 1 else []
        words += [f"expires {_short_duration(self.expires_s)}"] if self.expires_s else []
        return " ".join(words)

    @property
    def has_conditions(self) -> bool:
        return bool(self._conditions())

    @property
    def by(self) -> str:
        """Who decides when the rule does, for the record and for every surface."""
        return f"policy: {self}"

    def quiet_left_s(self, second_of_day: float) -> float:
        """Seconds for which nobody may be asked, from a local time of the day; 0 outside."""
        if self.quiet is None or not self.quiet.holds(second_of_day):
            return 0.0
        return self.quiet.left_s(second_of_day)

    def _conditions(self) -> list[str]:
        found = []
        if self.price_micro_usd_per_h is not None:
            found.append(f"price < {_plain(Decimal(self.price_micro_usd_per_h) / MICRO)}/h")
        if self.break_even_s is not None:
            found.append(f"break-even < {_short_duration(self.break_even_s)}")
        if self.pause_s is not None:
            found.append(f"pause < {_short_duration(self.pause_s)}")
        return [*found, *([f"at {self.at}"] if self.at else [])]


@dataclass(frozen=True)
class Judgement:
    """What a rule says to a plan now, and why in one line.

    ``later``: nobody may be asked now, for ``ApprovalRule.quiet_left_s`` more seconds.
    """

    verdict: Answer
    because: str


def parse(text: str) -> ApprovalRule:
    """Read a rule as a person types it; case and spaces do not matter.

    Raises:
        UsageError: It is none; names the word that does not fit, and shows the grammar.
    """
    words = _Words(text)
    mode = words.take()
    if mode == "ask":
        return words.finish(ApprovalRule("ask"))
    if mode == "auto":
        return words.finish(_with_conditions(words))
    if mode == "never" and words.peek() is None:
        return ApprovalRule("never")
    raise words.refuse(words.peek() if mode == "never" else mode)


def judge(
    rule: ApprovalRule,
    plan: Plan,
    now: float,
    *,
    price_micro_usd_per_h: int | None = None,
    is_worse: bool = False,
    is_sold: bool = True,
    zone: str = "",
) -> Judgement:
    """What a rule says to a plan at this time of the day.

    Args:
        rule: Parsed.
        plan: Proposed, with its bill.
        now: Local seconds since midnight, in [0, 86400); see :func:`second_of_day`.
        price_micro_usd_per_h: Of all the target's nodes together; None when it is not known.
        is_worse: The bill is worse than one that was approved before: only a rule about the bill
            itself, one with a break-even, may approve it again.
        is_sold: Whether the target is still in the price list; otherwise no rule approves.
        zone: Of ``now``, to be named with times; see :func:`zone_of`.
    """
    if rule.mode == "never":
        return Judgement("refuse", "never: this run does not move")
    checks = [] if rule.mode == "ask" else _checks(rule, plan, (now, zone), price_micro_usd_per_h)
    failed = [words for holds, words in checks if not holds]
    if not is_sold:
        failed.append("it is not sold any more, so nobody knows what it costs")
    if is_worse and rule.break_even_s is None:
        failed.append("the bill is worse as measured, and the rule sets no break-even")
    if rule.mode == "auto" and not failed:
        held = ", ".join(words for _, words in checks)
        return Judgement("approve", f"auto: {held or 'no condition was set'}")
    why = ", ".join(failed) or "a person decides"
    if rule.quiet is not None and rule.quiet.holds(now):
        end = _clock(rule.quiet.end_min)
        told = f"quiet hours, nobody is asked before {end}{_in_zone(zone)}: {why}"
        return Judgement("later", told)
    return Judgement("ask", f"ask: {why}")


def second_of_day(at: float) -> float:
    """Local seconds since midnight of a wall-clock time, by this machine's time zone."""
    local = datetime.fromtimestamp(at).astimezone()
    return local.hour * HOUR_S + local.minute * 60.0 + local.second


def zone_of(at: float) -> str:
    """This machine's time zone at a wall-clock time, as in ``UTC+01:00``."""
    offset = datetime.fromtimestamp(at).astimezone().strftime("%z")
    return f"UTC{offset[:3]}:{offset[3:5]}"


def clock_at(at: float) -> str:
    """The local time of the day of a wall-clock time, as in ``07:10``."""
    return _clock(int(second_of_day(at) // 60))


def planned_pause_s(plan: Plan) -> float:
    """Until the first new step at the target: the chosen closing's, else the bill's."""
    chosen = (way.pause_s for way in plan.closings if way.kind == plan.closing)
    return next(chosen, plan.bill.pause_s)


def _checks(
    rule: ApprovalRule, plan: Plan, clock: tuple[float, str], price: int | None
) -> list[tuple[bool, str]]:
    """Each condition, whether it holds, and that in words."""
    found: list[tuple[bool, str]] = []
    if rule.break_even_s is not None:
        found.append(_break_even_check(plan.bill.break_even_s, rule.break_even_s))
    if rule.price_micro_usd_per_h is not None:
        found.append(_price_check(price, rule.price_micro_usd_per_h))
    if rule.pause_s is not None:
        found.append(_duration_check("pause", planned_pause_s(plan), rule.pause_s))
    if rule.at is not None:
        now, zone = clock
        holds = rule.at.holds(now)
        where = "is within" if holds else "is not within"
        found.append((holds, f"{_clock(int(now // 60))}{_in_zone(zone)} {where} {rule.at}"))
    return found


def _break_even_check(seconds: float | None, limit_s: float) -> tuple[bool, str]:
    if seconds is None:
        wanted = _short_duration(limit_s)
        return False, f"it never pays for itself (break-even < {wanted} is wanted)"
    return _duration_check("break-even", seconds, limit_s)


def _duration_check(what: str, seconds: float, limit_s: float) -> tuple[bool, str]:
    """In the unit that the limit was most likely typed in."""
    number, unit = _short_duration(limit_s)[:-1], _short_duration(limit_s)[-1]
    holds, sign = seconds < limit_s, "<" if seconds < limit_s else "is not <"
    shown = _truthful(seconds / _UNIT_S[unit], limit_s / _UNIT_S[unit], (1, 2, 4, 9))
    return holds, f"{what} {shown} {unit} {sign} {number} {unit}"


def _price_check(price: int | None, limit: int) -> tuple[bool, str]:
    wanted = _truthful(limit / MICRO, limit / MICRO, (2, 6))
    if price is None:
        return False, f"the price is not known (less than {wanted} USD/h is wanted)"
    shown = _truthful(price / MICRO, limit / MICRO, (2, 6))
    return price < limit, f"price {shown} {'<' if price < limit else 'is not <'} {wanted} USD/h"


def _truthful(value: float, limit: float, decimals: tuple[int, ...]) -> str:
    """A number with as many decimals as its comparison with ``limit`` needs to read true."""
    texts = [f"{value:.{digits}f}" for digits in decimals]
    true = (text for text in texts if (float(text) < limit) == (value < limit))
    return next(true, repr(value))


@dataclass
class _Words:
    """The words of a rule, taken one after the other."""

    text: str
    rest: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        spaced = " ".join(self.text.lower().split())
        self.rest = _TOKEN.findall(_LOOSE_UNIT.sub("", spaced))

    def peek(self) -> str | None:
        return self.rest[0] if self.rest else None

    def take(self) -> str | None:
        return self.rest.pop(0) if self.rest else None

    def refuse(self, word: str | None) -> UsageError:
        """The error that names a word that does not fit here."""
        what = "it ends too early" if word is None else f"'{word[:40]}' does not fit there"
        shown = " ".join(self.text.split())[:60]
        return UsageError(f"'{shown}' is no approval rule, {what}; write {GRAMMAR}")

    def expect(self, wanted: str) -> None:
        word = self.take()
        if word != wanted:
            raise self.refuse(word)

    def seconds(self) -> float:
        word = self.take()
        match = _DURATION.fullmatch(word or "")
        value = round(float(match[1]) * _UNIT_S[match[2]], 3) if match else 0.0
        if not _SHORTEST_S <= value < _LONGEST_S:
            raise self.refuse(word)
        return value

    def micro_usd(self) -> int:
        word = self.take()
        match = _PRICE.fullmatch(word or "")
        if match is None or not float(match[1]):
            raise self.refuse(word)
        return int(Decimal(match[1]) * MICRO)

    def window(self) -> Window:
        word = self.take()
        match = _WINDOW.fullmatch(word or "")
        if match is None:
            raise self.refuse(word)
        start, end = (int(match[n]) * 60 + int(match[n + 1]) for n in (1, 3))
        minutes_fit = int(match[2]) < 60 and int(match[4]) < 60
        if not (minutes_fit and start < 1440 and end <= 1440) or start == end % 1440:
            raise self.refuse(word)
        return Window(start, end % 1440)

    def count(self) -> int:
        word = self.take()
        if word is None or not re.fullmatch("[1-9]", word):
            raise self.refuse(word)
        return int(word)

    def finish(self, rule: ApprovalRule) -> ApprovalRule:
        """Read what may stand behind a mode, each at most once."""
        while (word := self.take()) is not None:
            if word == "quiet" and rule.quiet is None:
                rule = replace(rule, quiet=self.window())
            elif word == "approvers" and rule.approvers == 1:
                rule = replace(rule, approvers=self.count())
            elif word == "expires" and rule.expires_s is None:
                rule = replace(rule, expires_s=self.seconds())
            else:
                raise self.refuse(word)
        return rule


def _with_conditions(words: _Words) -> ApprovalRule:
    """``auto`` with the conditions behind ``if``."""
    rule = ApprovalRule("auto")
    if words.peek() != "if":
        return rule
    while words.peek() == ("and" if rule.has_conditions else "if"):
        words.take()
        rule = _with_condition(rule, words)
    return rule


def _with_condition(rule: ApprovalRule, words: _Words) -> ApprovalRule:
    """One more condition; the same one twice is a mistake."""
    word = words.take()
    if word == "at" and rule.at is None:
        return replace(rule, at=words.window())
    if word == "price" and rule.price_micro_usd_per_h is None:
        words.expect("<")
        return replace(rule, price_micro_usd_per_h=words.micro_usd())
    if word == "break-even" and rule.break_even_s is None:
        words.expect("<")
        return replace(rule, break_even_s=words.seconds())
    if word == "pause" and rule.pause_s is None:
        words.expect("<")
        return replace(rule, pause_s=words.seconds())
    raise words.refuse(word)


def _in_zone(zone: str) -> str:
    return f" {zone}" if zone else ""


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def _plain(number: Decimal) -> str:
    """Exact, without an exponent or needless zeros."""
    return f"{number.normalize():f}"


def _short_duration(seconds: float) -> str:
    """In the largest unit that gives a whole number; exact seconds otherwise."""
    for unit in ("h", "m"):
        if seconds % _UNIT_S[unit] == 0:
            return f"{seconds / _UNIT_S[unit]:.0f}{unit}"
    return f"{_plain(Decimal(repr(seconds)))}s"
