"""What findings ask of people: the maintenance request that says so."""

from __future__ import annotations

from cloudshift_lab.conductor.automation import Automation
from cloudshift_lab.conductor.maintenance import Maintenance
from cloudshift_lab.core.maintenance import CORDONING, Exhibit, MaintenanceAsk, NodeAction
from cloudshift_lab.health import Action, Evidence, Finding, Taken, rule

_RULE = "rule "
_ASKS: dict[Action, NodeAction] = {
    "reset the GPU": "reset",
    "drain and reset the GPU": "reset",
    "reboot the node": "reboot",
    "drain the node": "drain",
    "replace the node": "replace",
    "contact support": "look at",
}


def ask_people(
    finding: Finding, node: str, maintenance: Maintenance, automation: Automation, *,
    run_id: str, now: float,
) -> None:  # fmt: skip
    """Make the request that a finding leads to, if it asks for something of its machine.

    Only what is proven takes a machine out of use, as often as is allowed; else it is asked to be
    looked at.

    Args:
        finding: What is wrong.
        node: The machine it is about.
        maintenance: Keeps the requests.
        automation: What is allowed.
        run_id: The run that met it.
        now: Wall-clock seconds.

    Raises:
        Exhausted: The journal's disk is full.
    """
    wanted = _ASKS.get(finding.action)
    if wanted is None or not node or maintenance.damage:
        return
    taken = [
        Taken(each.request.key, each.request.opened_at)
        for each in maintenance.all()
        if each.request.by.startswith(_RULE) and each.request.action in CORDONING
    ]
    (ruling,) = rule([finding], taken, now, automation.policy)
    action: NodeAction = wanted if ruling.verdict == "act" else "look at"
    maintenance.open(ask_about(finding, node, action, run_id=run_id))


def ask_about(
    finding: Finding, node: str, action: NodeAction, *, key: str = "", run_id: str = ""
) -> MaintenanceAsk:
    """A request with a finding's words and evidence.

    Args:
        finding: What is wrong.
        node: The machine it is about.
        action: What is asked for.
        key: What it is deduplicated by; empty: the finding's key, on this machine.
        run_id: The run that met it; empty: none.
    """
    return MaintenanceAsk(
        node=node,
        action=action,
        words=finding.words,
        by=f"{_RULE}{finding.rule_id}",
        key=key or f"{node}/{finding.key}",
        run_id=run_id,
        evidence=tuple(_exhibit(each) for each in finding.evidence),
    )


def _exhibit(evidence: Evidence) -> Exhibit:
    return Exhibit(
        what=evidence.what,
        value=_words(evidence.value, evidence.unit),
        limit="" if evidence.limit is None else _words(evidence.limit, evidence.unit),
        at=evidence.at,
    )


def _words(value: float | str, unit: str) -> str:
    shown = value if isinstance(value, str) else f"{value:g}"
    return f"{shown} {unit}".rstrip()
