import pytest

from cloudshift_lab.core.errors import Conflict, NotFound, StaleDecision, UsageError
from cloudshift_lab.lab.desk import Desk, match_run


@pytest.fixture
def desk() -> Desk:
    return Desk("notebook", "%cloudshift")


def test_a_run_is_found_by_id_name_or_the_beginning_of_its_id(make_run) -> None:
    runs = [make_run(), make_run(run_id="abc-2", name="other")]
    assert match_run(runs, "run-1").name == "first"
    assert match_run(runs, "other").run_id == "abc-2"
    assert match_run(runs, "abc").run_id == "abc-2"


def test_a_beginning_that_fits_several_is_refused(make_run) -> None:
    with pytest.raises(Conflict, match="type more"):
        match_run([make_run(), make_run(run_id="run-2", name="second")], "run-")


def test_an_unknown_run_gets_a_suggestion(make_run) -> None:
    with pytest.raises(NotFound, match="did you mean 'first'"):
        match_run([make_run()], "frist")
    with pytest.raises(NotFound, match="there are no runs yet"):
        match_run([], "first")


def test_without_a_name_the_only_active_run_is_meant(desk, service, make_run) -> None:
    service.views = [make_run(run_id="old", name="old", state="finished"), make_run()]
    assert desk.find_run(None).run_id == "run-1"


def test_without_a_name_several_active_runs_are_not_guessed_between(
    desk, service, make_run
) -> None:
    service.views = [make_run(), make_run(run_id="run-2", name="second")]
    with pytest.raises(UsageError, match="first, second"):
        desk.find_run(None)


def test_an_ended_run_is_shown_but_never_acted_on_without_its_name(desk, service, make_run) -> None:
    service.views = [make_run(state="finished")]
    assert desk.find_run(None).run_id == "run-1"
    with pytest.raises(NotFound, match="no run is active"):
        desk.find_run(None, active=True)


def test_the_only_waiting_move_is_meant(desk, service, make_move) -> None:
    service.moves = [make_move(migration_id="old", phase="rejected"), make_move()]
    assert desk.find_migration(None).migration_id == "mig-1"
    assert desk.find_migration("first").migration_id == "mig-1"


def test_nothing_waiting_says_how_to_plan_a_move(desk, service) -> None:
    with pytest.raises(NotFound, match="migrate --to"):
        desk.find_migration(None)


def test_the_same_answer_twice_is_one_decision(desk, service, make_move) -> None:
    service.moves = [make_move()]
    desk.decide(make_move(), "approve")
    desk.decide(make_move(), "approve")
    assert len({decision.decision_id for decision in service.decisions}) == 1


def test_the_other_answer_afterwards_is_stale_and_names_who_decided(
    desk, service, make_move
) -> None:
    service.moves = [make_move()]
    desk.decide(make_move(), "approve")
    with pytest.raises(StaleDecision, match=r"already decided by .*\(notebook\)"):
        desk.decide(make_move(), "reject")


def test_what_is_approved_is_the_plan_that_was_shown(desk, service, make_move) -> None:
    import msgspec

    shown = make_move()
    desk.remember_plan(shown)
    changed = make_move(plan=msgspec.structs.replace(shown.plan, digest="another"))
    service.moves = [changed]
    with pytest.raises(StaleDecision, match="changed since it was shown"):
        desk.decide(changed, "approve")


def test_a_new_run_gets_a_name_nobody_has(desk, service, make_run) -> None:
    service.views = [make_run(name="train"), make_run(run_id="2", name="train-2")]
    assert desk.free_name("train") == "train-3"
    assert desk.free_name("other") == "other"
