"""Which exact way of closing the gap fits a run: carry the last step's bytes, or repeat steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.money import format_bytes, format_duration
from cloudshift_lab.core.plan import Closing
from cloudshift_lab.market.estimate import ASSUMED_BYTES_PER_S, estimate_transfer_s

ASSUMED_RESTORE_S = 3.0
ASSUMED_COPY_HANDOVER_S = 4.0
ASSUMED_REPLAY_HANDOVER_S = 1.0
ASSUMED_PROOF_BYTES_PER_S = 1e9
LONGEST_DETOUR = 2.0


class ClosingInputs(msgspec.Struct, frozen=True, kw_only=True):
    """What the pause of a move is a function of; None of a measurement: nothing was measured.

    Args:
        state_bytes: The whole raw state.
        before_bytes: What the target lacks of the newest commit, carried while the source trains.
        within_bytes: What the sealed step will add to that.
        copied_bytes: What all rounds carry together when the last step is copied.
        step_s: Duration of a step at the source; 0 when unknown.
        link_bytes_per_s: Measured between the two stores.
        save_s: From the capture of a step to its commit at the source.
        restore_s: Until ranks that wait have read the state and trained a step.
        copy_handover_s: Of earlier pauses, what was neither saving nor carrying bytes.
        replay_handover_s: How long nothing trained in earlier moves that repeated steps.
        why_no_replay: Why the steps cannot be repeated bit by bit over there; empty when they can.
    """

    state_bytes: int = 0
    before_bytes: int = 0
    within_bytes: int = 0
    copied_bytes: int = 0
    step_s: float = 0.0
    link_bytes_per_s: float | None = None
    save_s: float | None = None
    restore_s: float | None = None
    copy_handover_s: float | None = None
    replay_handover_s: float | None = None
    why_no_replay: str = ""


def weigh_closings(inputs: ClosingInputs) -> tuple[Closing, ...]:
    """Every way that is possible for this run, the better one first.

    The better one lets the run stand still for less time, unless its first new step comes more
    than ``LONGEST_DETOUR`` times later than the other's.

    Raises:
        UsageError: A size or duration is negative or not finite.
    """
    _check(inputs)
    copied = _copy(inputs)
    if inputs.why_no_replay:
        return (copied,)
    if inputs.step_s <= 0:
        return (_with(copied, "steps are not repeated: how long one takes is not known yet"),)
    replayed = _replay(inputs)
    is_better = replayed.still_s < copied.still_s
    if is_better and replayed.pause_s <= LONGEST_DETOUR * copied.pause_s:
        return replayed, copied
    return copied, replayed


def chosen(closings: Sequence[Closing], kind: str) -> Closing | None:
    """The closing of one kind, None when it was not possible."""
    return next((closing for closing in closings if closing.kind == kind), None)


def _copy(inputs: ClosingInputs) -> Closing:
    carry = estimate_transfer_s(inputs.within_bytes, inputs.link_bytes_per_s)
    save_s, save = _or_assumed(inputs.save_s, inputs.within_bytes / ASSUMED_BYTES_PER_S)
    rest_s, rest = _or_assumed(inputs.copy_handover_s, ASSUMED_COPY_HANDOVER_S)
    pause_s = inputs.step_s + save_s + carry.seconds + rest_s
    closing = Closing(
        kind="copy",
        pause_s=pause_s,
        still_s=pause_s,
        num_bytes=inputs.copied_bytes,
        basis=f"finish a step {format_duration(inputs.step_s)} + save it "
        f"{format_duration(save_s)} ({save}) + {carry.basis} + prove, commit and restore "
        f"{format_duration(rest_s)} ({rest}){_carried_before(inputs)}",
    )
    return _with(closing, inputs.why_no_replay)


def _carried_before(inputs: ClosingInputs) -> str:
    """What a copied last step costs beside itself: the step that was rehearsed from."""
    before = inputs.copied_bytes - inputs.within_bytes
    if before <= 0:
        return ""
    total = format_bytes(inputs.copied_bytes)
    return f"; {format_bytes(before)} are carried before, {total} in all"


def _replay(inputs: ClosingInputs) -> Closing:
    """The target repeats what the source trains from the copied step's capture to the drain."""
    carry = estimate_transfer_s(inputs.before_bytes, inputs.link_bytes_per_s)
    save_s, _ = _or_assumed(inputs.save_s, inputs.state_bytes / ASSUMED_BYTES_PER_S)
    restore_s, _ = _or_assumed(inputs.restore_s, ASSUMED_RESTORE_S)
    behind_s = save_s + carry.seconds + restore_s
    steps = math.ceil(behind_s / inputs.step_s) + 1
    replay_s = steps * inputs.step_s
    proof_s = inputs.state_bytes / ASSUMED_PROOF_BYTES_PER_S + ASSUMED_REPLAY_HANDOVER_S
    rest_s, rest = _or_assumed(inputs.replay_handover_s, proof_s + inputs.step_s)
    return Closing(
        kind="replay",
        pause_s=max(save_s, replay_s) + rest_s,
        still_s=max(0.0, save_s - replay_s) + rest_s,
        num_bytes=inputs.before_bytes,
        replayed_steps=steps,
        basis=f"{format_bytes(inputs.before_bytes)} are copied and restored while the source "
        f"trains about {steps} steps ({format_duration(behind_s)}; {carry.basis}); the target "
        f"repeats them in {format_duration(replay_s)}, then proves the result by its hashes, "
        f"commits and goes on {format_duration(rest_s)} ({rest}); if what is rehearsed is not "
        "equal bit by bit, the last step is copied after all: "
        f"{format_bytes(inputs.copied_bytes)} in all",
    )


def _with(closing: Closing, reason: str) -> Closing:
    if not reason:
        return closing
    return msgspec.structs.replace(closing, basis=f"{closing.basis}; {reason}")


def _or_assumed(measured: float | None, assumed: float) -> tuple[float, str]:
    return (assumed, "assumed") if measured is None else (measured, "measured")


def _check(inputs: ClosingInputs) -> None:
    for name in inputs.__struct_fields__:
        value = getattr(inputs, name)
        if isinstance(value, int | float) and not (math.isfinite(value) and value >= 0):
            raise UsageError(f"a closing needs {name} >= 0, not {value}; mend the inputs")
