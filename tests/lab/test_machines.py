"""The verb maintenance, from the words to what is asked of the conductor and shown."""

from __future__ import annotations

import json

import msgspec
import pytest

from cloudshift_lab.core.errors import Conflict
from cloudshift_lab.core.maintenance import (
    Delivery,
    Exhibit,
    MaintenanceMark,
    MaintenanceRequest,
    MaintenanceView,
    Passport,
    PassportEntry,
)
from cloudshift_lab.lab.cli import main
from cloudshift_lab.lab.render.machines import passport_sheet, request_sheet, requests_sheet
from cloudshift_lab.lab.render.sheet import sheet_html, sheet_text

NOW = 1_764_000_000.0


def view(**changes: object) -> MaintenanceView:
    request = MaintenanceRequest(
        request_id="mnt-1", key="n7/drain", node="n7", action="drain", words="Rank 3 <b>hung</b>.",
        by="ada (terminal)", opened_at=NOW - 90, run_id="run-1", deadline=NOW + 1800,
        evidence=(
            Exhibit("no rank has moved for", "31 s", "10 s", NOW), Exhibit("step", "7", at=7),
        ),
    )  # fmt: skip
    made = MaintenanceView(request, "open", deliveries=(Delivery("file", is_there=True),))
    return msgspec.structs.replace(made, **changes)


@pytest.fixture
def asked(service, make_run):
    """What the conductor was asked for, by its scripted service."""
    found: list[object] = []
    service.views = [make_run()]
    service.maintenance = lambda: (view(),)

    def ask(ask: object) -> MaintenanceView:
        found.append(ask)
        return view()

    def mark(request_id: str, mark: MaintenanceMark) -> MaintenanceView:
        found.append((request_id, mark))
        if request_id != "mnt-1":
            raise Conflict(f"{request_id} is resolved already; open another one")
        return view(state=mark.state, marks=(mark,))

    service.ask_maintenance, service.mark_maintenance = ask, mark
    entry = PassportEntry(NOW - 90, "opened", "Rank 3 hung.", "run-1", "mnt-1")
    service.passport = lambda node: Passport(node, is_cordoned=True, entries=(entry,))
    return found


@pytest.fixture
def call(asked, capsys):
    """Runs a command line against the scripted conductor."""

    def run(*words: str) -> tuple[int, str, str]:
        status = main(("maintenance", *words))
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


def test_requests_are_listed_with_what_to_type_next(call) -> None:
    status, out, _ = call()
    assert status == 0
    for said in ("1 request waits, 0 resolved", "mnt-1", "n7", "drain", " ago",
                 "maintenance take mnt-1"):  # fmt: skip
        assert said in out
    assert json.loads(call("--json")[1])[0]["request"]["node"] == "n7"


def test_a_request_says_who_asks_for_what_where_and_why(call, asked) -> None:
    status, out, _ = call("ask", "n7", "--do", "look-at", "--words", "it smells", "--run", "first",
                          "--within", "2h")  # fmt: skip
    assert status == 0
    (ask,) = asked
    assert (ask.node, ask.action, ask.words, ask.run_id, ask.within_s) == (
        "n7", "look at", "it smells", "run-1", 7200.0,
    )  # fmt: skip
    assert ask.by.endswith("(terminal)")
    assert "mnt-1 (open" in out


def test_taking_and_doing_say_by_whom_and_what_was_done(call, asked) -> None:
    assert "acknowledged by" in call("take", "mnt-1")[1]
    status, out, _ = call("done", "mnt-1", "--words", "new fan")
    assert (status, asked[1][1].state, asked[1][1].words) == (0, "resolved", "new fan")
    assert "new fan" in out
    status, _, err = call("done", "mnt-9", "--words", "x")
    assert status == 1
    assert "resolved already" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("ask",), "name the machine"),
        (("ask", "n7"), "say why"),
        (("ask", "n7", "--words", "x", "--within", "soon"), "is no span of time"),
        (("show", "mnt-9"), "choose one of: mnt-1"),
        (("done",), "name the request"),
        (("paint", "n7"), "'list', 'ask', 'show', 'take', 'done', 'machine'"),
        (("ask", "n7", "--do", "kick"), "'look-at', 'drain', 'reset', 'reboot', 'replace'"),
    ],
)
def test_a_wrong_line_gets_one_line_that_says_what_would_be_right(
    call, asked, words: tuple[str, ...], says: str
) -> None:
    status, _, err = call(*words)
    assert status == 2
    assert says in err
    assert asked == []


def test_a_request_is_shown_with_its_evidence_and_its_sinks(call) -> None:
    out = call("show", "mnt-1")[1]
    for said in ("no rank has moved for", "31 s", "step 7", "opened by ada (terminal) about run-1",
                 "its newest state is at: file"):  # fmt: skip
        assert said in out
    late = sheet_text(request_sheet(view(), NOW + 4000, "cloudshift"))
    assert "overdue" in late
    assert "due in 30 min" in sheet_text(request_sheet(view(), NOW, "cloudshift"))


def test_what_a_sink_refuses_is_said_and_nothing_of_a_request_is_html() -> None:
    refused = view(deliveries=(Delivery("webhook", is_there=False, trouble="HTTP 500"),))
    sheet = requests_sheet([refused], NOW, "%cloudshift")
    assert "mnt-1 is not at webhook yet: HTTP 500" in sheet_text(sheet)
    html = sheet_html(sheet)
    assert "<b>hung" not in html
    assert "&lt;b&gt;hung" in html


def test_a_machine_shows_what_happened_to_it_and_whether_it_is_used(call) -> None:
    out = call("machine", "n7")[1]
    assert "n7: nothing new is started there" in out
    assert "Rank 3 hung." in out
    used = Passport("n8", is_cordoned=False)
    assert "n8: in use" in sheet_text(passport_sheet(used, NOW, "cloudshift"))


def test_where_nothing_is_asked_for_it_is_said_how_to(service, capsys) -> None:
    service.maintenance = lambda: ()
    assert main(("maintenance",)) == 0
    assert "maintenance ask MACHINE" in capsys.readouterr().out
