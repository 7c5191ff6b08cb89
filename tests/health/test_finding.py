import msgspec

from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.health.finding import Evidence, Finding, Subject, worst

FINDING = Finding(
    rule_id="nvml.ecc", subject=Subject("gpu", "n1/PCI:0000:3b:00"), severity="critical",
    evidence=(Evidence("errors", 2.0, "", 0.0, 7.0),), action="drain and reset the GPU",
    confidence=1.0, deterministic=True, words="Broken; mend it.", at=7.0,
)  # fmt: skip


def changed(**values: object) -> Finding:
    return msgspec.structs.replace(FINDING, **values)


def test_a_finding_travels_as_json_and_comes_back_equal() -> None:
    assert from_json(to_json(FINDING), Finding) == FINDING


def test_findings_of_the_same_thing_have_the_same_key_whatever_they_say() -> None:
    assert changed(at=9.0, words="again", severity="warning").key == FINDING.key
    assert changed(subject=Subject("gpu", "other")).key != FINDING.key


def test_the_worst_is_the_severest_then_the_proven_then_the_surest() -> None:
    mild = changed(severity="warning")
    guessed = changed(deterministic=False)
    unsure = changed(deterministic=False, confidence=0.5)
    assert worst([mild, unsure, guessed, FINDING]) == FINDING
    assert worst([mild, unsure, guessed]) == guessed
    assert worst([mild, unsure]) == unsure
    assert worst([]) is None
