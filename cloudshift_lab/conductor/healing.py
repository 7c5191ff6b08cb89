"""Whether, when and where a lost run goes on by itself: decided here, done by its tender."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from cloudshift_lab.conductor.automation import Automation
from cloudshift_lab.conductor.maintenance import Maintenance
from cloudshift_lab.conductor.moves import Surroundings
from cloudshift_lab.conductor.noticing import is_outlived
from cloudshift_lab.conductor.places import Places, is_sold_as, placement_at
from cloudshift_lab.conductor.pricing import price_source
from cloudshift_lab.conductor.records import AttemptStarted, Restarted, RunRecord, RunResumed
from cloudshift_lab.conductor.requests import ask_about
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.maintenance import PassportEntry
from cloudshift_lab.core.money import format_duration
from cloudshift_lab.core.orders import AgentStatus
from cloudshift_lab.core.placement import Cloud, Offer
from cloudshift_lab.core.run import RunSpec
from cloudshift_lab.health import Evidence, Finding, Subject, Taken, rule
from cloudshift_lab.health.policy import HOUR_S

MOST_IN_VAIN = 3
SOON_S = 60.0
_STALE_S = 3600.0
_PAUSE_S = (0.0, 10.0, 30.0)
_AGAIN = "it is started again by itself"


@dataclass(frozen=True)
class Loss:
    """A run whose agent or machine is gone.

    Args:
        run_id: Which.
        generation: Of the attempt that was lost.
        at: When that was seen, wall-clock seconds.
        heard_at: When its agent spoke last, wall-clock seconds.
        words: What happened.
        step: The newest committed one; None: there is none.
        in_vain: How many restarts in a row have led to no newer one.
    """

    run_id: str
    generation: int
    at: float
    heard_at: float
    words: str
    step: int | None
    in_vain: int


class Ruled(msgspec.Struct, frozen=True):
    """What is done about a loss, in words that go on from what happened.

    ``at``: what is done later is done then, wall-clock seconds.
    """

    verdict: Literal["now", "later", "held"]
    words: str
    at: float = 0.0


def loss_of(record: RunRecord, owner: AttemptStarted, step: int | None) -> Loss:
    """What is known of a run that is lost now; ``step`` is its newest commit."""
    ended = record.ended
    assert ended is not None, "only an ended run is lost"
    return Loss(
        run_id=record.run_id,
        generation=owner.job.generation,
        at=ended.at,
        heard_at=owner.at if ended.heard_at is None else ended.heard_at,
        words=ended.error or "it is lost",
        step=step,
        in_vain=_in_vain(record.in_a_row, step),
    )


def _in_vain(restarts: Sequence[Restarted], step: int | None) -> int:
    """Committed steps never go back: what began from the newest one has led no further."""
    return sum(each.step == step for each in restarts)


def finding_of(loss: Loss) -> Finding:
    """A loss as health tells it: proven, since the engine itself says that the agent is gone."""
    newest = "none" if loss.step is None else float(loss.step)
    return Finding(
        rule_id="run.lost",
        subject=Subject("run", f"{loss.run_id} generation {loss.generation}"),
        severity="critical",
        evidence=(
            Evidence("agent", "gone", at=loss.at),
            Evidence("newest committed step", newest),
            Evidence("restarts in a row without a newer one", loss.in_vain, limit=MOST_IN_VAIN),
        ),
        action="restart the run",
        confidence=1.0,
        deterministic=True,
        words=f"{loss.run_id}: {loss.words}; start it again from its newest step",
        at=loss.at,
    )


def decide(loss: Loss, restarts: Sequence[Restarted], automation: Automation, now: float) -> Ruled:
    """What is done about a loss at a moment; of the same facts always the same.

    Args:
        loss: What happened.
        restarts: All automatic ones of this run.
        automation: What is allowed.
        now: Wall-clock seconds.
    """
    reason = _why_not(loss)
    if reason is not None:
        return Ruled("held", reason)
    taken = [Taken(each.key, each.at) for each in restarts]
    (ruling,) = rule([finding_of(loss)], taken, now, automation.policy)
    if ruling.verdict == "would act":
        return Ruled("held", "it would be started again by itself, were this no dry run")
    if ruling.verdict != "act":
        return _when_allowed(taken, automation)
    due = loss.at + _PAUSE_S[min(loss.in_vain, len(_PAUSE_S) - 1)]
    if now < due:
        return Ruled("later", _AGAIN, due)
    return Ruled("now", _AGAIN)


def _why_not(loss: Loss) -> str | None:
    if loss.in_vain >= MOST_IN_VAIN:
        newest = "any checkpoint" if loss.step is None else f"a newer checkpoint than {loss.step}"
        return (
            f"{MOST_IN_VAIN} restarts in a row ended without {newest}, so it is not started again"
        )
    away_s = loss.at - loss.heard_at
    if away_s > _STALE_S:
        return (
            f"its agent spoke last {format_duration(away_s)} before that was seen, so it is not "
            "started again by itself"
        )
    return None


def _when_allowed(taken: Sequence[Taken], automation: Automation) -> Ruled:
    """The hour's restarts are used up: when the oldest of them that stands in the way is over."""
    most = automation.max_per_h
    if most <= 0:
        return Ruled("held", "no automatic restart is allowed here")
    newest = sorted(each.at for each in taken)[-most:]
    words = f"{most} automatic restarts within an hour are enough; {_AGAIN}"
    return Ruled("later", words, newest[0] + HOUR_S)


