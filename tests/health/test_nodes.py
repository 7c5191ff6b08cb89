import msgspec
import pytest

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.health.finding import Finding, Subject
from cloudshift_lab.health.nodes import NodeHealth, advance, clear

HOUR = 3600.0
NODE = NodeHealth(node="n1")
PROVEN = Finding(
    rule_id="nvml.ecc", subject=Subject("gpu", "n1/g"), severity="critical", evidence=(),
    action="drain and reset the GPU", confidence=1.0, deterministic=True, words="Broken.", at=0.0,
)  # fmt: skip
GUESSED = msgspec.structs.replace(PROVEN, rule_id="precursor.ecc", severity="critical",
                                  deterministic=False, confidence=0.9)  # fmt: skip
WARNED = msgspec.structs.replace(GUESSED, severity="warning")
WATCHED = msgspec.structs.replace(GUESSED, severity="watch")
TOLD = msgspec.structs.replace(GUESSED, severity="info")


@pytest.mark.parametrize(
    ("finding", "state"),
    [(TOLD, "healthy"), (WATCHED, "watch"), (WARNED, "suspect"), (GUESSED, "suspect"),
     (PROVEN, "condemned")],
)  # fmt: skip
def test_a_finding_puts_a_node_where_it_belongs_and_only_proof_condemns(
    finding: Finding, state: str
) -> None:
    assert advance(NODE, [finding], 1.0).state == state


def test_a_node_that_is_quiet_comes_down_one_state_at_a_time() -> None:
    node = advance(NODE, [WARNED], 0.0)
    seen = []
    for now in range(0, 9 * 3600, 600):
        node = advance(node, [], float(now))
        seen.append((now / HOUR, node.state))
    assert node.state == "healthy"
    assert [state for hour, state in seen if hour < 6] == ["suspect"] * 36
    assert "watch" in [state for _, state in seen]


def test_a_node_that_flickers_stays_where_its_worst_put_it() -> None:
    node = NODE
    for now in range(0, 48 * 3600, 3600):
        node = advance(node, [WARNED] if now % 14400 == 0 else [], float(now))
        assert node.state == "suspect"


def test_a_condemned_node_is_not_trusted_again_by_itself() -> None:
    node = advance(NODE, [PROVEN], 0.0)
    for now in range(0, 100 * 3600, 3600):
        node = advance(node, [], float(now))
    assert (node.state, node.score) == ("condemned", 0.0)


def test_a_repaired_node_is_watched_first() -> None:
    node = clear(advance(NODE, [PROVEN], 0.0), 5.0, by="ada", done="GPU replaced")
    assert node.state == "watch"
    assert "ada" in node.because
    with pytest.raises(UsageError):
        clear(node, 5.0, by="", done="something")


def test_the_score_falls_with_what_is_found_and_with_a_bad_past() -> None:
    fine = advance(NODE, [], 0.0).score
    lemon = advance(NODE, [], 0.0, prior=0.2).score
    assert fine == 1.0
    assert advance(NODE, [WATCHED], 0.0).score < lemon < fine
    assert advance(NODE, [PROVEN], 0.0).score == 0.0


def test_a_node_remembers_why_it_is_suspect() -> None:
    node = advance(NODE, [WARNED], 3.0)
    assert (node.because, node.since) == (WARNED.words, 3.0)
    assert advance(node, [WARNED], 9.0).since == 3.0
    assert node.keys == (WARNED.key,)
