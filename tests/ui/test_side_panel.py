"""The side panel in states that are hard to reach for real: real page and servers, recorded views.

JupyterLab, our server extension and the conductor's HTTP layer are the real ones; what the
conductor says are views written down here, as its service would build them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from playwright.sync_api import Browser, Locator, expect

from cloudshift_lab.core.errors import NotFound, StaleDecision
from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.plan import (
    Bill,
    BillItem,
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

AWS = Placement("aws-sim", "us-east-1", "sim.gpu.2x")
GCP = Placement("gcp-sim", "us-central1", "sim.gpu.2x", nodes=2)
NAME = "llama-3.1-8b-instruct-lora-r64-wikitext-lr3e-4-warmup2000-seed17"
QUESTION = f"Move {NAME} to gcp-sim:us-central1?"
ITEMS = (
    BillItem("compute at gcp-sim", -1_200_000, "1 h x ($0.60 - $1.80)", "catalogue", "compute"),
    BillItem("egress", 36_000, "400.0 MB x $0.09/GB", "price list 2026-10", "egress"),
    BillItem("pause", 1_300, "2.5 s x $1.80/h", "measured", "pause"),
    BillItem("restart", 0, "the target's first step compiles again", "assumed", "note"),
)
RULE = "auto if pause < 2s"
WAITING = "quiet hours, nobody is asked before 07:00 UTC+01:00: pause 2.5 s is not < 2 s"


def bill(worse_micro_usd: int = 0) -> Bill:
    egress = msgspec.structs.replace(ITEMS[1], amount_micro_usd=36_000 + worse_micro_usd)
    items = (ITEMS[0], egress, *ITEMS[2:])
    total = sum(item.amount_micro_usd for item in items)
    return Bill(items, total, 37_300 + worse_micro_usd, 1_200_000, 112.0, 2.5, 400_000_000,
                simulated=True)  # fmt: skip


def plan(**changes: object) -> Plan:
    now = time.time()
    closings = (
        Closing("copy", 6.0, 6.0, 400_000_000, basis="400.0 MB at 25.0 MB/s"),
        Closing("replay", 2.5, 0.8, 520_000_000, replayed_steps=4, basis="4 steps of 0.30 s"),
    )
    made = Plan(
        "mig-1", "run-1", AWS, GCP, "s3://a", "gs://b", 1, bill(), "move", now, now + 600, "one",
        closing="replay", closings=closings, rehearsal_steps=4, approvals_needed=2,
        missing_nodes="wait", limit_micro_usd=250_000,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


FUTURES = Futures(
    1000, Spread(2.1, 2.5, 64.0), Spread(30e3, 41e3, 1.25e6), Spread(40.0, 50.0, 4020.0),
    0.034, 0.0, "measured: step 0.3 s; assumed: a machine is lost every 12 h",
)  # fmt: skip


def move(phase: str = "proposed", *path: tuple[str, str], **changes: object) -> MigrationView:
    """A move in one phase; ``path`` are phases and details that it has passed, that one last."""
    now = time.time()
    passed = (("proposed", ""), *path)
    timeline = tuple(
        PhaseTime(name, now - 3 * (len(passed) - at), detail)  # type: ignore[arg-type]
        for at, (name, detail) in enumerate(passed)
    )
    view = MigrationView("mig-1", "run-1", NAME, phase, plan(), timeline, as_of=now)  # type: ignore[arg-type]
    return msgspec.structs.replace(view, **changes)


def run(number: int = 1, **changes: object) -> RunView:
    now = time.time()
    losses = tuple((step, 1.2 + 3.4 / (1 + step / 40)) for step in range(0, 400, 8))
    view = RunView(
        f"run-{number}", NAME if number == 1 else f"sweep-{number:02}", "running", AWS, 1,
        now - 60 * number, simulated=True, step=123_456, loss=1.2345, progress_at=now,
        price_micro_usd_per_h=1_800_000, spent_micro_usd=512_300, checkpoint_step=123_400,
        checkpoint_at=now - 12, losses=losses, as_of=now,
    )  # fmt: skip
    return msgspec.structs.replace(view, **changes)


class Views:
    """What the conductor says, replaced as a test goes on."""

    def __init__(self, service: Any) -> None:
        self.service = service
        self.by = "ada"
        self.decided = threading.Event()
        service.runs = lambda: self.runs
        service.run = self.run
        service.migrations = lambda run: self.moves
        service.migration = lambda migration_id: self.moves[0]
        service.decide = self.decide
        self.runs: tuple[RunView, ...] = ()
        self.moves: tuple[MigrationView, ...] = ()

    def say(self, *views: RunView | MigrationView) -> None:
        self.runs = tuple(view for view in views if isinstance(view, RunView))
        self.moves = tuple(view for view in views if isinstance(view, MigrationView))
        self.service.touch()

    def run(self, run_id: str) -> RunView:
        for view in self.runs:
            if run_id in (view.run_id, view.name):
                return view
        raise NotFound(f"no run '{run_id}'")

    def decide(self, migration_id: str, decision: Decision) -> MigrationView:
        view = self.moves[0]
        if decision.plan_digest != view.plan.digest:
            raise StaleDecision(f"the plan of '{migration_id}' has changed; look at it again")
        self.service.decisions.append(decision)
        approvals = (*view.approvals, decision)
        self.say(*self.runs, msgspec.structs.replace(view, approvals=approvals))
        return self.moves[0]


class Desk:
    """One JupyterLab page beside a conductor whose words the test writes."""

    def __init__(self, desktop: Any, views: Views, conductor: Any) -> None:
        self.desktop, self.page, self.views = desktop, desktop.page, views
        self.conductor = conductor
        self.panel: Locator = desktop.open_side_panel()

    @property
    def card(self) -> Locator:
        return self.panel.locator(".jp-cloudshift-approval")

    def widen(self, width: int) -> None:
        """Drag the side panel's edge until the panel is so wide; a new theme moves it at first."""
        for _ in range(20):
            expect(self.panel).to_be_visible()
            box = self.panel.bounding_box()
            if box is None:
                continue
            if abs(box["width"] - width) < 2:
                return
            edge, middle = box["x"] + box["width"] + 1, box["y"] + 300
            self.page.mouse.move(edge, middle)
            self.page.mouse.down()
            self.page.mouse.move(box["x"] + width + 1, middle, steps=4)
            self.page.mouse.up()
            self.page.wait_for_timeout(200)
        raise AssertionError(f"the panel does not become {width} pixels wide: {box}")

    def assert_nothing_is_cut(self) -> None:
        """No text of the panel runs over its right edge, and nothing scrolls sideways."""
        over = self.panel.evaluate(
            """panel => {
                const edge = panel.getBoundingClientRect().left + panel.clientWidth;
                const cut = [...panel.querySelectorAll("*")]
                    .filter(node => node.getBoundingClientRect().right > edge + 0.5)
                    .map(node => node.className + ": " + node.textContent.slice(0, 60));
                return panel.scrollWidth > panel.clientWidth ? ["scrolls", ...cut] : cut;
            }"""
        )
        assert over == []

    def shoot(self, name: str) -> None:
        self.desktop.shoot(f"panel-{name}")


