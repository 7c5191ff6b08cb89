"""A parsed line with who asks and where: what every verb is given."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from cloudshift_lab.lab.desk import Desk
from cloudshift_lab.lab.grammar import Call
from cloudshift_lab.lab.stage import Stage


@dataclass(frozen=True)
class Request:
    """A parsed line with who asks and where: ``cell`` is the body of a notebook cell."""

    call: Call
    desk: Desk
    stage: Stage
    cell: str | None = None

    @property
    def args(self) -> argparse.Namespace:
        return self.call.args
