"""Journals that an earlier version wrote still load, and mean what they meant."""

from __future__ import annotations

import json
from pathlib import Path

from cloudshift_lab.conductor.journal import Journal
from cloudshift_lab.conductor.records import RunRecord
from cloudshift_lab.core.save_policy import fixed_steps

SPEC = {
    "name": "gpt", "script": "/s.py", "target": "local", "ranks_per_node": 2,
    "checkpoint_every": 25, "seed": 7,
}  # fmt: skip
PLACE = {"cloud": "local", "region": "here", "instance_type": "this-machine"}


def job(generation: int) -> dict[str, object]:
    return {
        "run_id": "run-1", "generation": generation, "owner": "o", "placement": PLACE,
        "store_url": "file:///s", "script": "/s.py", "home": "/h", "workdir": "/w",
        "checkpoint_every": 25, "seed": 7,
    }  # fmt: skip


def attempt(generation: int) -> dict[str, object]:
    return {
        "job": job(generation), "at": 1.0, "price_micro_usd_per_h": 0, "price_source": "yours",
        "simulated": False,
    }  # fmt: skip


def test_steps_between_checkpoints_become_the_policy_and_no_step_is_deleted(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    move = {
        "type": "move", "migration_id": "mig-1", "target_job": job(2), "price_micro_usd_per_h": 0,
        "price_source": "yours", "simulated": False, "at": 2.0,
    }  # fmt: skip
    created = {"type": "created", "run_id": "run-1", "spec": SPEC, "at": 1.0, "first": attempt(1)}
    for event in (created, move, {"type": "resumed", "attempt": attempt(3)}):
        journal.append(json.dumps(event).encode())
    record = RunRecord(Journal(tmp_path / "journal.jsonl"))
    told = [record.spec, record.attempts[1].job, record.attempts[3].job,
            record.moves["mig-1"].target_job]  # fmt: skip
    assert [fixed_steps(each.save_policy) for each in told] == [25] * 4
    assert {each.keep for each in told} == {"all"}


def test_a_run_whose_environment_happens_to_hold_the_old_word_keeps_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    spec = {**SPEC, "env": {"WHAT": '"checkpoint_every"'}, "save_policy": "auto"}
    del spec["checkpoint_every"]
    journal.append(
        json.dumps(
            {"type": "created", "run_id": "run-1", "spec": spec, "at": 1.0, "first": attempt(1)}
        ).encode()
    )
    record = RunRecord(Journal(tmp_path / "journal.jsonl"))
    assert (record.spec.save_policy, record.spec.keep) == ("auto", "5")
    assert record.spec.env == {"WHAT": '"checkpoint_every"'}
