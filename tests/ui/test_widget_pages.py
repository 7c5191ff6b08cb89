"""The widgets' JavaScript in a real browser, on a page that plays JupyterLab and its server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.plan import (
    Bill,
    Closing,
    Decision,
    Futures,
    Going,
    MigrationView,
    PhaseTime,
    Plan,
    Spread,
)
from cloudshift_lab.core.run import RunView
from cloudshift_lab.lab.widgets.live import Approval, RunCard

AWS, GCP = Placement("aws-sim", "us-east-1", "a"), Placement("gcp-sim", "us-central1", "b")
BASE = "/user/ada/"
SHOTS = Path(__file__).parents[2] / "build" / "ui"
CONFIG = (
    f'<script id="jupyter-config-data" type="application/json">{{"baseUrl": "{BASE}"}}</script>'
)


def move(**changes: object) -> MigrationView:
    now = time.time()
    bill = Bill((), -194_500, 5_500, 200_000, 99.0, 2.6, 61_200_000, simulated=True)
    plan = Plan("mig-1", "run-1", AWS, GCP, "s3://a", "gs://b", 1, bill, "move",
                now, now + 600, "digest-1")  # fmt: skip
    view = MigrationView("mig-1", "run-1", "first", "proposed", plan,
                         timeline=(PhaseTime("proposed", now),), as_of=now)  # fmt: skip
    return msgspec.structs.replace(view, **changes)


def run(**changes: object) -> RunView:
    now = time.time()
    view = RunView("run-1", "first", "running", AWS, 1, now, simulated=True, step=120, loss=2.5,
                   progress_at=now, losses=((0, 5.0), (1, 2.5)), as_of=now)  # fmt: skip
    return msgspec.structs.replace(view, **changes)


class Desktop:
    """One page with one widget; ``answers`` are the server's, by method and last path word."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.answers: dict[tuple[str, str], tuple[int, object]] = {}
        self.posted: list[tuple[dict[str, object], str | None]] = []
        page.on("pageerror", lambda error: pytest.fail(str(error)))
        page.route("**/*", self._answer)

    def show(self, esm: str, view: object, *, jupyter: bool = True) -> None:
        self._config = CONFIG if jupyter else ""
        self.page.goto("http://lab.test/lab")
        self.page.evaluate(
            """([esm, view]) => {
                document.cookie = "_xsrf=a%7Cb";
                const widget = new Function(esm.replace("export default", "return"))();
                const state = {view, move: {}, problem: "", by: "ada (approval widget)"};
                const called = {};
                window.sent = [];
                window.push = (name, value) => { state[name] = value; called["change:" + name](); };
                const model = {get: (name) => state[name], off() {},
                    on: (event, call) => { called[event] = call; }, send: (m) => sent.push(m)};
                widget.render({model, el: document.body});
            }""",
            [esm, msgspec.to_builtins(view)],
        )

    def sent(self) -> list[dict[str, object]]:
        return self.page.evaluate("window.sent")

    def push(self, name: str, value: object) -> None:
        self.page.evaluate("([n, v]) => window.push(n, v)", [name, msgspec.to_builtins(value)])

    def _answer(self, route: Route) -> None:
        request = route.request
        if request.url == "http://lab.test/lab":
            body = f"<html><head>{self._config}</head><body></body></html>"
            route.fulfill(body=body, content_type="text/html")
            return
        assert request.url.startswith(f"http://lab.test{BASE}cloudshift/api/"), request.url
        if request.method == "POST":
            self.posted.append((request.post_data_json, request.headers.get("x-xsrftoken")))
        key = (request.method, request.url.rsplit("/", 1)[1])
        status, data = self.answers.get(key, (404, {"message": "Not Found"}))
        route.fulfill(status=status, body=json.dumps(msgspec.to_builtins(data)))


@pytest.fixture
def desktop(browser: Browser) -> Iterator[Desktop]:
    page = browser.new_page()
    yield Desktop(page)
    page.close()


def approve(desktop: Desktop) -> None:
    desktop.page.get_by_role("button", name="Approve").click()


def test_approve_goes_through_the_server_with_the_digest_that_was_shown(desktop: Desktop) -> None:
    decision = Decision("d", "digest-1", "approve", "ada (widget)")
    decided = move(phase="approved", decision=decision, as_of=time.time() + 1)
    desktop.answers = {("GET", "mig-1"): (200, move()), ("POST", "decision"): (200, decided)}
    desktop.show(Approval._esm, move())
    approve(desktop)
    expect(desktop.page.get_by_text("approved by ada (widget)")).to_be_visible()
    expect(desktop.page.get_by_role("button", name="Approve")).to_be_hidden()
    ((body, xsrf),) = desktop.posted
    assert (body["plan_digest"], body["verdict"], body["by"]) == (
        "digest-1", "approve", "ada (approval widget)",
    )  # fmt: skip
    assert xsrf == "a|b"
    assert desktop.sent() == []


