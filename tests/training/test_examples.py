"""The example script is an ordinary one: it runs alone, over ranks, and repeats itself exactly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cloudshift_lab.checkpoint import seal, write_rank
from cloudshift_lab.checkpoint.saving import read_slot
from cloudshift_lab.core.staging import Go
from cloudshift_lab.training import examples

from .conftest import AroundUs

TINY = {
    "GPT_STEPS": "2", "GPT_LAYERS": "1", "GPT_DIM": "12", "GPT_HEADS": "2", "GPT_BLOCK": "16",
    "OMP_NUM_THREADS": "1",
}  # fmt: skip
TWO_RANKS = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def run(seed: int, *launcher: str, **knobs: str) -> str:
    script = Path(examples.__file__).parent / "gpt.py"
    done = subprocess.run(
        [sys.executable, *launcher, str(script)],
        env={
            **os.environ, **TINY, **knobs, "CLOUDSHIFT_SEED": str(seed), "PYTHONPATH": str(root()),
        },
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def root() -> Path:
    return Path(__file__).parents[2]


def test_the_example_ends_with_the_same_weights_for_the_same_seed() -> None:
    first = run(1)
    assert first.startswith("weights ")
    assert run(1) == first


def saved_by_two(around: AroundUs, step: int) -> Go:
    staged = [read_slot(around.node_dir, rank, step) for rank in range(2)]
    run_id = around.job.run_id
    written = [write_rank(around.store, run_id, rank, generation=1) for rank in staged]
    sealed = seal(around.store, run_id, step, generation=1, world_size=2, written=written)
    assert sealed.coverage == "complete"
    return Go(step, sealed.manifest_key, sealed.manifest_digest)


def test_a_sharded_run_equals_a_replicated_one_and_goes_on_with_one_rank(around: AroundUs) -> None:
    replicated = run(1, *TWO_RANKS, GPT_STEPS="4")
    assert replicated.startswith("weights ")
    assert run(1, *TWO_RANKS, GPT_SHARD="1", GPT_STEPS="4") == replicated
    around.say(go=saved_by_two(around, 4))
    assert run(2, GPT_STEPS="4") == replicated