@pytest.fixture(scope="module")
def desk(
    browser: Browser,
    tmp_path_factory: pytest.TempPathFactory,
    start_lab: Callable[[Path], Any],
    scripted: ModuleType,
    desktop_of: Callable[[Any], Any],
) -> Iterator[Desk]:
    home = tmp_path_factory.mktemp("panel") / "cloudshift"
    home.mkdir()
    conductor = scripted.ScriptedConductor(home).start()
    views = Views(conductor.service)
    server = start_lab(home)
    page = browser.new_page(viewport={"width": 1000, "height": 1250})
    page.set_default_timeout(180_000)
    try:
        server.open(page)
        yield Desk(desktop_of(page), views, conductor)
    finally:
        page.close()
        conductor.close()


def test_without_a_run_the_panel_says_how_to_start_one(desk: Desk) -> None:
    expect(desk.panel.get_by_role("status").first).to_have_text("Conductor online")
    expect(desk.panel).to_contain_text("No runs yet")
    expect(desk.panel).to_contain_text("%%cloudshift train")
    desk.shoot("no-run")


@pytest.mark.parametrize(("theme", "width"), [("Light", 320), ("Dark", 320), ("Light", 620)])
def test_a_question_shows_what_it_rests_on_at_any_width(desk: Desk, theme: str, width: int) -> None:
    ada = Decision("d", "one", "approve", "ada (terminal)", time.time())
    desk.views.say(run(), move(futures=FUTURES, waiting=WAITING, approvals=(ada,)))
    desk.desktop.choose_theme(theme)
    desk.widen(width)
    card = desk.panel.get_by_role("group", name=QUESTION)
    rows = card.get_by_role("row")
    expect(rows.filter(has_text="▸ repeat steps")).to_contain_text("2.5 s")
    expect(rows.filter(has_text="copy bytes")).to_contain_text("400.0 MB")
    expect(rows.filter(has_text="over after")).to_contain_text("1 h 7 min")
    expect(card).to_contain_text("3.4 % are rolled back, 0 % lose steps")
    expect(card).to_contain_text("Rehearsal: 4 steps")
    expect(card).to_contain_text(f"its rule: {WAITING}")
    expect(card).to_contain_text("approved by ada (terminal)")
    expect(card).to_contain_text("1 of 2 approvals")
    if card.locator("details[open]").count() == 0:
        card.get_by_text("Itemised bill").click()
    expect(card.get_by_role("listitem").filter(has_text="egress")).to_contain_text("$0.0360")
    desk.assert_nothing_is_cut()
    desk.shoot(f"question-{theme.lower()}-{width}")