def test_reject_sends_the_other_verdict(desktop: Desktop) -> None:
    desktop.answers = {("POST", "decision"): (200, move(phase="rejected", as_of=time.time() + 1))}
    desktop.show(Approval._esm, move())
    desktop.page.get_by_role("button", name="Reject").click()
    expect(desktop.page.locator(".cs-state")).to_have_text("rejected")
    assert desktop.posted[0][0]["verdict"] == "reject"


def test_a_second_click_carries_the_same_decision_id(desktop: Desktop) -> None:
    desktop.answers = {("POST", "decision"): (409, {"message": "try again"})}
    desktop.show(Approval._esm, move())
    approve(desktop)
    expect(desktop.page.get_by_text("try again")).to_be_visible()
    approve(desktop)
    expect(desktop.page.get_by_role("button", name="Approve")).to_be_enabled()
    assert len({str(body["decision_id"]) for body, _ in desktop.posted}) == 1


def test_a_stale_decision_is_told_and_not_sent_another_way(desktop: Desktop) -> None:
    told = {"kind": "StaleDecision", "message": "already rejected by bob; plan it again"}
    desktop.answers = {("POST", "decision"): (409, told)}
    desktop.show(Approval._esm, move())
    approve(desktop)
    expect(desktop.page.get_by_role("alert")).to_have_text("already rejected by bob; plan it again")
    assert desktop.sent() == []


@pytest.mark.parametrize("jupyter", [True, False])
def test_without_our_server_the_kernel_carries_it_and_the_page_says_so(
    desktop: Desktop, jupyter: bool
) -> None:
    desktop.show(Approval._esm, move(), jupyter=jupyter)
    approve(desktop)
    expect(desktop.page.get_by_text("cloudshift approve mig-1")).to_be_visible()
    (message,) = desktop.sent()
    assert message["type"] == "decision"
    assert message["decision"]["plan_digest"] == "digest-1"
    desktop.push("view", move(phase="approved", as_of=time.time() + 1))
    expect(desktop.page.locator(".cs-state")).to_have_text("approved")


def test_an_expired_plan_cannot_be_approved_and_says_why(desktop: Desktop) -> None:
    late = move()
    late = msgspec.structs.replace(
        late, plan=msgspec.structs.replace(late.plan, expires_at=late.as_of - 1)
    )
    desktop.show(Approval._esm, late)
    expect(desktop.page.get_by_role("button", name="Approve")).to_be_disabled()
    expect(desktop.page.get_by_text("plan the move again")).to_be_visible()


def test_phases_go_on_from_the_server_alone(desktop: Desktop) -> None:
    now = time.time()
    timeline = (PhaseTime("proposed", now - 5), PhaseTime("approved", now - 3),
                PhaseTime("copying", now - 1))  # fmt: skip
    desktop.show(Approval._esm, move())
    desktop.answers = {("GET", "mig-1"): (200, move(phase="copying", timeline=timeline))}
    expect(desktop.page.get_by_text("▸ copying")).to_be_visible()
    expect(desktop.page.get_by_text("✓ proposed 2.0 s")).to_be_visible()
    expect(desktop.page.locator("[aria-current=step]")).to_have_text("▸ copying")


def test_the_keyboard_is_enough(desktop: Desktop) -> None:
    desktop.show(Approval._esm, move(), jupyter=False)
    desktop.page.keyboard.press("Tab")
    expect(desktop.page.get_by_role("button", name="Approve")).to_be_focused()
    desktop.page.keyboard.press("Tab")
    desktop.page.keyboard.press("Enter")
    assert desktop.sent()[0]["decision"]["verdict"] == "reject"


def test_names_are_text_and_never_markup(desktop: Desktop) -> None:
    name = "<img src=x onerror=\"document.title='owned'\">"
    desktop.show(RunCard._esm, run(name=name, error=name, traceback=name), jupyter=False)
    expect(desktop.page.get_by_text(name).first).to_be_visible()
    assert desktop.page.locator("img").count() == 0


def test_why_the_rule_has_not_approved_is_text_and_gone_once_somebody_has(
    desktop: Desktop,
) -> None:
    why = "quiet hours, nobody is asked before 07:00: <b>price</b>"
    desktop.show(Approval._esm, move(waiting=why), jupyter=False)
    state = desktop.page.locator(".cs-state")
    expect(state).to_contain_text(f"its rule: {why}")
    desktop.push("view", move(phase="approved", waiting=why, as_of=time.time() + 1))
    expect(state).to_have_text("approved")