def restart(
    record: RunRecord, loss: Loss, attempt: AttemptStarted, status: AgentStatus | None,
    *, machine: str, around: Surroundings,
) -> RunResumed:  # fmt: skip
    """A lost run's next attempt, with why.

    Args:
        record: The run.
        loss: What happened.
        attempt: As it would go on where it was.
        status: The last word of the agent that is gone.
        machine: Where that was; empty: its engine does not tell.
        around: Where the run may go on, and who looks after machines.

    Raises:
        UsageError: A place that its spec names is none any more.
    """
    notice = record.notices.get(loss.generation)
    was_taken = notice is not None and not is_outlived(notice, status, now=attempt.at)
    excluded = machine if was_taken or loss.in_vain else ""
    offers = allowed_offers(record.spec, attempt, around.places)
    barred = [*(each.machine for each in record.in_a_row if each.machine), excluded]
    moved = moved_attempt(attempt, offers, in_vain=loss.in_vain, barred=[b for b in barred if b])
    if machine:
        _report(loss, machine, around.maintenance, is_suspect=loss.in_vain > 0)
    restarted = Restarted(
        at=attempt.at,
        key=finding_of(loss).key,
        because=loss.words,
        step=attempt.job.restore_step,
        machine=excluded,
    )
    return RunResumed(attempt=moved, restarted=restarted)


def _report(loss: Loss, machine: str, maintenance: Maintenance, *, is_suspect: bool) -> None:
    """Keep in a machine's passport that a run was lost there; have a suspect one looked at.

    Damaged books are no reason to leave a run lost: the doctor tells of them.
    """
    if maintenance.damage:
        return
    finding = finding_of(loss)
    words = f"{loss.run_id}, generation {loss.generation}: {loss.words}"
    entry = PassportEntry(loss.at, "lost", words, run_id=loss.run_id)
    maintenance.note(machine, finding.key, entry)
    if is_suspect:
        key = f"{machine}/{finding.rule_id}"
        maintenance.open(ask_about(finding, machine, "look at", key=key, run_id=loss.run_id))


# -- where ---------------------------------------------------------------------------------------


