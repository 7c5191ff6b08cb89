"""A job in a file, as ``market advise --job`` takes it: TOML or JSON."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from cloudshift_lab.core.errors import NotFound, UsageError
from cloudshift_lab.core.placement import EgressTier, Market
from cloudshift_lab.feeds.egress_book import egress_tiers
from cloudshift_lab.market.advice import Link, Question
from cloudshift_lab.market.commitments import Commitment
from cloudshift_lab.market.quotes import Quote

EXAMPLE = """
  cloud = "aws"                       # where it runs
  region = "us-east-1"
  instance_type = "p5.48xlarge"
  market = "on-demand"                # or spot, reserved
  nodes = 1
  price_usd_h = 55.04                 # of a node; left out: as the price list says
  left_h = 48                         # training left, at the pace there
  carry_gb = 2000                     # what a move carries (GB of 10^9 bytes)
  link_gbit_s = 5                     # measured; left out: assumed
  deadline_h = 72                     # from now; left out: none
  budget_usd = 5000                   # left out: none
  spent_usd = 1200
  most_slowdown = 2                   # the rest may take so many times as long
  egress_used_gb = 0                  # this month already
  accelerator = "H100"                # only offers with it; left out: all that are known

  [[offers]]                          # left out: the prices that are known
  cloud = "gcp"
  region = "us-central1"
  instance_type = "a3-highgpu-8g"
  price_usd_h = 38.53
  [[commitments]]                     # reserved capacity
  cloud = "aws"
  region = "us-east-1"
  instance_type = "p5.48xlarge"
  nodes = 1
  price_usd_h = 40
  until = 2027-01-31
"""


class OfferEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An offer in a job file; a price that is typed is true now."""

    cloud: str
    region: str
    instance_type: str
    price_usd_h: float
    market: Market = "on-demand"
    accelerator: str = ""
    num_accelerators: int = 0
    accelerator_memory_gb: float = 0.0
    simulated: bool = False


class CommitmentEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A reservation in a job file."""

    cloud: str
    region: str
    instance_type: str
    nodes: int
    price_usd_h: float
    until: str
    nodes_used: int = 0
    alternative_usd_h: float = 0.0


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the file says; see ``EXAMPLE``."""

    cloud: str
    region: str
    instance_type: str
    left_h: float
    market: Market = "on-demand"
    nodes: int = 1
    price_usd_h: float | None = None
    accelerator: str = ""
    num_accelerators: int = 0
    accelerator_memory_gb: float = 0.0
    carry_gb: float = 0.0
    link_gbit_s: float | None = None
    deadline_h: float | None = None
    budget_usd: float | None = None
    spent_usd: float = 0.0
    egress_used_gb: float = 0.0
    egress_usd_gb: float | None = None
    pause_s: float = 10.0
    start_s: float = 300.0
    spot_life_h: float | None = None
    simulated: bool = False
    most_slowdown: float = 2.0
    offers: tuple[OfferEntry, ...] = ()
    commitments: tuple[CommitmentEntry, ...] = ()


def read_job(path: Path) -> Job:
    """A job out of a TOML or JSON file.

    Raises:
        NotFound: There is no such file.
        UsageError: A field is unknown, missing or of another kind; names it.
    """
    if not path.is_file():
        raise NotFound(f"{path} is not there; write a job like:\n{EXAMPLE}")
    try:
        data = path.read_bytes()
        told = msgspec.json.decode(data) if path.suffix == ".json" else tomllib.loads(data.decode())
        return msgspec.convert(_with_dates(told), Job)
    except (msgspec.MsgspecError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path.name} is no job ({error}); see: market advise --help") from error


def question_of(job: Job, known: Sequence[Quote], now: float) -> Question:
    """What advice is asked for.

    Args:
        job: As read.
        known: Prices that are known, for what the job does not price itself.
        now: Unix seconds.

    Raises:
        UsageError: The price of where it runs is not known, or a date cannot be read.
    """
    offers = tuple(_quote(each, now) for each in job.offers) or tuple(known)
    here = _here(job, known, now)
    return Question(
        here=here, offers=offers, now=now, nodes=job.nodes, left_s=job.left_h * 3600,
        carry_bytes=round(job.carry_gb * 1e9), links=_links(job, here, offers),
        deadline_s=None if job.deadline_h is None else job.deadline_h * 3600,
        pause_s=job.pause_s, start_s=job.start_s,
        spot_life_s=None if job.spot_life_h is None else job.spot_life_h * 3600,
        egress_used_bytes=round(job.egress_used_gb * 1e9),
        commitments=tuple(_commitment(each) for each in job.commitments),
        budget_micro_usd=None if job.budget_usd is None else round(job.budget_usd * 1e6),
        spent_micro_usd=round(job.spent_usd * 1e6), most_slowdown=job.most_slowdown,
    )  # fmt: skip


