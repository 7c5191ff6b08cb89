"""From staged to committed: the last state does not wait for an earlier one."""

from __future__ import annotations

from cloudshift_lab.agent.protocols import RanksView

from .conftest import Attempt


def test_an_earlier_state_gives_way_to_the_last_one_and_is_no_fault(source: Attempt) -> None:
    source.tick()
    source.saver.is_slow = True
    source.run_to(10, staged=10)
    source.tick()
    assert source.saver.started == [10]
    drain = source.order("drain")
    source.drain_to(14)
    source.tick(12)
    assert (source.saver.abandoned, source.saver.started) == (1, [10, 14])
    assert source.result(drain).step == 14
    assert [c.step for c in source.log.sync().commits] == [14]
    assert source.published.warnings == ()


def test_the_last_state_itself_never_gives_way(source: Attempt) -> None:
    source.tick()
    source.saver.is_slow = True
    source.drain_to(14)
    source.tick(20)
    assert (source.saver.abandoned, source.saver.started) == (0, [14])


def test_without_a_drain_a_newer_state_waits_its_turn(source: Attempt) -> None:
    source.tick()
    source.saver.is_slow = True
    source.run_to(10, staged=10)
    source.tick()
    source.ranks.view = RanksView(state="running", step=20, staged_step=20)
    source.tick(8)
    assert source.saver.abandoned == 0
    source.saver.is_slow = False
    source.tick(8)
    assert [c.step for c in source.log.sync().commits] == [10, 20]
