"""``python -m cloudshift_lab market``: hands over to what was asked for."""

from __future__ import annotations

import sys
from importlib import import_module

_WAYS = {
    "prices": ("cloudshift_lab.lab.advice.prices", "what machines cost where, and how old that is"),
    "advise": (
        "cloudshift_lab.lab.advice.advise",
        "whether a run should move, itemised",
    ),
    "replay": (
        "cloudshift_lab.sim.market.main",
        "the policy on recorded markets, beside hindsight",
    ),
}


def main(argv: list[str]) -> int:
    """Run one of the ways. Returns its exit status; 2 when there is no such way."""
    way = argv[0] if argv else "--help"
    if way in ("-h", "--help"):
        print(_help())
        return 0
    if way not in _WAYS:
        print(f"market has no '{way}'; choose one of: {', '.join(_WAYS)}", file=sys.stderr)
        return 2
    module, _ = _WAYS[way]
    status: int = import_module(module).main(argv[1:])
    return status


def _help() -> str:
    lines = [f"  {way:8s} {what}" for way, (_, what) in _WAYS.items()]
    return "\n".join(["usage: cloudshift market WAY ...; add --help to one of these:", *lines])
