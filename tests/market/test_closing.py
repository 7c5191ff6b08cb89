import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.market.closing import LONGEST_DETOUR, ClosingInputs, chosen, weigh_closings

sizes = st.integers(0, 10**13)
known = st.none() | st.floats(1e-3, 1e4)
runs = st.builds(
    ClosingInputs,
    state_bytes=sizes,
    before_bytes=sizes,
    within_bytes=sizes,
    copied_bytes=sizes,
    step_s=st.floats(1e-3, 1e3),
    link_bytes_per_s=st.none() | st.floats(1e3, 1e11),
    save_s=known,
    restore_s=known,
    copy_handover_s=known,
    replay_handover_s=known,
)
DENSE = ClosingInputs(
    state_bytes=500_000_000, before_bytes=400_000_000, within_bytes=400_000_000,
    copied_bytes=400_000_000, step_s=0.5, link_bytes_per_s=25e6, save_s=3.0,
)  # fmt: skip


def test_a_dense_state_over_a_slow_link_is_closed_by_repeating_steps() -> None:
    best, other = weigh_closings(DENSE)
    assert (best.kind, other.kind) == ("replay", "copy")
    behind_s = 3.0 + 0.1 + 16.0 + 3.0
    assert best.replayed_steps == math.ceil(behind_s / 0.5) + 1
    assert best.still_s < 3.0 < 20.0 < other.still_s
    assert best.num_bytes == 400_000_000


def test_a_small_change_of_a_large_state_is_carried() -> None:
    best, _ = weigh_closings(msgspec.structs.replace(DENSE, within_bytes=1_000_000))
    assert best.kind == "copy"


def test_a_copy_after_a_rehearsal_counts_the_step_that_was_rehearsed_from() -> None:
    both = msgspec.structs.replace(DENSE, copied_bytes=800_000_000)
    closings = {closing.kind: closing for closing in weigh_closings(both)}
    assert closings["copy"].num_bytes == 800_000_000
    assert closings["copy"].basis.endswith("; 400.0 MB are carried before, 800.0 MB in all")
    assert "copied after all: 800.0 MB in all" in closings["replay"].basis


def test_without_a_measured_step_nothing_is_repeated() -> None:
    (only,) = weigh_closings(msgspec.structs.replace(DENSE, step_s=0.0))
    assert only.kind == "copy"
    assert "how long one takes is not known" in only.basis


def test_the_reason_against_a_replay_stands_in_the_basis_of_what_is_left() -> None:
    (only,) = weigh_closings(msgspec.structs.replace(DENSE, why_no_replay="other machines"))
    assert only.basis.endswith("; other machines")
    assert chosen((only,), "replay") is None


@settings(deadline=None)
@given(runs)
def test_both_ways_are_weighed_and_the_better_one_comes_first(run: ClosingInputs) -> None:
    best, other = weigh_closings(run)
    assert {best.kind, other.kind} == {"copy", "replay"}
    for closing in (best, other):
        assert 0 <= closing.still_s <= closing.pause_s + 1e-9
        assert math.isfinite(closing.pause_s)
    replayed = best if best.kind == "replay" else other
    copied = other if best.kind == "replay" else best
    if best is replayed:
        assert replayed.still_s < copied.still_s
        assert replayed.pause_s <= LONGEST_DETOUR * copied.pause_s
    else:
        is_worse = replayed.still_s >= copied.still_s
        assert is_worse or replayed.pause_s > LONGEST_DETOUR * copied.pause_s


@settings(deadline=None)
@given(runs, st.floats(1.1, 10.0))
def test_a_faster_link_never_makes_a_pause_longer(run: ClosingInputs, factor: float) -> None:
    slow = msgspec.structs.replace(run, link_bytes_per_s=run.link_bytes_per_s or 1e6)
    fast = msgspec.structs.replace(slow, link_bytes_per_s=(slow.link_bytes_per_s or 1e6) * factor)
    for kind in ("copy", "replay"):
        before, after = (chosen(weigh_closings(each), kind) for each in (slow, fast))
        assert before is not None
        assert after is not None
        assert after.pause_s <= before.pause_s + 1e-6


@settings(deadline=None)
@given(runs)
def test_the_target_has_at_least_as_many_steps_to_repeat_as_it_is_behind(
    run: ClosingInputs,
) -> None:
    replayed = chosen(weigh_closings(run), "replay")
    assert replayed is not None
    carry_s = run.before_bytes / (run.link_bytes_per_s or 50e6)
    assert replayed.replayed_steps * run.step_s >= carry_s


@pytest.mark.parametrize("field", ["state_bytes", "before_bytes", "step_s", "save_s"])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_impossible_sizes_and_durations_are_refused(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"needs {field} >= 0"):
        weigh_closings(msgspec.structs.replace(DENSE, **{field: value}))
