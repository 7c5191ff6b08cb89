"""Loops that are left before their end, each in a process of its own: the end decides."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cloudshift_lab.checkpoint.reader import open_checkpoint
from cloudshift_lab.core.errors import NotFound

from .conftest import AroundUs

# Saves every 3 steps. The weight is 1 after step 1, 2 after step 2, and so on.
SCRIPT = """
import sys, torch
from torch import nn
from cloudshift_lab.training import Session

model = nn.Linear(1, 1, bias=False)
nn.init.zeros_(model.weight)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
session = Session(model=model, optimizer=optimizer)

def train():
    model.weight.grad = -torch.ones_like(model.weight)
    optimizer.step()

def main():
    {body}

main()
"""
LOOP = """for step in session.steps(100):
        train()
        session.step()
        if step == 7: """


def run(around: AroundUs, body: str) -> subprocess.CompletedProcess[str]:
    script = around.job_file.parent / "script.py"
    script.write_text(SCRIPT.replace("{body}", body))
    workdir = around.job_file.parent
    (workdir / "logs").mkdir()
    (workdir / "errors").mkdir()
    done = subprocess.run(
        [
            sys.executable, "-m", "cloudshift_lab.agent.bootstrap", "rank", str(workdir),
            str(script),
        ],
        env={**os.environ, "RANK": "0"}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    done.stderr += (workdir / "logs" / "rank-0.log").read_text()
    return done


def weight_after(around: AroundUs, step: int) -> float:
    go = around.save(step)
    assert go.manifest_key is not None
    opened = open_checkpoint(
        around.store, around.job.run_id, go.manifest_key, digest=go.manifest_digest
    )
    return float(opened.tensor("model/weight")[0, 0])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "body",
    [
        LOOP + "break",
        LOOP + "return",
        LOOP + "sys.exit(0)",
        LOOP + "break\n    model.weight.data.fill_(99.0)  # the best one, for the evaluation",
        "global held\n    held = session.steps(100)\n    " + LOOP.replace(
            "session.steps(100)", "held"
        ) + "break",
        "try:\n      " + LOOP.replace("\n", "\n  ") + "raise StopIteration"
        + "\n    except StopIteration: pass",
    ],
)  # fmt: skip
def test_a_loop_that_is_left_after_a_completed_step_is_saved_and_finished(
    around: AroundUs, body: str
) -> None:
    done = run(around, body)
    assert done.returncode == 0, done.stderr
    assert (around.state().state, around.state().step) == ("finished", 7)
    assert weight_after(around, 7) == 7.0
    assert [row.step for row in around.rows()] == list(range(1, 8))


@pytest.mark.parametrize("end", ["raise ValueError('loss is nan')", "sys.exit(3)"])
def test_after_an_error_the_last_checkpoint_stands(around: AroundUs, end: str) -> None:
    done = run(around, LOOP + end)
    assert done.returncode != 0
    assert around.state().state == "running"
    with pytest.raises(NotFound):
        around.save(7)
    assert weight_after(around, 3) == 3.0


def test_a_loop_left_in_the_middle_of_a_step_keeps_the_last_checkpoint_and_says_so(
    around: AroundUs,
) -> None:
    done = run(
        around,
        LOOP.replace("session.step()\n", "if step == 7: break\n        session.step()\n") + "pass",
    )
    assert done.returncode == 0
    assert "left in the middle of step 7" in done.stderr
    assert "nothing after step 3 is saved; call session.step() before `break`" in done.stderr
    assert (around.state().state, around.state().step) == ("finished", 6)
    with pytest.raises(NotFound):
        around.save(7)
    assert weight_after(around, 3) == 3.0


def test_a_loop_that_runs_to_its_end_says_nothing_at_exit(around: AroundUs) -> None:
    done = run(around, "for step in session.steps(7):\n        train()\n        session.step()")
    assert (done.returncode, done.stderr) == (0, "")
    assert weight_after(around, 7) == 7.0


@pytest.mark.parametrize(
    "change",
    ["model.weight.data.fill_(99.0)", "model.load_state_dict({'weight': torch.ones(1, 1)})"],
)
def test_weights_that_changed_after_a_loop_whose_iterator_lives_on_are_not_saved(
    around: AroundUs, change: str
) -> None:
    """As ``bar = tqdm(session.steps(n))`` keeps it."""
    body = "global held\n    held = session.steps(100)\n    "
    body += LOOP.replace("session.steps(100)", "held") + f"break\n    {change}"
    done = run(around, body)
    assert done.returncode == 0, done.stderr
    assert "step 7 is not saved: 'model/weight' was changed after it" in done.stderr
    assert around.state().state == "finished"
    with pytest.raises(NotFound):
        around.save(7)
    assert weight_after(around, 3) == 3.0


def test_a_second_loop_goes_on_after_the_last_completed_step(around: AroundUs) -> None:
    done = run(
        around,
        LOOP + "break\n    for step in session.steps(9):\n        train()\n        session.step()",
    )
    assert done.returncode == 0, done.stderr
    assert [row.step for row in around.rows()] == list(range(1, 10))
    assert weight_after(around, 9) == 9.0


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("for step in session.steps(3): train()\n    for step in session.steps(5): train()",
         "the run ended with step 3"),
        ("for step in session.steps(3): break\n    for step in session.steps(5): train()",
         "left in the middle of step 1"),
    ],
)  # fmt: skip
def test_a_second_loop_that_would_number_steps_twice_is_refused(
    around: AroundUs, body: str, why: str
) -> None:
    done = run(around, body)
    assert done.returncode != 0
    assert why in done.stderr