def test_the_card_follows_the_run_and_its_move(desktop: Desktop) -> None:
    desktop.show(RunCard._esm, run())
    moving = run(step=3456, state="migrating", migration_id="mig-1", as_of=time.time() + 1)
    timeline = (PhaseTime("proposed", 1.0), PhaseTime("verifying", 2.0))
    desktop.answers = {
        ("GET", "run-1"): (200, moving),
        ("GET", "mig-1"): (200, move(phase="verifying", timeline=timeline)),
    }
    expect(desktop.page.get_by_text("3,456")).to_be_visible()
    expect(desktop.page.get_by_text("◐ migrating")).to_be_visible()
    expect(desktop.page.get_by_text("▸ verifying")).to_be_visible()
    expect(desktop.page.get_by_text("simulated", exact=True)).to_be_visible()


def test_the_card_says_when_its_data_is_stale(desktop: Desktop) -> None:
    desktop.answers = {("GET", "run-1"): (503, {"message": "offline since 12:03:00, retrying"})}
    desktop.show(RunCard._esm, run())
    expect(desktop.page.get_by_text("offline since 12:03:00, retrying")).to_be_visible()
    expect(desktop.page.get_by_text("stale: ")).to_be_visible(timeout=30_000)


def live(**changes: object) -> MigrationView:
    """A move that rehearses, repeats steps, and was simulated before."""
    view = move(**changes)
    plan = msgspec.structs.replace(
        view.plan, closing="replay", rehearsal_steps=3, approvals_needed=2,
        closings=(
            Closing("copy", 6.0, 6.0, 400_000_000, basis="400.0 MB at 25.0 MB/s"),
            Closing("replay", 2.5, 0.8, 520_000_000, replayed_steps=4, basis="4 steps of 0.30 s"),
        ),
    )  # fmt: skip
    futures = Futures(1000, Spread(2.1, 2.5, 4.0), Spread(30e3, 41e3, 1.25e6),
                      Spread(40.0, 50.0, 120.0), 0.034, 0.0, "measured: step 0.3 s")  # fmt: skip
    return msgspec.structs.replace(view, plan=plan, futures=changes.get("futures", futures))


def test_a_decision_rests_on_closings_rehearsal_and_futures(desktop: Desktop) -> None:
    desktop.show(Approval._esm, live(), jupyter=False)
    page = desktop.page
    chosen = page.get_by_role("row").filter(has_text="repeat steps (chosen)")
    expect(chosen).to_contain_text("2.5 s")
    expect(chosen).to_contain_text("0.8 s")
    expect(page.get_by_role("row").filter(has_text="copy bytes")).to_contain_text("6.0 s")
    expect(page.get_by_text("computes 3 steps before the commit")).to_be_visible()
    expect(page.get_by_text("2 approvals are needed")).to_be_visible()
    pause = page.get_by_role("img", name="pause: 1 in 10 below 2.1 s, half below 2.5 s")
    expect(pause).to_be_visible()
    expect(page.get_by_text("3.4 % are rolled back, 0 % lose steps")).to_be_visible()
    expect(page.get_by_text("simulated", exact=True)).to_have_count(2)


def test_where_no_future_arrives_no_pause_is_shown(desktop: Desktop) -> None:
    drawn = live().futures
    assert drawn is not None
    none_arrived = msgspec.structs.replace(drawn, pause_s=None, rolled_back=1.0)
    desktop.show(Approval._esm, live(futures=none_arrived), jupyter=False)
    row = desktop.page.get_by_role("row").filter(has_text="none of them arrived")
    expect(row).to_contain_text("pause")
    expect(desktop.page.get_by_text("100 % are rolled back")).to_be_visible()


def test_futures_that_come_later_are_added_to_what_is_shown(desktop: Desktop) -> None:
    desktop.show(Approval._esm, live(futures=None), jupyter=False)
    expect(desktop.page.get_by_text("futures of this click")).to_have_count(0)
    desktop.push("view", live(as_of=time.time() + 1))
    expect(desktop.page.get_by_text("1,000 futures of this click")).to_be_visible()


def test_who_has_approved_waits_for_another_person(desktop: Desktop) -> None:
    mine = Decision("d", "digest-1", "approve", "ada (terminal)")
    desktop.show(Approval._esm, live(approvals=(mine,)), jupyter=False)
    page = desktop.page
    expect(page.locator(".cs-state")).to_contain_text("approved by ada (terminal)")
    expect(page.locator(".cs-state")).to_contain_text("1 more approval is needed")
    expect(page.get_by_role("button", name="Approve")).to_be_disabled()
    expect(page.get_by_role("button", name="Reject")).to_be_enabled()
    bob = msgspec.structs.replace(mine, by="bob (terminal)")
    desktop.push("view", live(approvals=(bob,), as_of=time.time() + 1))
    expect(page.get_by_role("button", name="Approve")).to_be_enabled()


