"""How likely a node faults within a week, from its own past and its fleet's; and what findings add.

What it is good for: choosing where to place a run and which spare to take, and noticing lemons.
What it is not good for: moving a run. On a real trace (InfiniteHBD, 400 nodes) four of five nodes
in the riskiest hundredth do not fault within the week.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cloudshift_lab.health.finding import Finding
from cloudshift_lab.health.scan import Floats

FEATURES = ("own faults, fading", "fleet faults of the week")
FADES_DAYS = 60.0
"""After so many days a fault of a node counts for 1/e. Repaired nodes fault again soon: of 431
episodes 37 % came within a day of a repair and 71 % within 30 days, and slowly less after."""
FLEET_DAYS = 7.0


@dataclass(frozen=True)
class Coefficients:
    """Of a logistic model on ``log1p`` features.

    Args:
        intercept: Log-odds of a node without faults in a fleet without faults.
        weights: Per feature of ``FEATURES``.
        source: What they were fitted to, and when.
    """

    intercept: float
    weights: tuple[float, float]
    source: str


TRAINED = Coefficients(
    intercept=-4.148,
    weights=(1.165, 0.807),
    source="fitted 2026-11-23 by health evaluate to days 30 to 192 of the InfiniteHBD trace, 154 "
    "faulty and 113 clean nodes",
)


def features(
    fault_days: Sequence[float], fleet_fault_days: Sequence[float], num_nodes: int, today: float
) -> tuple[float, float]:
    """What a risk is computed from; faults after ``today`` are not looked at.

    Args:
        fault_days: Beginnings of this node's faults, days.
        fleet_fault_days: Beginnings of all nodes' faults, days.
        num_nodes: Nodes of the fleet, >= 1.
        today: Days.
    """
    own = sum(math.exp((day - today) / FADES_DAYS) for day in fault_days if day <= today)
    fleet = sum(math.exp((day - today) / FLEET_DAYS) for day in fleet_fault_days if day <= today)
    per_100 = 100.0 * fleet / (num_nodes * FLEET_DAYS)
    return math.log1p(own), math.log1p(per_100)


def week_risk(values: tuple[float, float], coefficients: Coefficients = TRAINED) -> float:
    """Probability that a node with such features faults within seven days."""
    weighed = (weight * value for weight, value in zip(coefficients.weights, values, strict=True))
    return 1 / (1 + math.exp(-coefficients.intercept - sum(weighed)))


def with_findings(risk: float, findings: Sequence[Finding]) -> float:
    """A node's risk with what is found on it now.

    Each warning or critical finding is taken as another, independent way to fail, as likely as it
    is sure. That is meant for ordering nodes, and is no measured probability.
    """
    survives = 1 - risk
    for finding in findings:
        if finding.severity in ("warning", "critical"):
            survives *= 1 - min(finding.confidence, 0.999)
    return 1 - survives


def placement_risk(node_risks: Sequence[float]) -> float:
    """Probability that at least one of some nodes faults: a run needs all of them."""
    return 1 - math.prod(1 - risk for risk in node_risks)


def choose(risks: dict[str, float], num: int) -> tuple[str, ...]:
    """The ``num`` least risky nodes, ties by name; fewer if there are not so many."""
    return tuple(sorted(risks, key=lambda node: (risks[node], node))[:num])


def fit(values: Floats, faulted: Floats, *, source: str, l2: float = 1.0) -> Coefficients:
    """Fit the model by penalised maximum likelihood (Newton's method on standardised features).

    Args:
        values: Features, [samples, 2].
        faulted: 1 where the node faulted within the week, else 0, [samples].
        source: Said of the result.
        l2: Weight of the penalty on standardised weights.
    """
    mean, spread = values.mean(axis=0), values.std(axis=0) + 1e-9
    design = np.column_stack([np.ones(len(values)), (values - mean) / spread])
    penalty = np.diag([0.0, *[l2] * values.shape[1]])
    weights = np.zeros(design.shape[1])
    for _ in range(30):
        risk = 1 / (1 + np.exp(-design @ weights))
        curvature = design.T @ (design * (risk * (1 - risk))[:, None]) + penalty
        weights += np.linalg.solve(curvature, design.T @ (faulted - risk) - penalty @ weights)
    scaled = weights[1:] / spread
    return Coefficients(
        float(weights[0] - scaled @ mean), (float(scaled[0]), float(scaled[1])), source
    )
