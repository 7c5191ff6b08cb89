from cloudshift_lab.health.outcome import find_end, find_notice, find_troubles


def test_a_rank_that_raised_is_named_with_its_last_line() -> None:
    found = find_end("failed", "ValueError: no", 5.0, rank=3, last_line="ValueError: no")
    assert (found.rule_id, found.ranks, found.action) == (
        "rank.failed", (3,), "look at the application",
    )  # fmt: skip
    assert "Rank 3" in found.words
    assert found.deterministic


def test_a_rank_that_raised_nothing_was_ended_and_the_run_can_go_on() -> None:
    found = find_end("failed", "rank 1 was killed by SIGKILL", 5.0, rank=1)
    assert (found.rule_id, found.action, found.ranks) == ("rank.death", "restart the run", (1,))
    assert "mend the script" not in found.words


def test_a_lost_run_is_to_be_restarted_and_a_failed_one_looked_at() -> None:
    assert find_end("lost", "the agent ended", 5.0).action == "restart the run"
    assert find_end("failed", "could not be started", 5.0).rule_id == "run.failed"


def test_troubles_and_warnings_are_told_and_silence_is_none() -> None:
    assert find_troubles(None, (), 1.0) == ()
    trouble, warning = find_troubles("the store does not answer", ("a", "b"), 1.0)
    assert (trouble.severity, warning.severity) == ("warning", "watch")
    assert [each.value for each in warning.evidence] == ["a", "b"]
    assert find_notice(30.0, 1.0, "its machine goes").evidence[0].value == 30.0