def _here(job: Job, known: Sequence[Quote], now: float) -> Quote:
    same = [
        quote for quote in known
        if (quote.cloud, quote.region, quote.instance_type, quote.market)
        == (job.cloud, job.region, job.instance_type, job.market)
    ]  # fmt: skip
    if job.price_usd_h is None:
        if not same:
            raise UsageError(
                f"no price is known for {job.instance_type} in {job.cloud}:{job.region}; write "
                "price_usd_h into the job, or run: market prices --refresh"
            )
        return min(same, key=lambda quote: quote.micro_usd_per_h)
    entry = OfferEntry(
        cloud=job.cloud, region=job.region, instance_type=job.instance_type, market=job.market,
        price_usd_h=job.price_usd_h, accelerator=job.accelerator, simulated=job.simulated,
        num_accelerators=job.num_accelerators, accelerator_memory_gb=job.accelerator_memory_gb,
    )  # fmt: skip
    return _described(_quote(entry, now), same)


def _described(quote: Quote, same: Sequence[Quote]) -> Quote:
    """With the accelerators that a price list names, where the job names none."""
    if quote.accelerator or not same:
        return quote
    return msgspec.structs.replace(
        quote, accelerator=same[0].accelerator, num_accelerators=same[0].num_accelerators,
        accelerator_memory_gb=same[0].accelerator_memory_gb,
    )  # fmt: skip


def _quote(entry: OfferEntry, now: float) -> Quote:
    return Quote(
        cloud=entry.cloud, region=entry.region, instance_type=entry.instance_type,
        market=entry.market, accelerator=entry.accelerator,
        num_accelerators=entry.num_accelerators,
        accelerator_memory_gb=entry.accelerator_memory_gb,
        micro_usd_per_h=round(entry.price_usd_h * 1e6), priced_at=now, seen_at=now,
        source="the job's file", confidence="simulated" if entry.simulated else "listed",
    )  # fmt: skip


def _links(job: Job, here: Quote, offers: Sequence[Quote]) -> dict[str, Link]:
    speed = None if job.link_gbit_s is None else job.link_gbit_s * 1e9 / 8
    links = {}
    for offer in offers:
        tiers, _ = egress_tiers((here.cloud, here.region), (offer.cloud, offer.region))
        if job.egress_usd_gb is not None:
            tiers = _flat(job.egress_usd_gb)
        links[f"{offer.cloud}:{offer.region}"] = Link(tiers, speed)
    return links


def _flat(usd_per_gb: float) -> tuple[EgressTier, ...]:
    if usd_per_gb < 0:
        raise UsageError(f"egress_usd_gb = {usd_per_gb} is below 0; correct it")
    return (EgressTier(None, round(usd_per_gb * 1e6)),)


def _commitment(entry: CommitmentEntry) -> Commitment:
    try:
        until = datetime.fromisoformat(entry.until).timestamp()
    except ValueError as error:
        raise UsageError(
            f"until = {entry.until!r} of a commitment is no date; write 2027-01-31"
        ) from error
    return Commitment(
        cloud=entry.cloud, region=entry.region, instance_type=entry.instance_type,
        nodes=entry.nodes, micro_usd_per_h=round(entry.price_usd_h * 1e6), until=until,
        nodes_used=entry.nodes_used,
        alternative_micro_usd_per_h=round(entry.alternative_usd_h * 1e6),
    )  # fmt: skip


def _with_dates(value: object) -> object:
    """TOML's dates as text, like JSON's."""
    if isinstance(value, dict):
        return {key: _with_dates(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_dates(each) for each in value]
    return value.isoformat() if hasattr(value, "isoformat") else value
