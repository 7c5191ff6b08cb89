"""What is on record: receipts with forecast beside actual, notices and what they leave time for."""

from __future__ import annotations

from collections.abc import Sequence

from cloudshift_lab.core.asks import NoticeView
from cloudshift_lab.core.money import format_bytes, format_duration, format_usd
from cloudshift_lab.core.plan import Decision
from cloudshift_lab.lab.render.figures import clock
from cloudshift_lab.lab.render.markup import SIMULATED
from cloudshift_lab.lab.render.outlook import closing_name
from cloudshift_lab.lab.render.sheet import Sheet, Table
from cloudshift_lab.lab.render.standing import phase_title
from cloudshift_lab.migration import GENESIS, Compared, Receipt, check_chain, compare
from cloudshift_lab.sim.metadata_words import AWS_LEAD_S, GCP_LEAD_S, Preemption

HEAD = ("figure", "forecast", "actual", "difference")
CHAIN_HEAD = ("move", "receipt", "follows", "plan", "manifest of the sealed step")
_DOES = {
    "drain": "save the newest step",
    "stage": "save the newest step that lies staged",
    "move": "move the run before the machine goes",
}
LEADS_S = {"aws": AWS_LEAD_S, "gcp": GCP_LEAD_S}
_NAMES = {"pause": "pause", "still": "nothing computed", "bytes": "bytes moved", "cost": "cost"}


def receipts_sheet(name: str, receipts: Sequence[Receipt], prompt: str) -> Sheet:
    """Every move of a run, oldest first.

    Raises:
        Corrupt: A receipt was altered or left out.
    """
    check_chain(receipts)
    if not receipts:
        return Sheet(
            "receipts", f"{name} has no receipts: a move writes one when it is over",
            following=(f"{prompt} migrate {name} --to TARGET",),
        )  # fmt: skip
    tables = [_compared(receipt) for receipt in receipts]
    count = "1 receipt" if len(receipts) == 1 else f"{len(receipts)} receipts"
    return Sheet(
        "receipts",
        f"{count} of {name}, chain checked: each names the digest of the one before",
        (*tables, _chain(receipts)),
        notes=("digests are shortened here; --export writes them whole",),
        troubles=tuple(
            f"{receipt.migration_id}: {told}"
            for receipt in receipts
            for told in (receipt.error, receipt.partial)
            if told
        ),
        following=(f"{prompt} receipt {name} --export receipts.json",),
    )


def notice_sheet(name: str, view: NoticeView, by: str, prompt: str) -> Sheet:
    """What will be done before a machine goes, and what will not."""
    left = format_duration(max(0.0, view.deadline - view.at))
    does = " and ".join(_DOES.get(each, each) for each in view.does) or "nothing can be saved"
    lost = "no step" if not view.lost_steps else f"up to {view.lost_steps} steps"
    return Sheet(
        "notice",
        f"notice for {name} [{SIMULATED}]: the {view.side}'s machine goes in {left}, "
        f"at {clock(view.deadline)}",
        notes=(
            f"{SIMULATED}: typed by {by}, no provider said so; run and move do as they would",
            f"in this time: {does}; {lost} will be computed again",
            *([view.words] if view.words else []),
        ),
        following=(f"{prompt} watch {name}",),
    )


def preempted_sheet(cloud: str, events: Sequence[Preemption], prompt: str) -> Sheet:
    """Which machines are played to go, when they hear of it, and what happens then.

    Args:
        cloud: Whose machines.
        events: One for each machine; there is at least one.
        prompt: How this surface is called.
    """
    deadline, at = events[0].deadline, events[0].at
    lead_s = LEADS_S.get(cloud.partition("-")[0], 0.0)
    early_s = deadline - at - lead_s
    told = "now" if early_s <= 0 else f"in {format_duration(early_s)}, as that provider does"
    count = "1 machine" if len(events) == 1 else f"{len(events)} machines"
    names = ", ".join(event.machine.partition(".")[2] for event in events)
    then = (
        "what runs there is ended then, as if the machine had gone"
        if events[0].kills
        else "nothing is ended: who is still there half a minute later was spared, and trains on"
    )
    return Sheet(
        "preemption",
        f"preemption [{SIMULATED}]: {count} of {cloud} to be taken away in "
        f"{format_duration(deadline - at)}, at {clock(deadline)}",
        notes=(
            f"{SIMULATED}: no provider said so, an emulator on this machine does",
            f"run.attempt.node: {names}",
            f"the agents are told {told}",
            then,
        ),
        following=(f"{prompt} watch {events[0].machine.split('.')[1]}",),
    )


def _compared(receipt: Receipt) -> Table:
    rows = [
        (_NAMES[each.what], _figure(each, each.forecast), _figure(each, each.actual), _off(each))
        for each in compare(receipt)
        if (each.forecast, each.actual) != (None, None)
    ]
    return Table(HEAD, rows, frozenset({1, 2, 3}), title=_title(receipt))


def _title(receipt: Receipt) -> str:
    plan = receipt.plan
    target = receipt.target or plan.target
    words = [
        f"{receipt.migration_id}: {plan.source.target} to {target.target}, "
        f"{phase_title(receipt.outcome)} at {clock(receipt.at)}",
        *(_decided(each) for each in receipt.earlier),
        *(_decided(each) for each in receipt.approvals or _only(receipt.decision)),
    ]
    if receipt.sealed_step is not None:
        words.append(f"step {receipt.sealed_step} by {closing_name(receipt.closing)}")
    if receipt.tries:
        words.append(f"{receipt.tries + 1} tries")
    if receipt.lost_steps:
        words.append(f"{receipt.lost_steps} steps lost by a forced stop")
    if plan.bill.simulated:
        words.append(SIMULATED)
    return " · ".join(words)


def _chain(receipts: Sequence[Receipt]) -> Table:
    rows = [
        (
            receipt.migration_id,
            receipt.digest[:12],
            "the first" if receipt.previous == GENESIS else receipt.previous[:12],
            receipt.plan.digest[:12],
            (receipt.manifest_digest or "-")[:12],
        )
        for receipt in receipts
    ]
    return Table(CHAIN_HEAD, rows, title="chain")


def _decided(decision: Decision) -> str:
    verb = "approved" if decision.verdict == "approve" else "rejected"
    return f"{verb} by {decision.by}"


def _only(decision: Decision | None) -> tuple[Decision, ...]:
    return () if decision is None else (decision,)


def _figure(figure: Compared, value: float | None) -> str:
    if value is None:
        return "-"
    match figure.unit:
        case "s":
            return format_duration(value)
        case "bytes":
            return format_bytes(round(value))
        case "micro-usd":
            return format_usd(round(value))


def _off(figure: Compared) -> str:
    """How far the forecast was off, as a share of it."""
    if figure.forecast is None or figure.actual is None or not figure.forecast:
        return ""
    return f"{(figure.actual - figure.forecast) / abs(figure.forecast):+.0%}"
