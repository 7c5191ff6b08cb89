"""What findings ask of people: the maintenance request that says so."""

from __future__ import annotations

from cloudshift_lab.core.maintenance import Exhibit, MaintenanceAsk, NodeAction
from cloudshift_lab.health import Action, Evidence, Finding

_ASKS: dict[Action, NodeAction] = {
    "reset the GPU": "reset",
    "drain and reset the GPU": "reset",
    "reboot the node": "reboot",
    "drain the node": "drain",
    "replace the node": "replace",
    "contact support": "look at",
}


def request_for(finding: Finding, node: str, *, run_id: str = "") -> MaintenanceAsk | None:
    """The request that a finding leads to; None: it asks nothing of a machine.

    Only what is proven takes a machine out of use; what a statistic says asks to look at it.

    Args:
        finding: What is wrong.
        node: The machine it is about.
        run_id: The run that met it; empty: none.
    """
    wanted = _ASKS.get(finding.action)
    if wanted is None:
        return None
    action: NodeAction = wanted if finding.deterministic else "look at"
    return ask_about(finding, node, action, run_id=run_id)


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
        by=f"rule {finding.rule_id}",
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
