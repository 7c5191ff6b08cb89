"""What the conductor may do by itself, as its owner has set it in ``automation.json``."""

from __future__ import annotations

from pathlib import Path

import msgspec

from cloudshift_lab.core.home import write_private
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.health import ActionPolicy

_MAX_PER_H = 6


class Automation(msgspec.Struct, frozen=True):
    """Limits of what is done without asking; of restarts for each run of its own.

    ``dry_run``: nothing is done, what would be done is said. ``max_per_h``: automatic actions
    within any hour. ``webhook``: where maintenance requests are posted to, empty: nowhere;
    ``webhook_token`` is sent with them as a bearer token.
    """

    dry_run: bool = False
    max_per_h: int = _MAX_PER_H
    webhook: str = ""
    webhook_token: str = ""

    @property
    def policy(self) -> ActionPolicy:
        """As the rules of health know it."""
        return ActionPolicy(dry_run=self.dry_run, max_per_h=self.max_per_h)


def load_automation(root: Path) -> Automation:
    """The settings of a state directory, as they are now.

    Raises:
        Corrupt: ``automation.json`` is not readable.
    """
    path = root / "automation.json"
    if not path.exists():
        return Automation()
    return from_json(path.read_bytes(), Automation, what=str(path))


def save_automation(root: Path, automation: Automation) -> None:
    """Write the settings, private to their owner: they may hold a token."""
    write_private(root / "automation.json", to_json(automation))
