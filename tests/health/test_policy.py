import msgspec

from cloudshift_lab.health.finding import Finding, Subject
from cloudshift_lab.health.policy import ActionPolicy, Taken, rule

PROVEN = Finding(
    rule_id="nvml.ecc", subject=Subject("gpu", "a"), severity="critical", evidence=(),
    action="drain and reset the GPU", confidence=1.0, deterministic=True, words="Broken.", at=0.0,
)  # fmt: skip
GUESSED = msgspec.structs.replace(PROVEN, rule_id="straggler.rank", deterministic=False,
                                  severity="warning")  # fmt: skip
LIVE = ActionPolicy(dry_run=False)


def of(name: str) -> Finding:
    return msgspec.structs.replace(PROVEN, subject=Subject("gpu", name))


def verdicts(
    findings: list[Finding], policy: ActionPolicy, taken: tuple[Taken, ...] = ()
) -> list[str]:
    return [each.verdict for each in rule(findings, taken, 10_000.0, policy)]


def test_a_dry_run_is_the_default_and_does_nothing() -> None:
    (ruling,) = rule([PROVEN], [], 0.0)
    assert ruling.verdict == "would act"
    assert "dry run" in ruling.because


def test_only_proof_acts_alone() -> None:
    assert verdicts([PROVEN, GUESSED], LIVE) == ["act", "ask"]


def test_a_user_may_trust_a_statistical_rule() -> None:
    trusting = ActionPolicy(dry_run=False, trusted=frozenset({"straggler.rank"}))
    assert verdicts([GUESSED], trusting) == ["act"]


def test_no_more_actions_than_allowed_in_an_hour() -> None:
    many = [of(str(number)) for number in range(5)]
    assert verdicts(many, LIVE) == ["act", "act", "ask", "ask", "ask"]
    before = (Taken("x", 10_000.0 - 3_000), Taken("y", 10_000.0 - 4_000))
    assert verdicts(many, LIVE, before) == ["act", "ask", "ask", "ask", "ask"]


def test_the_severest_and_surest_come_first() -> None:
    mild = msgspec.structs.replace(of("b"), severity="warning")
    one = ActionPolicy(dry_run=False, max_per_h=1)
    first, second = rule([mild, PROVEN], [], 0.0, one)
    assert (first.finding, first.verdict) == (PROVEN, "act")
    assert second.verdict == "ask"


def test_the_same_thing_is_not_done_twice() -> None:
    assert verdicts([PROVEN], LIVE, (Taken(PROVEN.key, 9_000.0),)) == ["hold"]
    assert verdicts([PROVEN], LIVE, (Taken(PROVEN.key, 1_000.0),)) == ["act"]


def test_what_cannot_be_taken_back_needs_a_human_even_with_proof() -> None:
    rolled = msgspec.structs.replace(PROVEN, action="roll back")
    assert verdicts([rolled], LIVE) == ["ask"]


def test_what_asks_for_nothing_is_noted() -> None:
    quiet = msgspec.structs.replace(PROVEN, action="none", severity="info")
    watched = msgspec.structs.replace(PROVEN, severity="watch")
    assert verdicts([quiet, watched], LIVE) == ["note", "note"]