def test_a_second_approver_is_counted_where_the_first_is(desk: Desk) -> None:
    ada = Decision("d", "one", "approve", "ada (terminal)", time.time())
    desk.views.say(run(), move(approvals=(ada,)))
    expect(desk.card).to_contain_text("1 of 2 approvals")
    desk.card.get_by_role("button", name="Approve").click()
    expect(desk.card).to_contain_text("2 of 2 approvals")
    assert desk.views.service.decisions[-1].by.endswith(" (side panel)")


def test_a_bill_that_got_worse_is_asked_about_again_in_card_and_toast(desk: Desk) -> None:
    desk.views.say(run(), move())
    asked = desk.desktop.toast("Move llama")
    expect(asked).to_contain_text("seed17 to gcp-sim:us-central1? Saves $1.20/h, pause ≈ 2.5 s.")
    expect(asked).to_contain_text("else it stays. (simulated)")
    because = "the bill is -$0.66 as measured, -$1.16 was approved"
    worse = plan(bill=bill(500_000), digest="two")
    path = (("approved", "by ada"), ("rehearsing", ""), ("asking", because))
    desk.views.say(run(state="migrating"), move("asking", *path, plan=worse))
    again = desk.desktop.toast("The bill got worse: -$0.66. Go on moving")
    expect(again).to_contain_text("else it is rolled back. (simulated)")
    expect(asked).to_have_count(0)
    expect(desk.card).to_contain_text(f"It is asked again: {because}")
    expect(desk.card).to_contain_text("else it is rolled back")
    expect(desk.card).to_contain_text("0 of 2 approvals")
    desk.shoot("asking")
    desk.card.get_by_role("button", name="Approve").click()
    expect(desk.card).to_contain_text("1 of 2 approvals")
    assert desk.views.service.decisions[-1].plan_digest == "two"
    late = msgspec.structs.replace(worse, expires_at=time.time() - 1)
    desk.views.say(run(state="migrating"), move("asking", *path, plan=late))
    expect(desk.card).to_contain_text("it is rolled back")
    expect(desk.card).not_to_contain_text("stays where it is")
    expect(desk.card.get_by_role("button", name="Approve")).to_be_disabled()


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_bytes_on_their_way_have_words_and_a_bar(desk: Desk, theme: str) -> None:
    going = Going(120_000_000, 400_000_000, 25e6, 11.2, "round 2")
    path = (("approved", "by ada"), ("precopying", ""))
    desk.views.say(run(state="migrating"), move("precopying", *path, going=going))
    desk.desktop.choose_theme(theme)
    desk.widen(320)
    line = desk.panel.locator(".jp-cloudshift-move")
    expect(line.get_by_role("status")).to_have_text("→ gcp-sim:us-central1: precopying")
    told = "round 2 · 120.0 MB of 400.0 MB (30%) · 25.0 MB/s · 11 s left"
    expect(line).to_contain_text(told)
    bar = line.get_by_role("progressbar", name="bytes copied")
    assert bar.evaluate("node => node.position") == pytest.approx(0.3)
    expect(desk.card).to_have_count(0)
    desk.assert_nothing_is_cut()
    desk.shoot(f"copying-{theme.lower()}")


