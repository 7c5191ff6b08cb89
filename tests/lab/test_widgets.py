import pytest

from cloudshift_lab.core.errors import StaleDecision
from cloudshift_lab.core.plan import Decision
from cloudshift_lab.lab.widgets import live


@pytest.fixture
def approval(make_move):
    decisions: list[Decision] = []

    def decide(migration_id: str, decision: Decision):
        if decision.verdict == "reject":
            raise StaleDecision("already approved by ada; nothing to do")
        decisions.append(decision)
        return make_move(phase="approved", decision=decision)

    widget = live.Approval(make_move(), "ada (notebook)", decide)
    widget.decisions = decisions
    return widget


def message(verdict: str) -> dict[str, object]:
    decision = {"decision_id": "d-1", "plan_digest": "digest-of-the-plan", "verdict": verdict,
                "by": "eve", "at": 1.0}  # fmt: skip
    return {"type": "decision", "decision": decision}


def test_the_widget_carries_the_view_that_was_shown(approval) -> None:
    assert approval.view["plan"]["digest"] == "digest-of-the-plan"
    assert approval.view["phase"] == "proposed"


def test_a_decision_through_the_kernel_is_carried_out_and_shown(approval) -> None:
    approval._receive(approval, message("approve"), None)
    decided = [(decision.decision_id, decision.by) for decision in approval.decisions]
    assert decided == [("d-1", "ada (notebook)")]  # not whom the page named
    assert approval.view["phase"] == "approved"
    assert approval.problem == ""


def test_a_stale_decision_is_told_in_the_widget(approval) -> None:
    approval._receive(approval, message("reject"), None)
    assert approval.problem == "already approved by ada; nothing to do"


@pytest.mark.parametrize(
    "content", [{"type": "decision"}, {"type": "decision", "decision": {"a": 1}}]
)
def test_a_damaged_message_decides_nothing(approval, content) -> None:
    approval._receive(approval, content, None)
    assert approval.decisions == []
    assert approval.problem != ""


def test_other_messages_are_ignored(approval) -> None:
    approval._receive(approval, {"type": "hello"}, None)
    assert (approval.decisions, approval.problem) == ([], "")


@pytest.mark.parametrize("widget", [live.Approval, live.RunCard, live.DashboardFrame])
def test_the_scripts_write_text_never_markup(widget) -> None:
    source = str(widget._esm)
    for dangerous in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert dangerous not in source
    assert "http://" not in source.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in source
