"""``python -m cloudshift_lab chaos``: kill real processes while a real run moves, then judge."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from cloudshift_lab.core.errors import CloudshiftError
from cloudshift_lab.core.home import open_home
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.sim.bed import Bed, ending_in_order
from cloudshift_lab.sim.bench import surroundings
from cloudshift_lab.sim.chaos import ranks
from cloudshift_lab.sim.chaos.campaign import Campaign
from cloudshift_lab.sim.chaos.report import (
    KILLED,
    NEVER_KILLED,
    Report,
    counted,
    num_counted,
    text_of,
)
from cloudshift_lab.sim.chaos.schedule import Schedule
from cloudshift_lab.sim.clouds import SimClouds

RTT_S, BYTES_PER_S = 0.01, 50e6
LONGEST_S = 32.0


def main(argv: list[str]) -> int:
    """Kill at random, by seed. Returns 0 when nothing was violated, 1 otherwise."""
    options = _parse(argv)
    folder = Path(options.keep or tempfile.mkdtemp(prefix="chaos-"))
    try:
        with ending_in_order():
            if options.what == "ranks":
                keep = partial(_keep, options.json)
                wounded = ranks.attack(
                    options.seeds, folder, _say, spare=options.spare, keep=keep
                )  # fmt: skip
                return _tell(wounded, ranks.text_of(wounded), options.json)
            report = attack(options.kills, options.seed, folder, _say)
    except CloudshiftError as error:
        print(f"chaos failed: {error.message}", file=sys.stderr)
        return 1
    return _tell(report, text_of(report), options.json)


def _tell(report: Report | ranks.RanksReport, text: str, json: str | None) -> int:
    _keep(json, report)
    print(text)
    return 0 if report.passed else 1


def _keep(json: str | None, report: Report | ranks.RanksReport) -> None:
    if json is not None:
        Path(json).write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cloudshift chaos", description=main.__doc__)
    parser.add_argument("what", choices=("migration", "ranks"))
    parser.add_argument("--kills", type=int, default=100, help="kill -9 and link cuts to deliver")
    parser.add_argument("--seed", type=int, default=1, help="of what is hit, where and when")
    parser.add_argument("--seeds", type=int, default=25, help="ranks: runs with a kill per phase")
    parser.add_argument("--spare", choices=("auto", "on", "off"), default="on",
                        help="ranks: whether imported interpreters wait")  # fmt: skip
    parser.add_argument("--json", help="file for the report")
    parser.add_argument("--keep", help="folder for everything; a temporary one that stays if not")
    return parser.parse_args(argv)


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def attack(kills: int, seed: int, folder: Path, say: Callable[[str], None]) -> Report:
    """A whole campaign.

    Raises:
        CloudshiftError: It could not go on, which is a finding too; names where to look.
    """
    began = REAL_WORLD.monotonic()
    home = open_home(folder / "home")
    clouds = SimClouds(home)
    clouds.up()
    try:
        with clouds.joined(rtt_s=RTT_S, bytes_per_s=BYTES_PER_S) as link, Bed(home) as bed:
            campaign = Campaign(
                bed, clouds, link, schedule=Schedule(seed, LONGEST_S), folder=folder,
                world=REAL_WORLD,
            )  # fmt: skip
            campaign.run(kills, say)
    finally:
        clouds.down()
    return _report(campaign, kills, seed, seconds=REAL_WORLD.monotonic() - began)


def _report(campaign: Campaign, kills: int, seed: int, *, seconds: float) -> Report:
    moves = tuple(campaign.ended)
    hits = [kill for move in moves for kill in move.kills]
    planned = [m.lost_steps for m in moves if not m.by_hand]
    return Report(
        seed=seed, wanted=kills, kills=num_counted(hits), seconds=round(seconds, 1),
        killed=sum(kill.victim in KILLED for kill in hits),
        cut=sum(kill.victim == "link cut" for kill in hits),
        others=len(hits) - num_counted(hits), never_killed=NEVER_KILLED,
        command=f"python -m cloudshift_lab chaos migration --kills {kills} --seed {seed}",
        date=surroundings.date(),
        commit=surroundings.commit(), machine=surroundings.machine(),
        by_phase=counted([kill.phase for kill in hits]),
        by_victim=counted([kill.victim for kill in hits]),
        outcomes=counted([m.phase + (", resumed by hand" if m.by_hand else "") for m in moves]),
        steps=campaign.steps, compared=campaign.compared, split_brains=campaign.split_brains,
        lost_steps_planned=sum(planned),
        lost_steps_killed=sum(m.lost_steps for m in moves) - sum(planned),
        moves=moves, violations=tuple(campaign.violations),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
