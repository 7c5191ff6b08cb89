import pytest

from cloudshift_lab.lab.completion import Catalogue, Offer, complete
from cloudshift_lab.lab.vocabulary import verb_names

NAMES = Catalogue(
    runs=("gpt", "run-1"), targets=("local:here", "gcp-sim:us-central1"), migrations=("mig-1",),
    steps={"gpt": (400, 380)}, jobs=("job-1",),
)  # fmt: skip


def words(before: str) -> tuple[str, ...]:
    offer = complete(before, NAMES)
    assert offer is not None
    return offer.words


@pytest.mark.parametrize("line", ["", "print(1)", "%cloudshiftx ", "%cd ", "cloudshift "])
def test_other_lines_are_left_to_others(line: str) -> None:
    assert complete(line, NAMES) is None


def test_verbs_come_first() -> None:
    assert words("%cloudshift ") == verb_names()
    assert complete("%cloudshift mig", NAMES) == Offer("mig", ("migrate",))


def test_a_cell_offers_train_only() -> None:
    assert words("%%cloudshift ") == ("train",)


def test_assignments_complete_too() -> None:
    assert words("move = %cloudshift app") == ("approve",)


@pytest.mark.parametrize("line", ["%cloudshift migrate --to ", "%%cloudshift train --on "])
def test_targets_come_after_on_and_to(line: str) -> None:
    assert words(line) == NAMES.targets


def test_targets_with_a_colon_are_completed_as_one_word() -> None:
    assert complete("%cloudshift migrate gpt --to gcp-sim:us", NAMES) == Offer(
        "gcp-sim:us", ("gcp-sim:us-central1",)
    )


def test_runs_come_where_a_run_is_meant() -> None:
    assert words("%cloudshift migrate g") == ("gpt",)
    assert words("%cloudshift migrate --to gcp-sim g") == ("gpt",)


def test_a_second_run_is_not_offered() -> None:
    assert words("%cloudshift stop gpt ") == ()


def test_migrations_come_after_approve() -> None:
    assert words("%cloudshift approve ") == ("mig-1",)


def test_flags_are_offered_once() -> None:
    assert words("%cloudshift migrate --y") == ("--yes",)
    assert "--yes" not in words("%cloudshift migrate --yes --")


def test_choices_are_offered() -> None:
    assert words("%cloudshift clouds ")[:4] == ("up", "down", "status", "preempt")
    assert words("%cloudshift clouds preempt ")[:2] == ("aws-sim", "gcp-sim")
    assert words("%%cloudshift train --approve a") == ("ask", "auto")


def test_an_unknown_verb_offers_nothing() -> None:
    assert words("%cloudshift frobnicate ") == ()


def test_steps_come_where_a_step_is_meant() -> None:
    assert words("%cloudshift branch gpt@") == ("gpt@latest", "gpt@400", "gpt@380")
    assert complete("%cloudshift diff gpt@380 gpt@4", NAMES) == Offer("gpt@4", ("gpt@400",))
    assert words("%cloudshift restore run-1@") == ("run-1@latest",)


def test_a_run_or_a_step_comes_where_both_are_meant() -> None:
    assert words("%cloudshift verify g") == ("gpt", "gpt@latest", "gpt@400", "gpt@380")


@pytest.mark.parametrize("verb", ["pin", "unpin", "forget"])
def test_steps_come_after_pin_unpin_and_forget(verb: str) -> None:
    assert words(f"%cloudshift {verb} gpt@") == ("gpt@latest", "gpt@400", "gpt@380")
    assert verb in words("%cloudshift ")


def test_runs_come_after_without() -> None:
    assert words("%cloudshift gc --without ") == ("gpt", "run-1")
    assert words("%cloudshift gc --without gpt r") == ("run-1",)


def test_jobs_and_formats_come_where_they_are_meant() -> None:
    assert words("%cloudshift jobs ")[0] == "job-1"
    assert "safetensors" in words("%cloudshift restore gpt@400 --format ")


def test_nothing_is_offered_for_a_path() -> None:
    assert words("%cloudshift restore gpt@400 --to ") == ()
