"""Git for training state on a real run: a real daemon, real ranks, every verb as it is typed."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from safetensors.numpy import load_file

from cloudshift_lab.conductor import discovery
from cloudshift_lab.conductor.client import Client
from cloudshift_lab.core.home import save_clouds
from cloudshift_lab.core.placement import Cloud, Clouds, Offer
from cloudshift_lab.core.plan import FINAL_PHASES
from cloudshift_lab.core.run import FINAL_STATES
from cloudshift_lab.engines.process import has_ended
from cloudshift_lab.lab.cli import main

T = TypeVar("T")
HANGS_AFTER_S = 240.0
SCRIPT = Path(__file__).parents[1] / "ui" / "tiny_training.py"


def wait_for(look: Callable[[], T | None], what: str) -> T:
    end = time.monotonic() + HANGS_AFTER_S
    while (found := look()) is None:
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.2)
    return found


def call(*words: str) -> str:
    """What a terminal would show; the verb must succeed."""
    out, err = io.StringIO(), io.StringIO()
    status = main(words, out=out, err=err)
    assert status == 0, err.getvalue()
    return out.getvalue()


def data(*words: str) -> Any:
    return json.loads(call(*words, "--json"))


def place(root: Path, name: str, region: str) -> Cloud:
    offer = Offer(
        cloud=name, region=region, instance_type="m", price_micro_usd_per_h=1_000_000,
        simulated=True,
    )  # fmt: skip
    return Cloud(
        name=name, title=name, store_url=f"file://{root}/{name}", offers=(offer,), simulated=True
    )


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("CLOUDSHIFT_HOME", str(home))
    monkeypatch.delitem(os.environ, "PYTHONWARNINGS", raising=False)
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


def ended(client: Client, run: str) -> str | None:
    state = client.run(run).state
    return state if state in FINAL_STATES else None


def saved_steps(client: Client, run: str) -> list[int]:
    view = client.run(run)
    assert view.state not in ("failed", "lost"), (view.error, view.traceback)
    return [line.step for line in client.history(run).lines]


def test_a_runs_steps_are_listed_compared_branched_restored_and_cleaned_up(
    client: Client, tmp_path: Path
) -> None:
    call("train", str(SCRIPT), "--name", "tiny", "--on", "here", "--checkpoint-every", "40",
         "--keep", "all")  # fmt: skip
    wait_for(lambda: len(saved_steps(client, "tiny")) >= 3 or None, "three checkpoints")
    call("stop", "tiny")
    wait_for(lambda: ended(client, "tiny"), "the end of the run")

    log = data("log", "tiny")
    first, last = log["lines"][0]["step"], log["lines"][-1]["step"]
    assert {line["coverage"] for line in log["lines"]} == {"complete"}
    assert "here" in call("log", "tiny")

    diff = data("diff", f"tiny@{first}", f"{last}")["diff"]
    fates = {each["name"]: each["fate"] for each in diff["tensors"]}
    assert fates["model/head.weight"] == "changed"
    assert diff["read_bytes"] <= 2 * diff["total_bytes"]

    path = tmp_path / "tiny.safetensors"
    call("restore", f"tiny@{first}", "--to", str(path))
    call("restore", f"tiny@{first}", "--to", str(tmp_path / "tiny.npz"))
    weights, everything = load_file(path), np.load(tmp_path / "tiny.npz")
    np.testing.assert_array_equal(weights["head.weight"], everything["model/head.weight"])
    assert "optimizer/head.weight/exp_avg" in everything

    before = set((tmp_path / "here" / "packs").rglob("*.pack"))
    call("branch", f"tiny@{first}", "--name", "again")
    assert client.run("again").origin == f"tiny@{first}"
    wait_for(lambda: len(saved_steps(client, "again")) >= 2 or None, "the branch's own save")
    again = data("log", "again")["lines"]
    assert (again[0]["step"], again[0]["new_bytes"]) == (first, 0)
    assert again[1]["step"] > first
    assert before <= set((tmp_path / "here" / "packs").rglob("*.pack"))

    assert all(check["ok"] for check in data("verify", "tiny")["checks"])
    assert data("pin", f"tiny@{first}", "--name", "begin")["names"] == ["begin"]
    assert data("log", "tiny", "--last", "0")["lines"][0]["pins"] == ["begin"]
    assert "no longer pinned" in call("unpin", f"tiny@{first}")
    assert "is forgotten in here" in call("forget", f"tiny@{first}")
    assert first not in [line["step"] for line in data("log", "tiny", "--last", "0")["lines"]]
    assert all(check["ok"] for check in data("verify", "again")["checks"])
    usage = data("du")["stores"][0]
    assert {run["run_id"] for run in usage["runs"]} >= {"run-1", "run-2"}
    assert data("gc", "--dry-run")["stores"][0]["deleted"] == 0
    assert "nothing is damaged" in call("repair", "tiny")
    assert "repair tiny" in call("jobs")


def test_a_runs_history_follows_it_to_another_cloud_at_the_price_that_was_told(
    client: Client,
) -> None:
    call("train", str(SCRIPT), "--name", "tiny", "--on", "here", "--checkpoint-every", "40",
         "--keep", "all")  # fmt: skip
    wait_for(lambda: len(saved_steps(client, "tiny")) >= 2 or None, "two checkpoints")
    plan = call("migrate", "tiny", "--to", "there", "--closing", "copy", "--rehearse", "0", "--yes")
    assert "To carry about" in plan
    assert "measured on this run (steps" in plan
    (move,) = client.migrations()
    wait_for(
        lambda: client.migration(move.migration_id).phase in FINAL_PHASES or None, "the move's end"
    )
    done = client.migration(move.migration_id)
    assert done.phase == "source_retired", done.error
    assert 0.4 < done.bytes_moved / done.plan.bill.transfer_bytes < 2.5
    sealed = done.sealed_step
    wait_for(lambda: saved_steps(client, "tiny")[-1] > (sealed or 0) or None, "a save over there")
    log = data("log", "tiny")
    where = {line["step"]: {log["places"][url] for url in line["urls"]} for line in log["lines"]}
    steps = sorted(where)
    assert where[steps[0]] == {"here"}
    assert where[sealed] == {"here", "there"}
    assert where[steps[-1]] == {"there"}
    text = call("diff", f"tiny@{steps[0]}", "latest")
    assert "model" in text
