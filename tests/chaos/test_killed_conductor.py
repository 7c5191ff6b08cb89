"""The real daemon, real agents, real torchrun ranks; the daemon is killed in every phase.

The move's journal is watched instead of the daemon: a fast phase cannot pass unseen.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import TypeVar

import pytest

from cloudshift_lab.conductor import discovery
from cloudshift_lab.conductor.client import Client
from cloudshift_lab.core.home import save_clouds
from cloudshift_lab.core.placement import Cloud, Clouds, Offer
from cloudshift_lab.core.plan import FINAL_PHASES, ClosingKind, Decision, MigrationView
from cloudshift_lab.core.run import FINAL_STATES, RunSpec, RunView
from cloudshift_lab.engines.process import has_ended

T = TypeVar("T")
HANGS_AFTER_S = 240.0


def wait_for(look: Callable[[], T | None], what: str) -> T:
    end = time.monotonic() + HANGS_AFTER_S
    while (found := look()) is None:
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.1)
    return found


def place(root: Path, name: str, region: str) -> Cloud:
    offer = Offer(
        cloud=name, region=region, instance_type="m", price_micro_usd_per_h=1_000_000,
        simulated=True,
    )  # fmt: skip
    url = f"file://{root}/{name}"
    return Cloud(name=name, title=name, store_url=url, offers=(offer,), simulated=True)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    clouds = (place(tmp_path, "here", "a"), place(tmp_path, "there", "b"))
    save_clouds(home, Clouds(clouds=clouds))
    made = Client.connect(home)
    yield made
    for run in made.runs():
        if run.state not in FINAL_STATES:
            made.stop(run.run_id)
            wait_for(lambda run=run: ended(made, run.run_id), "the run's end")  # type: ignore[misc]
    daemon = discovery.find_daemon(home)
    made.shutdown()
    if daemon is not None:
        wait_for(lambda: has_ended(daemon.pid, daemon.start_time) or None, "the conductor's end")


def ended(client: Client, run: str) -> RunView | None:
    view = client.run(run)
    return view if view.state in FINAL_STATES else None


def reached(client: Client, run: str, step: int) -> RunView | None:
    view = client.run(run)
    assert view.state not in FINAL_STATES, (view.state, view.error, view.traceback)
    return view if view.step is not None and view.step >= step else None


def outcomes(home: Path, move: MigrationView) -> list[str]:
    """The events in the move's journal; the outcome of an effect goes by its name."""
    path = home / "runs" / move.run_id / "migrations" / f"{move.migration_id}.jsonl"
    whole = [line for line in path.read_bytes().split(b"\n")[:-1] if line.endswith(b"}")]
    events = [json.loads(line[line.index(b"{") :])["event"] for line in whole]
    return [event.get("effect", event["type"]) for event in events]


def approval(view: MigrationView) -> Decision:
    digest = view.plan.digest
    return Decision(f"chaos-{digest[:8]}", plan_digest=digest, verdict="approve", by="chaos")


def kill_after_every_outcome(client: Client, home: Path, move: MigrationView) -> list[str]:
    """Follow a move to its end; kill the daemon whenever its journal has grown by an outcome."""
    known, killed = len(outcomes(home, move)), []
    end = time.monotonic() + 2 * HANGS_AFTER_S
    while (view := client.migration(move.migration_id)).phase not in FINAL_PHASES:
        if view.phase == "asking":  # measured slower than planned, on a machine that does more
            client.decide(move.migration_id, approval(view))
        daemon = discovery.find_daemon(home)
        while daemon is not None and len(outcomes(home, move)) == known:
            assert time.monotonic() < end, f"waited in vain for the move's end, after {killed}"
            time.sleep(0.001)
        found = outcomes(home, move)
        if daemon is not None:
            os.kill(daemon.pid, signal.SIGKILL)
            killed += found[known:]
        known = len(found)
    return killed


COPY = {"provision", "precopy", "drain", "copy", "verify", "commit", "go"}
REPLAY = {"provision", "precopy", "rehearse", "drain", "catch_up", "commit", "go"}


@pytest.mark.parametrize(
    ("closing", "rehearse", "effects"), [("copy", 0, COPY), ("replay", 3, REPLAY)]
)
def test_a_move_whose_conductor_is_killed_in_every_phase_loses_no_step(
    client: Client, tmp_path: Path, closing: ClosingKind, rehearse: int, effects: set[str]
) -> None:
    script = resources.files("cloudshift_lab.training.examples") / "gpt.py"
    run = client.train(
        RunSpec(
            name="chaos",
            script=script.read_text(),
            target="here:a",
            ranks_per_node=1,
            save_policy="15",
            env={"GPT_STEPS": "100000"},
        )
    )
    wait_for(lambda: reached(client, run.run_id, 5), "the first steps")
    move = client.migrate(run.run_id, "there:b", closing=closing, rehearse=rehearse)
    decision = approval(move)
    client.decide(move.migration_id, decision)
    killed_after = kill_after_every_outcome(client, tmp_path / "home", move)
    ended_as = client.migration(move.migration_id)
    assert ended_as.phase == "source_retired", ended_as.error
    assert effects <= set(killed_after)
    sealed = client.migration(move.migration_id).sealed_step
    assert sealed is not None
    moved = wait_for(lambda: reached(client, run.run_id, sealed + 3), "steps at the new place")
    assert (moved.placement.target, moved.generation) == ("there:b", 2)
    assert client.decide(move.migration_id, decision).phase == "source_retired"
    client.stop(run.run_id)
    over = wait_for(lambda: ended(client, run.run_id), "the run's end")
    assert (over.state, over.error) == ("stopped", None)
    steps = wait_for(lambda: whole_series(client, run.run_id, over.step), "all telemetry")
    assert list(steps) == list(range(steps[0], steps[-1] + 1))


def whole_series(client: Client, run: str, last_step: int | None) -> tuple[int, ...] | None:
    """The steps of the run's curve once the last one has arrived."""
    steps = client.series(run, points=5000).step
    return steps if steps and steps[-1] == last_step else None