def allowed_offers(spec: RunSpec, owner: AttemptStarted, places: Places) -> list[Offer]:
    """Where a lost run may go on, the present offer first.

    Then what the same place sells no dearer than what it costs now, then what its spec names. All
    keep their state in the run's own store.
    """
    here, job = owner.job.placement, owner.job
    clouds = places.clouds()
    offers = [offer for cloud in clouds.clouds for offer in cloud.offers]
    first = [offer for offer in offers if is_sold_as(offer, here)]
    price = owner.price_micro_usd_per_h
    beside = [
        offer
        for offer in offers
        if (offer.cloud, offer.region) == (here.cloud, here.region)
        and offer.price_micro_usd_per_h * here.nodes <= price
    ]
    named = [offer for _, offer in restart_places(spec, places, job.store_url)]
    found: list[Offer] = []
    for offer in (*first, *sorted(beside, key=lambda o: o.price_micro_usd_per_h), *named):
        if offer not in found:
            found.append(offer)
    return found


def restart_places(spec: RunSpec, places: Places, store_url: str) -> list[tuple[Cloud, Offer]]:
    """The places that a spec names besides its own.

    Raises:
        UsageError: No such place, or its state is kept in another store.
    """
    found = [places.resolve(name) for name in spec.restart_on]
    for cloud, _ in found:
        if cloud.store_url != store_url:
            raise UsageError(
                f"{cloud.name} keeps its state in another store, so a lost run cannot go on there "
                "by itself; leave it out of restart_on"
            )
    return found


def moved_attempt(
    attempt: AttemptStarted, offers: Sequence[Offer], *, in_vain: int, barred: Sequence[str]
) -> AttemptStarted:
    """The attempt that goes on, elsewhere the more often it was in vain.

    At first where it was; then on other machines than the one it was lost on; then also at the
    next offer that is allowed.

    Args:
        attempt: As it would go on where it was.
        offers: Those allowed, the present one first.
        in_vain: Restarts in a row that led no further.
        barred: Machines it was lost on, which are not used any more.
    """
    job = attempt.job
    job = msgspec.structs.replace(job, exclude=tuple(sorted({*job.exclude, *barred})))
    turn = max(0, in_vain - 1)
    if turn == 0 or turn >= len(offers):
        return msgspec.structs.replace(attempt, job=job)
    offer, here = offers[turn], job.placement
    place = placement_at(offer, ranks_per_node=here.ranks_per_node, nodes=here.nodes)
    return msgspec.structs.replace(
        attempt,
        job=msgspec.structs.replace(job, placement=place),
        price_micro_usd_per_h=offer.price_micro_usd_per_h * place.nodes,
        price_source=price_source(offer),
        simulated=attempt.simulated or offer.simulated,
    )


# -- words ---------------------------------------------------------------------------------------


def lost_words(record: RunRecord, ruled: Ruled | None, now: float) -> str:
    """What is said of a lost run: what happened, and what happens next or is to be done."""
    assert record.ended is not None, "only an ended run is lost"
    happened = record.ended.error or "it is lost"
    if record.held is not None:
        return f"{happened}; {record.held.because}"
    if not record.awaits_restart:
        return happened
    if ruled is None or ruled.verdict != "later":
        return f"{happened}; {_AGAIN}"
    return f"{happened}; {ruled.words} in {format_duration(max(0.0, ruled.at - now))}"


def is_soon(record: RunRecord, ruled: Ruled | None) -> bool:
    """Whether a lost run is about to go on by itself, so that nobody need call it lost."""
    if not record.awaits_restart or record.ended is None:
        return False
    return ruled is None or ruled.verdict != "later" or ruled.at - record.ended.at <= SOON_S


def held_words(run_id: str, why: str) -> str:
    """Why a lost run does not go on by itself, and what a person does about that."""
    return (
        f"{why}; see `cloudshift logs {run_id}`, then continue it with `cloudshift resume {run_id}`"
    )


def restarted_words(record: RunRecord) -> str:
    """Why and how the run went on by itself the last time; empty: it never did."""
    if not record.restarts:
        return ""
    last = record.restarts[max(record.restarts)]
    since = "its beginning" if last.step is None else f"step {last.step}"
    apart = f", without {last.machine}" if last.machine else ""
    return f"started again by itself from {since}{apart}: {last.because}"
