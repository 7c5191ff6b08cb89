"""The example script is an ordinary one: it runs alone and repeats itself exactly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cloudshift_lab.training import examples

TINY = {
    "GPT_STEPS": "2", "GPT_LAYERS": "1", "GPT_DIM": "12", "GPT_HEADS": "2", "GPT_BLOCK": "16",
    "OMP_NUM_THREADS": "1",
}  # fmt: skip


def run(seed: int) -> str:
    script = Path(examples.__file__).parent / "gpt.py"
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, **TINY, "CLOUDSHIFT_SEED": str(seed), "PYTHONPATH": str(root())},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def root() -> Path:
    return Path(__file__).parents[2]


def test_the_example_ends_with_the_same_weights_for_the_same_seed() -> None:
    first = run(1)
    assert first.startswith("weights ")
    assert run(1) == first