def test_a_notice_counts_down_and_says_what_is_saved(desk: Desk) -> None:
    words = "30 s are enough to save the newest step (4.1 s)"
    warned = run(state="migrating", notice_until=time.time() + 110, notice=words)
    path = (("approved", "by ada"), ("draining", "4 losses equal bit by bit, steps 40 to 43"))
    desk.views.say(warned, move("draining", *path, notice_s=110.0))
    card = desk.panel.get_by_role("listitem", name=NAME)
    expect(card).to_contain_text(f": {words}")
    expect(card.locator(".jp-cloudshift-move")).to_contain_text("Its newest step is saved first")
    expect(card.get_by_text("goes in")).to_have_count(1)
    notice = card.locator(".jp-cloudshift-notice").first
    before = notice.inner_text()
    expect(notice).not_to_have_text(before)
    desk.shoot("notice")
    desk.views.say(run(state="migrating"), move("draining", *path, notice_s=20.0))
    expect(notice).to_contain_text("Notice: the source's machine goes in")


def test_fifty_runs_have_a_card_each_and_living_ones_come_first(desk: Desk) -> None:
    ended = {"state": "finished", "ended_at": time.time(), "price_micro_usd_per_h": 1_800_000}
    runs = [run(number, **(ended if number % 2 == 0 else {})) for number in range(1, 51)]
    desk.views.say(*runs)
    cards = desk.panel.locator(".jp-cloudshift-run")
    expect(cards).to_have_count(50)
    expect(cards.nth(24)).to_contain_text("running")
    expect(cards.nth(25)).to_contain_text("finished")
    expect(cards.nth(25)).not_to_contain_text("/h")
    expect(cards.first).to_contain_text("123,456")
    desk.assert_nothing_is_cut()
    desk.shoot("fifty-runs")
    failed = run(error="CUDA error: an illegal memory access was encountered", error_rank=3,
                 state="failed", ended_at=time.time(), losses=())  # fmt: skip
    desk.views.say(failed)
    expect(cards.first).to_contain_text("rank 3: CUDA error")
    desk.shoot("failed-run")


def test_a_conductor_that_went_away_takes_no_answer_and_says_since_when(desk: Desk) -> None:
    desk.views.say(run(), move(futures=FUTURES))
    expect(desk.card.get_by_role("button", name="Approve")).to_be_enabled()
    desk.conductor.close()
    expect(desk.panel.get_by_role("status").first).to_contain_text("Conductor offline since")
    expect(desk.card.get_by_role("button", name="Approve")).to_be_disabled()
    expect(desk.card).to_contain_text("The conductor is offline")
    expect(desk.panel.get_by_role("button", name="Start conductor")).to_be_enabled()
    expect(desk.panel.get_by_role("heading", name="Runs as seen at")).to_be_visible()
    faint = "node => Number(getComputedStyle(node).opacity) < 1"
    assert desk.card.get_by_role("button", name="Reject").evaluate(faint), "looks like a button"
    desk.shoot("away")
