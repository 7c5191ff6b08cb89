"""``clouds preempt``: a rehearsal, and nobody can take it for anything else."""

from __future__ import annotations

import pytest

from cloudshift_lab.core.errors import Conflict, UsageError
from cloudshift_lab.lab.grammar import help_text, parse_line
from cloudshift_lab.lab.render.records import preempted_sheet
from cloudshift_lab.lab.render.sheet import sheet_text
from cloudshift_lab.lab.vocabulary import PLAYED
from cloudshift_lab.sim.clouds import KINDS, SimClouds
from cloudshift_lab.sim.metadata_words import Preemption

from .test_cli import call


def event(cloud: str, in_s: float, *, kills: bool = False) -> Preemption:
    return Preemption(
        event_id="e", machine=f"{cloud}.run-7.2.0", at=1_000.0, deadline=1_000.0 + in_s, kills=kills
    )


@pytest.fixture
def preempted(home, monkeypatch) -> list[tuple[object, ...]]:
    """What was asked of the emulator; there is none."""
    asked: list[tuple[object, ...]] = []

    def preempt(self, name: str, in_s: float, *, run_id: str = "", kills: bool = False):
        asked.append((name, in_s, run_id, kills))
        return (event(name, in_s, kills=kills),)

    monkeypatch.setattr(SimClouds, "preempt", preempt)
    return asked


def test_it_is_called_simulated_in_the_first_line_and_says_what_happens(home, preempted) -> None:
    status, out, _ = call("clouds", "preempt", "aws-sim", "--in", "120")
    assert status == 0
    assert preempted == [("aws-sim", 120.0, "", False)]
    assert "[simulated]" in out.splitlines()[0]
    assert "no provider said so, an emulator on this machine does" in out
    assert "run-7.2.0" in out
    assert "was spared, and trains on" in out
    assert "next: cloudshift watch run-7" in out


def test_spans_are_typed_as_elsewhere_and_a_kill_is_asked_for(home, preempted) -> None:
    assert call("clouds", "preempt", "gcp-sim", "--in", "2m", "--kill")[0] == 0
    assert preempted == [("gcp-sim", 120.0, "", True)]


def test_only_one_runs_machines_may_be_meant(home, preempted, service, make_run) -> None:
    service.views = [make_run()]
    assert call("clouds", "preempt", "aws-sim", "--run", "first")[0] == 0
    assert preempted == [("aws-sim", 120.0, service.views[0].run_id, False)]


def test_without_a_cloud_it_says_what_to_type(home, preempted) -> None:
    status, _, err = call("clouds", "preempt")
    assert (status, preempted) == (2, [])
    assert "clouds preempt aws-sim --in 30" in err


@pytest.mark.parametrize(
    ("cloud", "in_s", "told"),
    [
        ("aws-sim", 120.0, "the agents are told now"),
        ("aws-sim", 300.0, "the agents are told in 3 min, as that provider does"),
        ("gcp-sim", 120.0, "the agents are told in 1 min 30 s, as that provider does"),
        ("gcp-sim", 30.0, "the agents are told now"),
    ],
)
def test_it_says_when_the_agents_hear_of_it(cloud: str, in_s: float, told: str) -> None:
    assert told in sheet_text(preempted_sheet(cloud, (event(cloud, in_s),), "cloudshift"))


def test_only_what_is_played_can_be_taken_away(home, preempted) -> None:
    assert tuple(KINDS) == PLAYED
    status, _, err = call("clouds", "preempt", "aws")
    assert (status, preempted) == (2, [])
    assert "aws-sim" in err


def test_an_emulator_that_kills_says_so_before() -> None:
    text = sheet_text(preempted_sheet("aws-sim", (event("aws-sim", 30.0, kills=True),), "c"))
    assert "ended then, as if the machine had gone" in text


def test_nothing_running_is_an_error_in_one_line(home, monkeypatch) -> None:
    def refuse(self, *_: object, **__: object):
        raise Conflict("no machine is there that would hear it; start a run there first")

    monkeypatch.setattr(SimClouds, "preempt", refuse)
    status, _, err = call("clouds", "preempt", "aws-sim")
    assert status == 1
    assert "start a run there first" in err


def test_its_help_says_that_it_is_a_rehearsal() -> None:
    text = help_text("clouds", "cloudshift")
    assert "preempt is a rehearsal" in text
    assert "--kill" in text
    with pytest.raises(UsageError):
        parse_line("clouds explode")
