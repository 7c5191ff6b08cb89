"""The migration saga: a pure state machine from a proposed plan to a receipt."""

from cloudshift_lab.migration.deciding import check_decision
from cloudshift_lab.migration.digest import plan_digest, with_digest
from cloudshift_lab.migration.events import (
    Aborted,
    Decided,
    Effect,
    EffectDone,
    EffectFailed,
    EffectName,
    Event,
    Expired,
    Noticed,
    Overspent,
    SideName,
)
from cloudshift_lab.migration.grace import GraceFacts, GracePlan, plan_grace
from cloudshift_lab.migration.receipt import (
    GENESIS,
    Compared,
    Receipt,
    check_chain,
    compare,
    make_receipt,
    receipt_digest,
)
from cloudshift_lab.migration.saga import fold, step
from cloudshift_lab.migration.state import LOSS_TOLERANCE, Saga, effect_key, pending, start
from cloudshift_lab.migration.view import view

__all__ = [
    "GENESIS",
    "LOSS_TOLERANCE",
    "Aborted",
    "Compared",
    "Decided",
    "Effect",
    "EffectDone",
    "EffectFailed",
    "EffectName",
    "Event",
    "Expired",
    "GraceFacts",
    "GracePlan",
    "Noticed",
    "Overspent",
    "Receipt",
    "Saga",
    "SideName",
    "check_chain",
    "check_decision",
    "compare",
    "effect_key",
    "fold",
    "make_receipt",
    "pending",
    "plan_digest",
    "plan_grace",
    "receipt_digest",
    "start",
    "step",
    "view",
    "with_digest",
]