def test_a_worse_bill_is_asked_again_and_decided_by_its_own_digest(desktop: Desktop) -> None:
    desktop.show(Approval._esm, live(), jupyter=False)
    approve(desktop)
    worse = PhaseTime("asking", time.time(), "the bill is $1.00 as measured, -$0.19 was approved")
    asking = live(phase="asking", timeline=(PhaseTime("rehearsing", 1.0), worse))
    plan = msgspec.structs.replace(asking.plan, digest="digest-2")
    later = msgspec.structs.replace(asking, plan=plan, as_of=time.time() + 1)
    desktop.push("view", later)
    expect(desktop.page.get_by_text("asked again: the bill is $1.00 as measured")).to_be_visible()
    expect(desktop.page.get_by_text("and then it is rolled back")).to_be_visible()
    approve(desktop)
    first, second = (message["decision"] for message in desktop.sent())
    assert (first["plan_digest"], second["plan_digest"]) == ("digest-1", "digest-2")
    assert first["decision_id"] != second["decision_id"]


def test_progress_has_bytes_speed_time_left_and_a_bar(desktop: Desktop) -> None:
    going = Going(120_000_000, 400_000_000, 25e6, 11.2, "round 2")
    timeline = (PhaseTime("approved", 1.0), PhaseTime("precopying", 2.0))
    shown = live(phase="precopying", timeline=timeline, going=going)
    desktop.show(Approval._esm, shown, jupyter=False)
    told = "precopying: round 2 · 120.0 MB of 400.0 MB (30%) · 25.0 MB/s · 11 s left"
    expect(desktop.page.get_by_text(told)).to_be_visible()
    bar = desktop.page.get_by_role("progressbar", name="bytes copied")
    assert bar.evaluate("node => node.value") == pytest.approx(0.3)
    expect(desktop.page.get_by_text("futures of this click")).to_be_hidden()
    expect(desktop.page.get_by_text("· rehearsing")).to_be_visible()
    expect(desktop.page.get_by_text("· copying")).to_have_count(0)


def test_a_notice_counts_down_between_two_answers(desktop: Desktop) -> None:
    view = live(phase="draining", notice_s=24.0, timeline=(PhaseTime("draining", 1.0),))
    desktop.show(Approval._esm, view, jupyter=False)
    notice = desktop.page.locator(".cs-notice")
    expect(notice).to_contain_text("the source's machine goes in 2")
    expect(notice).to_contain_text("its newest step is saved first")
    before = notice.inner_text()
    expect(notice).not_to_have_text(before)


def test_the_run_card_says_when_its_machine_goes(desktop: Desktop) -> None:
    told = run(notice_until=time.time() + 20, notice="the newest step will be saved")
    desktop.show(RunCard._esm, told, jupyter=False)
    expect(desktop.page.get_by_text("this machine is taken away in")).to_be_visible()
    expect(desktop.page.get_by_text("the newest step will be saved")).to_be_visible()


THEMES = {
    "light": {"font-color1": "#212121", "font-color2": "#616161", "layout": "#fff",
              "border": "#bdbdbd", "brand": "#1976d2", "page": "#fff"},
    "dark": {"font-color1": "#e0e0e0", "font-color2": "#bdbdbd", "layout": "#111",
             "border": "#616161", "brand": "#64b5f6", "page": "#111"},
}  # fmt: skip


@pytest.mark.parametrize("theme", sorted(THEMES))
def test_a_picture_of_the_approval_in_both_themes(desktop: Desktop, theme: str) -> None:
    colours = THEMES[theme]
    style = (
        f":root {{ --jp-ui-font-color1: {colours['font-color1']};"
        f" --jp-ui-font-color2: {colours['font-color2']};"
        f" --jp-layout-color1: {colours['layout']}; --jp-layout-color2: {colours['layout']};"
        f" --jp-border-color2: {colours['border']}; --jp-brand-color1: {colours['brand']}; }}"
        f" body {{ background: {colours['page']}; }}"
    )
    page = desktop.page
    page.set_viewport_size({"width": 900, "height": 700})
    desktop.show(Approval._esm, live(), jupyter=False)
    page.add_style_tag(content=style + str(Approval._css))
    expect(page.get_by_text("futures of this click")).to_be_visible()
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"approval-{theme}.png")
    inks = page.evaluate(
        "[...document.querySelectorAll('.cs-box, .cs-table td')]"
        ".map((node) => getComputedStyle(node).color)"
    )
    assert len(set(inks)) == 1, "a table keeps its own ink"
    box = page.locator(".cs-box").bounding_box()
    assert box is not None
    assert box["width"] <= 850
    wide = page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
    assert not wide, "the card is wider than the page"
