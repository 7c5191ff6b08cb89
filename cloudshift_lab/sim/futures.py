"""A thousand futures of one click: ``python -m cloudshift_lab.sim.futures < ask.json``.

Each future is the production saga with the market's prices; only durations and trouble are drawn
(``odds``). Nothing is read but the ask, so the same ask gives the same futures everywhere.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cloudshift_lab.core.asks import FuturesAsk
from cloudshift_lab.core.errors import CloudshiftError, UsageError
from cloudshift_lab.core.plan import Futures, Spread
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.sim.odds import Hazards, odds_of
from cloudshift_lab.sim.one_future import Ending, Future, proposed

MOST_FUTURES = 100_000


def simulate(ask: FuturesAsk, *, hazards: Hazards | None = None, spread: float = 1.0) -> Futures:
    """Draw the futures of a plan that is approved now.

    Args:
        ask: The plan, what was measured, how many futures and the seed.
        hazards: How often something goes wrong; None: as assumed for machines of that market.
        spread: Factor on how far durations are off; 0: each takes exactly what is expected.

    Raises:
        UsageError: The plan does not carry its own digest, or ``num`` is out of range.
    """
    if not 1 <= ask.num <= MOST_FUTURES:
        raise UsageError(f"{ask.num} futures cannot be drawn; ask for 1 to {MOST_FUTURES}")
    odds, begin = odds_of(ask, hazards), proposed(ask)
    endings = [Future(ask, odds, number, spread).live(begin) for number in range(ask.num)]
    pauses = [each.pause_s for each in endings if each.moved and each.pause_s is not None]
    moved = sum(each.moved for each in endings)
    return Futures(
        num=ask.num,
        pause_s=_spread(pauses) if pauses else None,
        cost_micro_usd=_spread([float(each.cost_micro_usd) for each in endings]),
        finish_s=_spread([each.finish_s for each in endings]),
        rolled_back=1.0 - moved / ask.num,
        lost_steps=sum(each.lost_steps for each in endings) / ask.num,
        basis="; ".join([*_notes(endings), odds.basis]),
    )


def _notes(endings: Sequence[Ending]) -> list[str]:
    """What the numbers are of."""
    moved = sum(each.moved for each in endings)
    asked = sum(each.asked_again for each in endings) / len(endings)
    return [
        "the product's own saga with drawn durations and failures",
        f"pause of the {moved:,} that arrived, cost and end of all {len(endings):,}"
        if moved
        else f"none arrived, so no pause is known; cost and end of all {len(endings):,}",
        *([f"{asked:.0%} ask again for a worse bill, approved after a minute"] if asked else []),
    ]


def _spread(values: Sequence[float]) -> Spread:
    """The values below which a tenth, a half and nine tenths lie."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return Spread(*(ordered[round(last * share)] for share in (0.1, 0.5, 0.9)))


def main() -> int:
    """Answer one ``FuturesAsk`` on stdin with ``Futures`` on stdout; 2 when it cannot be read."""
    try:
        ask = from_json(sys.stdin.buffer.read(), FuturesAsk, what="the ask for futures")
        print(to_json(simulate(ask)).decode())
    except CloudshiftError as error:
        print(error.message, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
