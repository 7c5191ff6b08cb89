"""The watch over live runs: rows in, findings kept, health and goodput told."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cloudshift_lab.conductor.vigil import Vigil
from cloudshift_lab.core.errors import NotFound
from cloudshift_lab.core.orders import STARTED_AGAIN
from cloudshift_lab.core.run import RunSpec, SaveStats
from cloudshift_lab.health import Finding, Subject
from cloudshift_lab.telemetry.batch import encode
from cloudshift_lab.telemetry.schema import StepRow

from .bench import Bench, bench

__all__ = ["bench"]
WAITS = "    all_reduce (torch/distributed/distributed_c10d.py:2501)"
READS = "    read (loader.py:7)"


def send(
    bench: Bench, run_id: str, steps: range, *, step_s: float = 0.5, generation: int = 1,
    loss: float | None = 2.0,
) -> None:  # fmt: skip
    """Both ranks report these steps, the last of which ends now."""
    now = bench.world.now()
    rows = [
        StepRow(
            ts=now - step_s * (steps[-1] - step), run_id=run_id, generation=generation, rank=rank,
            step=step, loss=loss, step_s=step_s,
        )
        for step in steps
        for rank in range(2)
    ]  # fmt: skip
    name = f"{run_id}-{generation}-{steps}-{now}"
    bench.service.ingest(run_id, batch=name, table="step", data=encode("step", rows)).result()


def vigil_of(bench: Bench, **stacks: object) -> Vigil:
    service = bench.service
    return Vigil(service._registry, service._around, service.telemetry, **stacks)


def speak(bench: Bench, run_id: str, **changes: object) -> None:
    """The agent goes on talking while its ranks stand still."""
    puppet = bench.engine.puppets[run_id, 1]
    puppet.is_frozen = True
    bench.world.clock_s += 1.0
    puppet.say(**changes)
    for tender in bench.service._registry.all():
        tender.tick()


def test_a_healthy_run_has_no_findings_and_says_what_was_looked_at(bench: Bench) -> None:
    run_id = bench.train()
    send(bench, run_id, range(1, 60))
    report = bench.service.run_health("gpt")
    assert (report.run_id, report.state, report.standing) == (run_id, "running", ())
    seen = {each.what: each.seen for each in report.looked}
    assert "step 59 of 2 ranks" in seen["progress"]
    assert seen["loss"] == "59 steps"


def test_a_hang_is_found_named_kept_and_gone_when_the_run_goes_on(bench: Bench) -> None:
    run_id = bench.train()
    asked: list[Path] = []

    def stacks(workdir: Path) -> dict[int, str]:
        asked.append(workdir)
        return {0: WAITS, 1: READS}

    vigil = vigil_of(bench, stacks=stacks)
    tender = bench.service._registry.find(run_id)
    send(bench, run_id, range(1, 60))
    step = bench.engine.puppets[run_id, 1].step
    vigil.look()
    for _ in range(13):
        speak(bench, run_id, step=min(step, 59))
        vigil.look()
    (told,) = vigil.health(tender).standing
    assert (told.finding.rule_id, told.finding.ranks) == ("hang.rank", (1,))
    assert (told.verdict, told.finding.deterministic) == ("would act", True)
    assert [path.name for path in asked] == ["1"]  # the attempt's folder, once
    assert vigil.goodput(tender).seconds["detecting"] > 10
    send(bench, run_id, range(60, 62))
    for _ in range(17):
        vigil.look()
        speak(bench, run_id, step=61)
        send(bench, run_id, range(62, 63))
    report = vigil.health(tender)
    assert report.standing == ()
    (past,) = report.bygone
    assert "Rank 1 hung" in past.words
    assert past.until is not None


def test_without_stacks_a_hang_is_the_runs_and_asks(bench: Bench) -> None:
    run_id = bench.train()
    send(bench, run_id, range(1, 60))
    for _ in range(12):
        speak(bench, run_id, step=10)
    (told,) = bench.service.run_health(run_id).standing
    assert (told.finding.rule_id, told.verdict) == ("hang.run", "ask")


def test_a_failed_run_is_told_with_its_rank_and_the_last_line(bench: Bench) -> None:
    run_id = bench.train()
    send(bench, run_id, range(1, 20))
    puppet = bench.engine.puppets[run_id, 1]
    puppet.say(state="failed", error="ValueError: no", error_rank=1, traceback="a\nValueError: no")
    puppet.is_frozen = puppet.is_gone = True
    bench.step()
    report = bench.service.run_health(run_id)
    assert report.state == "failed"
    (told,) = report.standing
    assert (told.finding.rule_id, told.finding.ranks) == ("rank.failed", (1,))
    assert told.finding.evidence[1].value == "ValueError: no"


def test_what_was_found_is_known_to_the_next_conductor(bench: Bench) -> None:
    run_id = bench.train()
    send(bench, run_id, range(1, 60))
    vigil = vigil_of(bench)
    for _ in range(13):
        speak(bench, run_id, step=10)
        vigil.look()
    bench.restart()
    report = bench.service.run_health(run_id)
    told = [*(each.words for each in report.bygone),
            *(each.finding.words for each in report.standing)]  # fmt: skip
    assert [words.split(" for ")[0] for words in told] == ["All ranks have stood at the same place"]
    events = bench.service.telemetry.sql("SELECT kind, severity FROM event").to_pylist()
    assert events == [{"kind": "health.found", "severity": "error"}]


def test_what_is_over_when_the_next_conductor_looks_is_said_to_be(bench: Bench) -> None:
    run_id = bench.train()
    send(bench, run_id, range(1, 60))
    vigil = vigil_of(bench)
    for _ in range(13):
        speak(bench, run_id, step=10)
        vigil.look()
    bench.restart()
    later = vigil_of(bench)
    for number in range(18):
        send(bench, run_id, range(60 + number, 61 + number))
        speak(bench, run_id, step=60 + number)
        later.look()
    report = later.health(bench.service._registry.find(run_id))
    assert report.standing == ()
    assert [each.until is not None for each in report.bygone] == [True]


def test_ranks_that_begin_anew_are_no_hang_and_count_as_a_failure(bench: Bench) -> None:
    run_id = bench.train()
    bench.step(60)
    vigil = vigil_of(bench)
    tender = bench.service._registry.find(run_id)
    send(bench, run_id, range(1, 60))
    said = f"rank 1 was killed by SIGKILL: {STARTED_AGAIN} 59"
    for _ in range(14):
        speak(bench, run_id, step=59, warnings=("the disk is slow", said))
        vigil.look()
    told = {each.finding.rule_id: each.finding.words for each in vigil.health(tender).standing}
    assert told == {"ranks.healing": said, "agent.warning": "the disk is slow"}
    bench.world.clock_s += 2.0
    send(bench, run_id, range(60, 64))
    speak(bench, run_id, step=63)
    vigil.look()
    report = vigil.goodput(tender)
    assert (report.num_failures, report.num_healed, report.lost_steps) == (1, 1, 0)
    assert report.seconds["restarting"] == pytest.approx(14.0)
    assert "idle" not in report.seconds


def test_saves_are_counted_and_taken_from_the_training(bench: Bench) -> None:
    run_id = bench.train()
    vigil = vigil_of(bench)
    puppet = bench.engine.puppets[run_id, 1]
    for step in (10, 20, 30):
        puppet.say(committed_step=step, committed_at=bench.world.now(), saves=SaveStats(lost_s=0.5))
        bench.step()
        vigil.look()
        vigil.look()
    bench.step(60)
    send(bench, run_id, range(1, 60))
    report = vigil.goodput(bench.service._registry.find(run_id))
    assert report.num_saves == 3
    assert report.seconds["saving"] == pytest.approx(1.5)
    assert report.measured.by_cause["saving"] == pytest.approx(1.5 / report.whole_s)


def test_goodput_shows_the_break_of_a_run_that_was_lost_and_resumed(bench: Bench) -> None:
    run_id = bench.train(**_never_restarted())
    bench.step(20)
    send(bench, run_id, range(1, 31))
    bench.world.clock_s += 4.0
    puppet = bench.engine.puppets[run_id, 1]
    puppet.is_gone = puppet.is_frozen = True
    for _ in range(3):
        bench.step()
    assert bench.service.run(run_id).state == "lost"
    bench.world.clock_s += 30.0
    bench.service.resume(run_id)
    bench.step(10)
    send(bench, run_id, range(21, 31), generation=2)
    report = bench.service.run_goodput(run_id)
    assert (report.num_failures, report.num_healed, report.lost_steps) == (1, 0, 10)
    assert report.seconds["lost work"] == pytest.approx(5.0)
    assert report.seconds["detecting"] >= 4.0
    assert report.seconds["restarting"] >= 30.0
    assert report.whole_s == pytest.approx(bench.world.now() - report.began_at)
    assert sum(report.measured.by_cause.values()) == pytest.approx(1.0)
    assert report.expected is not None


def test_steps_that_are_kept_in_summary_only_are_not_taken_for_the_start(bench: Bench) -> None:
    run_id = bench.train()
    bench.step(40)
    send(bench, run_id, range(1, 61))
    telemetry = bench.service.telemetry
    bench.world.clock_s += 8 * 86_400.0
    telemetry.roll(bench.world.now())
    telemetry.forget(bench.world.now())
    send(bench, run_id, range(61, 121))
    telemetry.roll(bench.world.now() + 120)
    report = bench.service.run_goodput(run_id)
    assert report.seconds == {"training": pytest.approx(30.0)}
    assert report.began_at == pytest.approx(bench.world.now() - 30.0)


def test_a_run_that_has_not_trained_only_says_so(bench: Bench) -> None:
    run_id = bench.train()
    bench.step(5)
    report = bench.service.run_goodput(run_id)
    assert set(report.seconds) == {"starting"}
    assert report.expected is None
    seen = {each.what: each.seen for each in bench.service.run_health(run_id).looked}
    assert seen["progress"] == "no step has been reported yet"


def test_reports_cross_the_wire(bench: Bench) -> None:
    run_id = bench.train()
    send(bench, run_id, range(1, 20))
    for report in (bench.service.run_health(run_id), bench.service.run_goodput(run_id)):
        assert msgspec.json.decode(msgspec.json.encode(report), type=type(report)) == report


def test_the_thread_looks_and_ends(bench: Bench) -> None:
    bench.train()
    vigil = vigil_of(bench)
    vigil.start()
    vigil.stop()
    assert not vigil._thread.is_alive()


def _never_restarted() -> dict[str, str]:
    """Settings under which a lost run waits for a person."""
    return {"restart": "never"} if "restart" in RunSpec.__struct_fields__ else {}


def test_of_a_run_that_is_not_there_nothing_is_told(bench: Bench) -> None:
    for tell in (bench.service.run_health, bench.service.run_goodput):
        with pytest.raises(NotFound):
            tell("gpt")


def test_what_is_found_about_a_machine_asks_somebody_to_look_at_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = bench.train(restart="never")
    send(bench, run_id, range(1, 60))
    slow = Finding(
        rule_id="straggler.rank", subject=Subject("rank", "1"), severity="warning", evidence=(),
        action="drain the node", confidence=0.95, deterministic=False, words="rank 1 is slow",
        at=59.0, ranks=(1,),
    )  # fmt: skip
    monkeypatch.setattr("cloudshift_lab.conductor.vigil.found_in_rows", lambda *_: [slow])
    vigil = vigil_of(bench)
    vigil.look()
    vigil.look()
    (view,) = bench.service.maintenance()
    assert (view.request.node, view.request.action) == ("aws-sim:us-east-1/0", "look at")
    assert (view.request.words, view.times_seen) == ("rank 1 is slow", 1)
