"""The real daemon and a real run, whose rank is killed, then its agent: it goes on by itself."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from cloudshift_lab.conductor import discovery
from cloudshift_lab.conductor.client import Client
from cloudshift_lab.core.run import FINAL_STATES, RunSpec, RunView
from cloudshift_lab.engines.local import LocalEngine
from cloudshift_lab.engines.process import has_ended

T = TypeVar("T")
HANGS_AFTER_S = 180.0
SCRIPT = """
import os
import time
import torch
from torch import nn
from cloudshift_lab.training import Session

print("rank is", os.getpid(), flush=True)
torch.manual_seed(0)
model = nn.Linear(32, 32)
optimizer = torch.optim.AdamW(model.parameters())
session = Session(model=model, optimizer=optimizer)
for step in session.steps(1_000_000):
    loss = model(torch.full((4, 32), float(step % 7))).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    time.sleep(0.02)
    session.step(loss=loss, tokens=4)
"""


def wait_for(look: Callable[[], T | None], what: str) -> T:
    end = time.monotonic() + HANGS_AFTER_S
    while (found := look()) is None:
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.1)
    return found


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    home = tmp_path / "home"
    made = Client.connect(home)
    yield made
    for run in made.runs():
        if run.state not in FINAL_STATES:
            made.stop(run.run_id)
            wait_for(lambda run=run: _ended(made, run.run_id), "the end")  # type: ignore[misc]
    daemon = discovery.find_daemon(home)
    made.shutdown()
    if daemon is not None:
        wait_for(lambda: has_ended(daemon.pid, daemon.start_time) or None, "the conductor's end")


def _ended(client: Client, run: str) -> RunView | None:
    view = client.run(run)
    return view if view.state in FINAL_STATES else None


def rank_pid(client: Client, run: str) -> int:
    """Of the newest rank that has begun."""
    told = [line for line in client.logs(run, rank=0).splitlines() if "rank is" in line]
    return int(told[-1].split()[-1])


def test_a_run_whose_rank_then_agent_is_killed_goes_on_from_its_newest_step(
    client: Client, tmp_path: Path
) -> None:
    spec = RunSpec(name="t", script=SCRIPT, ranks_per_node=1, save_policy="10")
    run_id = client.train(spec).run_id

    def seen(test: Callable[[RunView], bool], what: str) -> RunView:
        def look() -> RunView | None:
            view = client.run(run_id)
            assert view.state not in FINAL_STATES, (view.error, view.traceback)
            return view if test(view) else None

        return wait_for(look, what)

    before = seen(lambda view: (view.checkpoint_step or 0) >= 20, "a saved step")
    os.kill(rank_pid(client, run_id), signal.SIGKILL)
    kept = before.checkpoint_step or 0
    before = seen(
        lambda view: view.state == "running" and (view.checkpoint_step or 0) >= kept + 30,
        "steps of the next ranks",
    )
    assert (before.generation, before.restarts) == (1, 0), "its agent started them again"
    agent = LocalEngine(tmp_path / "home").find(run_id, 1)
    assert agent is not None
    os.kill(agent.pid, signal.SIGKILL)
    saved = before.checkpoint_step or 0
    after = seen(
        lambda view: view.generation == 2 and (view.checkpoint_step or 0) > saved + 20,
        "steps of its next attempt",
    )
    assert (after.state, after.restarts) == ("running", 1)
    assert after.restarted.startswith("started again by itself from step ")
    since = int(after.restarted.split("step ")[1].split(":")[0])
    assert since >= saved
    curve = client.series(run_id, points=5000)
    missing = sorted(set(range(1, curve.step[-1] + 1)) - set(curve.step))
    assert all(kept < step <= since for step in missing), "what the agent had not passed on"
    assert missing == list(range(missing[0], missing[-1] + 1)) if missing else True, missing
