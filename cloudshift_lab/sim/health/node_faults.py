"""How well a node's faults of the next week are told from its past, on a real trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cloudshift_lab.health.hazard import (
    FADES_DAYS,
    FLEET_DAYS,
    TRAINED,
    Coefficients,
    fit,
    week_risk,
)
from cloudshift_lab.health.scan import Flags, Floats
from cloudshift_lab.sim.bench.rows import Row, at_least, row
from cloudshift_lab.sim.health.data import Fault, faults
from cloudshift_lab.sim.health.score import FOLDS, area_under_curve, folds, spread

TRAIN_FROM, TRAIN_UNTIL, TEST_FROM = 30, 193, 208
"""Days. Weeks of training samples end before day 200, test samples begin after 207."""
AHEAD_DAYS = 7.0
BASELINE = 0.61
CLEAN_PER_FAULTY = 169 / 231
"""Of the trace's 400 nodes 231 ever failed; the others are not listed and have to be added."""
_TOP = 0.01


@dataclass(frozen=True)
class NodeDays:
    """A sample per node and day.

    Args:
        features: As ``hazard.features`` gives them, [samples, 2].
        happened: 1 where the node faults within the next week, [samples].
        day: [samples].
        node: Number of the node, [samples].
        is_up: Whether it is in service on that day, [samples].
    """

    features: Floats
    happened: Floats
    day: Floats
    node: Floats
    is_up: Flags


def node_days(trace: Sequence[Fault], num_clean: int) -> NodeDays:
    """All samples of a trace with so many more nodes that never failed."""
    names = sorted({each.node for each in trace})
    begins = [np.array([each.begin for each in trace if each.node == name]) for name in names]
    ends = [np.array([each.end for each in trace if each.node == name]) for name in names]
    begins += [np.zeros(0)] * num_clean
    ends += [np.zeros(0)] * num_clean
    days = np.arange(TRAIN_FROM, int(max(each.end for each in trace) - AHEAD_DAYS) + 1.0)
    everywhere = np.concatenate(begins)
    fleet = _fading(days, everywhere, FLEET_DAYS) * 100 / (len(begins) * FLEET_DAYS)
    parts = [
        _of_node(index, days, begin, end, fleet)
        for index, (begin, end) in enumerate(zip(begins, ends, strict=True))
    ]
    return NodeDays(
        features=np.concatenate([each.features for each in parts]),
        happened=np.concatenate([each.happened for each in parts]),
        day=np.concatenate([each.day for each in parts]),
        node=np.concatenate([each.node for each in parts]),
        is_up=np.concatenate([each.is_up for each in parts]),
    )


def _of_node(index: int, days: Floats, begin: Floats, end: Floats, fleet: Floats) -> NodeDays:
    own = _fading(days, begin, FADES_DAYS)
    after = begin[None, :] - days[:, None]
    is_down = (begin[None, :] <= days[:, None]) & (days[:, None] < end[None, :])
    return NodeDays(
        features=np.log1p(np.column_stack([own, fleet])),
        happened=((after > 0) & (after <= AHEAD_DAYS)).any(axis=1).astype(float),
        day=days, node=np.full(len(days), float(index)), is_up=is_down.sum(axis=1) == 0,
    )  # fmt: skip


def _fading(days: Floats, begins: Floats, fades_days: float) -> Floats:
    age = days[:, None] - begins[None, :]
    faded: Floats = np.where(age >= 0, np.exp(-np.maximum(age, 0) / fades_days), 0.0).sum(axis=1)
    return faded


def evaluate(
    file: Path, num_clean: int | None = None, *, trained_on: str = ""
) -> tuple[tuple[Row, ...], Coefficients]:
    """Rows for the report, and the coefficients that this trace's train part gives.

    Args:
        file: The trace.
        num_clean: Nodes that never failed; None: as many per faulty node as in the whole trace.
        trained_on: Said of the coefficients.
    """
    trace = faults(file)
    names = {each.node for each in trace}
    clean = round(CLEAN_PER_FAULTY * len(names)) if num_clean is None else num_clean
    samples = node_days(trace, clean)
    train, test = samples.day < TRAIN_UNTIL, samples.day >= TEST_FROM
    own = fit(samples.features[train], samples.happened[train], source=trained_on)
    risk = _risks(samples.features, TRAINED)
    held, per_fold = _held_out(samples, train, test)
    up = test & samples.is_up
    return (
        _auc_row(samples, test, risk, len(names) + clean),
        row("node faults, cross-validated: AUC", held, "",
            note=f"coefficients from four fifths of the nodes' days before {TRAIN_UNTIL}, judged "
            f"on the other nodes' days from {TEST_FROM}; per fold {spread(per_fold)}"),
        row("node faults, trained on this trace: AUC", area_under_curve(
            samples.happened[test], _risks(samples.features[test], own)), "",
            note=f"weights {own.weights[0]:.3f} and {own.weights[1]:.3f}, intercept "
            f"{own.intercept:.3f}"),
        row("node faults, nodes in service only: AUC", area_under_curve(
            samples.happened[up], risk[up]), ""),
        _top_row(samples, test, risk),
    ), own  # fmt: skip


def _risks(features: Floats, coefficients: Coefficients) -> Floats:
    return np.array([week_risk((own, fleet), coefficients) for own, fleet in features])


def _auc_row(samples: NodeDays, test: Flags, risk: Floats, num_nodes: int) -> Row:
    happened = samples.happened[test]
    return row(
        "node faults in 7 days: AUC", area_under_curve(happened, risk[test]), "",
        goal=at_least(BASELINE),
        note=f"REAL trace, {num_nodes} nodes, days from {TEST_FROM}, shipped coefficients "
        f"({TRAINED.source}); {happened.mean():.1%} of the node-days have a fault ahead; to beat: "
        f"{BASELINE}. Good for choosing nodes and spares, not for moving a run",
    )  # fmt: skip


def _top_row(samples: NodeDays, test: Flags, risk: Floats) -> Row:
    happened, order = samples.happened[test], np.argsort(-risk[test], kind="stable")
    top = order[: max(1, round(_TOP * len(order)))]
    right = float(happened[top].sum())
    return row(
        f"node faults: precision of the riskiest {_TOP:.0%}", right / len(top), "share",
        note=f"with {right / max(1.0, happened.sum()):.1%} of all weeks with a fault: far too weak "
        "to move a run on",
    )  # fmt: skip


def _held_out(samples: NodeDays, train: Flags, test: Flags) -> tuple[float, list[float]]:
    fold = folds(int(samples.node.max()) + 1)[samples.node.astype(int)]
    risk = np.zeros(len(samples.day))
    per_fold = []
    for part in range(FOLDS):
        others, held = train & (fold != part), test & (fold == part)
        model = fit(samples.features[others], samples.happened[others], source="fold")
        risk[held] = _risks(samples.features[held], model)
        per_fold.append(area_under_curve(samples.happened[held], risk[held]))
    return area_under_curve(samples.happened[test], risk[test]), per_fold
