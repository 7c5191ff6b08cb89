import pytest

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.lab.grammar import help_text, parse_line, parse_words
from cloudshift_lab.lab.vocabulary import VERBS


def test_an_empty_line_asks_for_status() -> None:
    assert parse_line("").verb.name == "status"


def test_a_cell_without_a_verb_trains() -> None:
    assert parse_line("", surface="cell").verb.name == "train"


def test_train_reads_every_flag() -> None:
    args = parse_line(
        "train --name gpt --on aws-sim:us-east-1 --ranks 4 --checkpoint-every 25 --budget 1.50 "
        "--approve auto --seed 7 --env A=1 B='x y' --wait"
    ).args
    assert (args.name, args.on, args.ranks, args.checkpoint_every) == (
        "gpt",
        "aws-sim:us-east-1",
        4,
        "25",
    )
    assert (args.budget, args.approve, args.seed, args.wait) == (1.5, "auto", 7, True)
    assert args.env == [("A", "1"), ("B", "x y")]


@pytest.mark.parametrize(("word", "means"), [("5m", "300s"), ("auto", "auto"), ("50", "50")])
def test_an_interval_is_steps_a_time_or_auto(word: str, means: str) -> None:
    args = parse_line(f"train --checkpoint-every {word} --keep 3").args
    assert (args.checkpoint_every, args.keep) == (means, "3")


def test_an_interval_that_is_none_of_them_says_what_would_do() -> None:
    with pytest.raises(UsageError, match="30s, 5m, 1h"):
        parse_line("train --checkpoint-every often")


def test_positionals_may_stand_behind_flags() -> None:
    args = parse_line("migrate --to gcp-sim:us-central1 run-1 --yes").args
    assert (args.run, args.to, args.yes) == ("run-1", ("gcp-sim:us-central1",), True)


def test_migrate_reads_every_flag() -> None:
    args = parse_line(
        "migrate gpt --to gcp-sim:us-central1,aws-sim:us-west-2 --closing replay --rehearse 5 "
        "--missing-nodes shrink --min-nodes 2 --approvals 2 --limit $0.75 --carrier push "
        "--expires 60"
    ).args
    assert (args.run, args.to) == ("gpt", ("gcp-sim:us-central1", "aws-sim:us-west-2"))
    assert (args.closing, args.rehearse, args.missing_nodes) == ("replay", 5, "shrink")
    assert (args.min_nodes, args.approvals, args.limit) == (2, 2, 0.75)
    assert (args.carrier, args.expires) == ("push", 60.0)


def test_migrate_leaves_what_was_not_said_to_the_conductor() -> None:
    args = parse_line("migrate --to gcp-sim").args
    assert (args.closing, args.rehearse, args.missing_nodes) == ("auto", None, None)
    assert (args.approvals, args.limit, args.expires) == (None, None, None)


def test_a_rule_for_approvals_may_be_quoted_and_is_kept_in_its_own_spelling() -> None:
    args = parse_line("train --approve 'auto if price<2.50 and  at 22:00-6:00'").args
    assert args.approve == "auto if price < 2.5/h and at 22:00-06:00"


def test_an_environment_value_may_hold_an_equals_sign() -> None:
    assert parse_line("train --env A=b=c").args.env == [("A", "b=c")]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("migrat run-1", "did you mean 'migrate'?"),
        ("xyzzy", "choose one of: status, train"),
        ("status --jsn", "did you mean '--json'?"),
        ("status a b", "does not know what to do with 'b'"),
        ("migrate run-1", "--to"),
        ("migrate run-1 --to", "expected one argument"),
        ("train --ranks two", "'two' is not a whole number"),
        ("train --ranks -2", "--ranks"),
        ("train --budget 0", "'0' is not a number above 0"),
        ("train --budget nan", "'nan' is not a number above 0"),
        ("train --approve maybe", "'maybe' does not fit there; write ask | never | auto"),
        ("migrate --to a,,b", "names an empty place"),
        ("migrate --to a --closing fast", "'auto', 'copy', 'replay'"),
        ("migrate --to a --missing-nodes cry", "'roll-back', 'wait', 'shrink', 'elsewhere'"),
        ("notice gpt 30 --side left", "'source', 'target'"),
        ("train --env A", "'A' is not K=V"),
        ("clouds sideways", "'up', 'down', 'status'"),
        ("logs 'run", "unclosed quote"),
        ("train --na x", "did you mean '--name'?"),
    ],
)
def test_a_wrong_line_gets_one_line_that_says_what_would_be_right(line: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_line(line)
    assert says in caught.value.message
    assert "\n" not in caught.value.message


def test_only_train_takes_a_cell() -> None:
    with pytest.raises(UsageError, match="use '%cloudshift status'"):
        parse_line("status", surface="cell")


@pytest.mark.parametrize("words", [["demo", "--steps", "5", "--help"], ["sim", "--seeds", "9"]])
def test_words_of_other_rooms_are_passed_on_unread(words: list[str]) -> None:
    assert parse_words(words, surface="terminal").rest == tuple(words[1:])


@pytest.mark.parametrize("line", ["help migrate", "migrate --help", "migrate -h"])
def test_help_can_be_asked_for_in_every_usual_way(line: str) -> None:
    call = parse_line(line)
    assert (call.verb.name, call.args.topic) == ("help", "migrate")


def test_help_lists_every_verb_with_its_summary() -> None:
    text = help_text(None, "%cloudshift")
    for verb in VERBS:
        assert f"%cloudshift {verb.name}" in text
        assert verb.summary in text


def test_help_on_a_verb_lists_its_flags_and_defaults() -> None:
    text = help_text("train", "cloudshift")
    assert "--checkpoint-every N|TIME|auto" in text
    assert "(default auto)" in text


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("stop gpt  # it's done", "gpt"),
        ("stop gpt#2", "gpt#2"),
        ("stop 'gpt # two' # both", "gpt # two"),
    ],
)
def test_a_comment_at_the_end_of_a_line_is_no_argument(line: str, name: str) -> None:
    assert parse_line(line, surface="line").args.run == name


def test_a_line_that_is_all_comment_shows_the_status() -> None:
    assert parse_line("# nothing", surface="line").verb.name == "status"


def test_a_run_restarts_by_itself_unless_told_never() -> None:
    args = parse_line("train --restart never").args
    assert (args.restart, args.restart_on) == ("never", ())
    assert parse_line("train").args.restart == "auto"
    with pytest.raises(UsageError, match="auto"):
        parse_line("train --restart sometimes")
