"""The migration saga: a pure state machine from a proposed plan to a receipt."""

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
)
from cloudshift_lab.migration.receipt import (
    GENESIS,
    Receipt,
    check_chain,
    make_receipt,
    receipt_digest,
)
from cloudshift_lab.migration.saga import (
    Saga,
    check_decision,
    effect_key,
    fold,
    pending,
    start,
    step,
)
from cloudshift_lab.migration.view import view

__all__ = [
    "GENESIS",
    "Aborted",
    "Decided",
    "Effect",
    "EffectDone",
    "EffectFailed",
    "EffectName",
    "Event",
    "Expired",
    "Receipt",
    "Saga",
    "check_chain",
    "check_decision",
    "effect_key",
    "fold",
    "make_receipt",
    "pending",
    "plan_digest",
    "receipt_digest",
    "start",
    "step",
    "view",
    "with_digest",
]
