"""What a researcher sees and clicks, from the notebook's cells to the run on the other cloud."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from cloudshift_lab.conductor.client import Client

SOURCE, TARGET = "aws-sim:us-east-1", "gcp-sim:us-central1"
RUN = "ui"


def step_of(conductor: Client) -> int:
    return conductor.run(RUN).step or 0


@pytest.fixture
def training(notebook: Any, conductor: Client) -> None:
    """The run makes steps and has a checkpoint."""
    notebook.wait_for("the first steps", lambda: step_of(conductor) >= 20)


def test_approve_works_while_the_kernel_is_busy_and_the_run_arrives(
    notebook: Any, conductor: Client, lab: Any, training: None
) -> None:
    page: Page = notebook.page
    notebook.run_cell(4)
    approve = page.locator(".jp-OutputArea-output").get_by_role("button", name="Approve")
    approve.wait_for()
    (move,) = conductor.migrations(RUN)
    notebook.toast(f"Move {RUN} to {TARGET}?").wait_for()
    notebook.start_cell()
    notebook.prompt(5).get_by_text("[*]:").wait_for()
    page.locator(".jp-StatusBar-Widget").get_by_text("| Busy").wait_for()
    notebook.shoot("1-approval-while-busy")

    approve.click()
    notebook.wait_for("the decision", lambda: conductor.migration(move.migration_id).decision)
    notebook.toast(f"Move {RUN} to {TARGET}?").wait_for(state="detached")
    panel = notebook.open_side_panel()
    panel.get_by_role("status").filter(has_text=f"→ {TARGET}").wait_for()
    notebook.shoot("2-moving")
    notebook.wait_for(
        "the end of the move",
        lambda: conductor.migration(move.migration_id).phase in ("source_retired", "rolled_back"),
        deadline_s=600,
    )
    arrived = conductor.migration(move.migration_id)
    assert (arrived.phase, arrived.error) == ("source_retired", None)
    assert arrived.decision is not None
    assert "widget" in arrived.decision.by
    assert arrived.sealed_step is not None
    sealed_step = arrived.sealed_step
    notebook.wait_for("the next step there", lambda: step_of(conductor) > sealed_step)
    run = conductor.run(RUN)
    assert run.placement.target == TARGET
    assert run.state == "running"
    group = page.locator(".jp-OutputArea-output").get_by_role("group", name="decide on the move")
    expect(group.first).to_contain_text("source retired")
    assert notebook.prompt(5).inner_text().strip() == "[*]:", "the kernel was busy all the time"
    notebook.shoot("3-arrived-while-busy")
    Path(lab.root / "go_on").touch()
    notebook.prompt(5).get_by_text("[5]:").wait_for()


def test_one_of_two_approvals_decides_nothing_and_a_rejection_takes_the_toast_away(
    notebook: Any, conductor: Client, training: None
) -> None:
    panel = notebook.open_side_panel()
    here = conductor.run(RUN).placement.target
    there = SOURCE if here == TARGET else TARGET
    move = conductor.migrate(RUN, there, approvals=2)
    question = f"Move {RUN} to {there}?"
    notebook.toast(question).wait_for()
    card = panel.get_by_role("group", name=question)
    expect(card).to_contain_text("Answer within")
    expect(card).to_contain_text("simulated")
    card.get_by_text("Itemised bill").click()
    expect(card.locator(".jp-cloudshift-bill li").first).to_contain_text("$")
    expect(card).to_contain_text("its rule: ask: pause")
    expect(card.get_by_role("row").filter(has_text="copy bytes")).to_contain_text(" s")
    expect(card.get_by_role("row").filter(has_text="repeat steps")).to_contain_text(" s")
    expect(card).to_contain_text("1,000 futures of this click")
    expect(card.get_by_role("row").filter(has_text="over after")).to_contain_text(" s")
    expect(card).to_contain_text("0 of 2 approvals")
    card.get_by_role("button", name="Approve").click()
    expect(card).to_contain_text("1 of 2 approvals")
    expect(card).to_contain_text("(side panel)")
    expect(notebook.toast(question)).to_be_visible()
    notebook.shoot("4-side-panel")
    card.get_by_role("button", name="Reject").click()
    notebook.wait_for(
        "the rejection", lambda: conductor.migration(move.migration_id).phase == "rejected"
    )
    decision = conductor.migration(move.migration_id).decision
    assert decision is not None
    assert decision.by.endswith(" (side panel)")
    notebook.toast(question).wait_for(state="detached")
    card.wait_for(state="detached")
    assert conductor.run(RUN).placement.target == here


def test_the_side_panel_shows_the_run_as_the_conductor_knows_it(
    notebook: Any, conductor: Client, training: None
) -> None:
    panel = notebook.open_side_panel()
    card = panel.get_by_role("listitem", name=RUN)
    expect(card).to_contain_text("running")
    expect(card).to_contain_text(conductor.run(RUN).placement.target)
    expect(card).to_contain_text("simulated")
    expect(panel.get_by_role("status").first).to_contain_text("Conductor online")


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_the_dashboard_tab_draws_the_run_in_both_themes(
    notebook: Any, conductor: Client, training: None, theme: str
) -> None:
    page: Page = notebook.page
    notebook.choose_theme(theme)
    notebook.open_side_panel().get_by_role("button", name="Open dashboard").click()
    wanted = "dark" if theme == "Dark" else "default"
    frame = page.frame_locator(f"iframe[src*='cloudshift/dashboard'][src*='theme={wanted}']")
    curves = frame.locator(".js-plotly-plot .scatterlayer .trace")
    notebook.wait_for("four charts", lambda: curves.count() >= 4)
    expect(frame.get_by_role("status")).to_contain_text("live")
    expect(frame.locator("dl.cs-head")).to_contain_text("simulated")
    before = step_of(conductor)
    shown = frame.locator("dl.cs-head dt", has_text="step").first.locator("xpath=../dd")
    notebook.wait_for(
        "the page to go on by itself",
        lambda: int(shown.inner_text().replace(",", "")) > before,
    )
    notebook.shoot(f"5-dashboard-{theme.lower()}")


def test_a_lost_conductor_is_said_and_can_be_started_from_the_panel(
    notebook: Any, conductor: Client, training: None
) -> None:
    panel = notebook.open_side_panel()
    before = step_of(conductor)
    conductor.shutdown()
    state = panel.get_by_role("status").first
    expect(state).to_contain_text("Conductor offline since", timeout=120_000)
    notebook.shoot("6-offline")
    panel.get_by_role("button", name="Start conductor").click()
    expect(state).to_contain_text("Conductor online", timeout=120_000)
    notebook.wait_for("the run to have gone on", lambda: step_of(conductor) > before)


def test_no_page_asked_anything_of_the_internet(strangers: list[str], notebook: Any) -> None:
    assert strangers == []
