"""CheckpointManager: saves beside training, restores bitwise, and says what goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file
from torch import nn

from cloudshift_lab.checkpoint import open_run
from cloudshift_lab.core.errors import (
    CloudshiftError,
    Conflict,
    Fenced,
    NotFound,
    UsageError,
)
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.store import Store, open_store
from cloudshift_lab.training import checkpoints as module
from cloudshift_lab.training.checkpoints import CheckpointManager, PerRank
from cloudshift_lab.training.interchange import export_safetensors, export_state_dict
from cloudshift_lab.training.place import Place, _held
from cloudshift_lab.training.trusted import read_item

RANKS = Path(__file__).with_name("checkpoints_ranks.py")
LOOP = Path(__file__).with_name("checkpoints_loop.py")


class Tied(nn.Module):
    """Tied weights and a buffer."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.wte = nn.Embedding(31, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 31, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.wte(x)))


class Job:
    """A small training job with everything that a state has."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = Tied()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 3)
        self.state: dict[str, Any] = {
            "model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler,
            "seen": 0, "note": {"t": (1, 2.5), 7: b"x"}, "mean": torch.zeros(3),
            "sampler": PerRank({"epoch": 1, "order": torch.arange(4)}),
        }  # fmt: skip

    def step(self, number: int) -> None:
        torch.manual_seed(number)
        self.model(torch.randint(0, 31, (8,))).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.state["seen"] = number
        self.state["mean"].add_(1)

    def everything(self) -> list[Any]:
        parts = [self.model.state_dict(), self.optimizer.state_dict(), self.scheduler.state_dict()]
        return [*parts, self.state["seen"], self.state["note"], self.state["mean"]]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


@pytest.fixture
def store(url: str) -> Store:
    return open_store(url)


@pytest.fixture
def manage(url: str) -> Iterator[Callable[..., CheckpointManager]]:
    """Makes managers, and closes them at the end whatever happened."""
    made: list[CheckpointManager] = []

    def make(run_id: str = "run", **options: Any) -> CheckpointManager:
        options.setdefault("save_policy", "1")
        made.append(CheckpointManager(url, run_id, **options))
        return made[-1]

    yield make
    for manager in made:
        try:
            manager.close()
        except CloudshiftError as error:
            print(f"at the end: {error}")


Manage = Callable[..., CheckpointManager]


@pytest.mark.parametrize("overlapped", [False, True])
def test_every_saved_step_is_the_state_of_that_moment_and_training_resumes_bitwise(
    manage: Manage, overlapped: bool
) -> None:
    job, manager = Job(), manage(keep="all")
    if overlapped:
        manager.attach(job.optimizer, job.model)
    for number in range(1, 6):
        job.step(number)
        handle = manager.save(number, job.state)
    manager.wait_until_finished()
    assert handle.staging_completion.done() and handle.upload_completion.result() == 5
    assert manager.all_steps() == [1, 2, 3, 4, 5] and manager.latest_step() == 5
    for number in (2, 5):
        expected, fresh = Job(), Job(seed=9)
        for n in range(1, number + 1):
            expected.step(n)
        assert manager.restore(number, fresh.state) == number
        assert same(fresh.everything(), expected.everything())
        assert fresh.state["sampler"].value["order"].tolist() == [0, 1, 2, 3]
        for done in (expected, fresh):
            done.step(number + 1)
        assert same(fresh.everything(), expected.everything())
    assert manager.last_restore is not None and manager.last_restore.fits


def test_the_example_of_the_docstring_trains_resumes_and_ends(url: str) -> None:
    text = (module.__doc__ or "").split("::\n")[1].split("where")[0]
    code = "\n".join(line[4:] for line in text.splitlines()).replace("s3://bucket/lab", url)
    code = code.replace('save_policy="100"', 'save_policy="2"')
    done: list[int] = []
    for total in (5, 9):
        job = Job()
        scope = {
            "CheckpointManager": CheckpointManager, "optimizer": job.optimizer, "total": total,
            "model": job.model, "state": job.state,
            "train_step": lambda job=job: (done.append(1), job.step(len(done)))[0],
        }  # fmt: skip
        exec(code, scope)
    with CheckpointManager(url, "my-run") as manager:
        assert manager.all_steps() == [2, 4, 6, 8][-5:] or manager.latest_step() == 8


def test_only_steps_that_the_policy_wants_are_saved_unless_forced(manage: Manage) -> None:
    job, manager = Job(), manage(save_policy="3")
    skipped = [manager.save(n, job.state).is_skipped for n in range(1, 7)]
    assert skipped == [True, True, False, True, True, False]
    assert not manager.save(7, job.state, force=True).is_skipped
    manager.wait_until_finished()
    assert manager.all_steps() == [3, 6, 7]


def test_a_policy_of_time_saves_again_when_its_time_has_come(manage: Manage) -> None:
    job, manager = Job(), manage(save_policy="1s")
    number = 0
    until = time.monotonic() + 60
    while len(manager.all_steps()) < 2 and time.monotonic() < until:
        number += 1
        job.step(number)
        manager.save(number, job.state)
        time.sleep(0.05)
    assert len(manager.all_steps()) >= 2 and number > len(manager.all_steps()) * 3


def test_the_keep_policy_forgets_older_steps(manage: Manage, store: Store) -> None:
    job, manager = Job(), manage(keep="2", async_=False)
    for number in range(1, 6):
        manager.save(number, job.state)
    manager.close()
    assert manage().all_steps() == [4, 5]
    with pytest.raises(NotFound):
        open_run(store, "run", 2)


def test_a_tied_weight_is_stored_once(manage: Manage, store: Store) -> None:
    manage(async_=False).save(1, Job().state)
    names = open_run(store, "run").names()
    assert "model/wte.weight" in names and "model/head.weight" not in names


def test_an_unchanged_part_is_not_stored_again(manage: Manage, store: Store) -> None:
    job, manager = Job(), manage(async_=False, keep="all")
    job.state["frozen"] = torch.randn(500_000)
    for number in (1, 2):
        job.step(number)
        manager.save(number, job.state)
    first, second = (set(open_run(store, "run", n).packs()) for n in (1, 2))
    assert first & second


# -- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "path"),
    [
        ({"a": {"b": [1, object()]}}, r"a\.b\[1\] is a object"),
        ({"a": {1, 2}}, r"a is a set"),
        ({"a/b": 1}, r"'a/b' cannot name a part"),
    ],
)
def test_what_a_checkpoint_cannot_hold_is_named_by_its_path_and_nothing_is_taken(
    manage: Manage, store: Store, state: dict[str, Any], path: str
) -> None:
    manager = manage()
    with pytest.raises(UsageError, match=path):
        manager.save(1, state)
    assert RunLog(store, "run").sync().records == ()
    manager.save(1, {"a": 1})
    with pytest.raises(UsageError, match=r"\.c\[0\] is a object"):
        manager.save(2, {"a": 1, "b": {"c": [object()]}})
    with pytest.raises(UsageError, match="b/0 is an array of Python objects"):
        manager.save(2, {"a": 1, "b": [np.array([object()])]})
    manager.save(3, {"a": 2})
    manager.wait_until_finished()
    assert manager.all_steps() == [1, 3]


def test_a_step_that_exists_is_refused(manage: Manage) -> None:
    job, manager = Job(), manage()
    manager.save(4, job.state)
    with pytest.raises(UsageError, match="has step 4 already"):
        manager.save(4, job.state)
    manager.close()
    with pytest.raises(UsageError, match="has step 4 already"):
        manage().save(3, job.state)


def test_a_second_manager_of_this_process_is_told_and_the_first_goes_on(
    manage: Manage, url: str
) -> None:
    job, manager = Job(), manage()
    manager.save(1, job.state)
    with pytest.raises(Conflict, match="another CheckpointManager of this process saves run 'run'"):
        CheckpointManager(url, "run", save_policy="1").save(2, job.state)
    manager.save(2, job.state)
    manager.wait_until_finished()
    assert manager.all_steps() == [1, 2]


def test_a_second_process_on_this_machine_is_told(url: str) -> None:
    process = subprocess.Popen([sys.executable, str(LOOP), url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        with pytest.raises(Conflict, match="another process on this machine saves run 'loop'"):
            CheckpointManager(url, "loop", save_policy="1").save(10**6, {"w": torch.zeros(1)})
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_forked_child_does_not_hold_the_run_of_its_dead_parent(url: str) -> None:
    place = Place(url, "forked", 0)
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(tell, b"x")
        time.sleep(30)
        os._exit(0)
    try:
        assert os.read(told, 1) == b"x"
        os.close(place._lock)  # as the kernel does for a parent that dies
        _held.clear()
        Place(url, "forked", 0).remove()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(told)
        os.close(tell)


def test_a_process_on_another_machine_is_told_while_the_owner_beats(
    manage: Manage, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = RunLog(store, "run")
    store.create("runs/run/claim.json", b'{"run_id":"run","owner":"run:own:elsewhere:process-1"}')
    log.acquire(generation=1, owner="run:own:elsewhere:process-1", nonce="a")
    beats = iter(range(1000))
    original = type(store).get

    def get(self: Store, key: str, **region: Any) -> bytes:
        if "/hb/" in key:
            return f"{next(beats)}".encode()
        return original(self, key, **region)

    monkeypatch.setattr(type(store), "get", get)
    with pytest.raises(Conflict, match="is being saved by another process"):
        manage().save(1, Job().state)


def test_a_run_that_an_agent_trains_is_left_alone(manage: Manage, store: Store) -> None:
    store.create("runs/run/claim.json", b'{"run_id":"run","owner":"run:start:1"}')
    RunLog(store, "run").acquire(generation=1, owner="run:start:1", nonce="a")
    with pytest.raises(Conflict, match="was started by CloudShift"):
        manage().save(1, Job().state)


def test_a_process_that_was_fenced_is_told_at_the_next_word(manage: Manage, store: Store) -> None:
    job, manager = Job(), manage()
    manager.save(1, job.state)
    manager.wait_until_finished()
    RunLog(store, "run").acquire(generation=9, owner="run:own:x:y", nonce="n")
    manager.save(2, job.state)
    with pytest.raises(Fenced, match="another process took run 'run' over"):
        manager.wait_until_finished()
    assert manager.all_steps() == [1]


def test_the_death_of_the_saver_is_told_and_the_next_save_works(manage: Manage) -> None:
    job, manager = Job(), manage()
    manager.save(1, job.state)
    manager.wait_until_finished()
    assert manager._works is not None and manager._works.saver_pid is not None
    os.kill(manager._works.saver_pid, signal.SIGSTOP)
    handle = manager.save(2, job.state)
    while not manager._works.background.is_saving:
        time.sleep(0.01)
    os.kill(manager._works.saver_pid, signal.SIGKILL)
    with pytest.raises(CloudshiftError, match="the saver was killed by SIGKILL"):
        manager.wait_until_finished()
    assert handle.upload_completion.exception() is not None
    manager.save(2, job.state)
    manager.wait_until_finished()
    assert manager.all_steps() == [1, 2]


def test_a_store_that_fails_is_told_at_the_next_save_and_the_one_after_works(
    manage: Manage, tmp_path: Path
) -> None:
    job, manager = Job(), manage()
    manager.save(1, job.state)
    manager.wait_until_finished()
    packs = tmp_path / "store" / "packs"
    hidden = packs.rename(packs.with_name("hidden"))
    packs.write_text("in the way")
    handle = manager.save(2, Job(seed=5).state)
    assert isinstance(handle.upload_completion.exception(), CloudshiftError)
    packs.unlink()
    hidden.rename(packs)
    with pytest.raises(CloudshiftError):
        manager.save(3, job.state)
    manager.save(3, job.state)
    manager.wait_until_finished()
    assert manager.all_steps() == [1, 3]


def test_closing_twice_and_without_any_save_is_harmless(manage: Manage, store: Store) -> None:
    manager = manage()
    manager.close()
    manager.save(1, Job().state)
    manager.close()
    manager.close()
    assert RunLog(store, "run").sync().owner is None
    assert manager.all_steps() == [1]


def test_attach_belongs_before_the_first_save_and_needs_an_optimizer(manage: Manage) -> None:
    job, manager = Job(), manage()
    with pytest.raises(UsageError, match="before the first save"):
        manager.attach(job.model)
    manager.save(1, job.state)
    with pytest.raises(UsageError, match="before the first save"):
        manager.attach(job.optimizer)


def test_the_best_steps_are_kept_by_the_metric_given_with_each(manage: Manage) -> None:
    job, manager = Job(), manage(keep="1,best=2")
    for step, loss in enumerate((5.0, 1.0, 4.0, 2.0, 3.0), start=1):
        job.step(step)
        manager.save(step, job.state, metric=loss)
        manager.wait_until_finished()
    manager.close()
    assert manager.all_steps() == [2, 4, 5]
    with pytest.raises(UsageError, match="pass metric="):
        manager.save(6, job.state)


def test_the_best_steps_are_known_to_the_process_that_goes_on(manage: Manage) -> None:
    job = Job()
    for number, metrics in enumerate(((1.0, 5.0), (3.0, 2.0))):
        manager = manage(keep="1,best=1")
        for step, loss in enumerate(metrics, start=1 + 2 * number):
            job.step(step)
            manager.save(step, job.state, metric=loss)
            manager.wait_until_finished()
        manager.close()
    assert manager.all_steps() == [1, 4]


def test_whether_to_save_can_be_asked_first_and_asking_changes_nothing(manage: Manage) -> None:
    job, manager = Job(), manage(save_policy="3", keep="all")
    for step in range(1, 8):
        job.step(step)
        answers = {manager.should_save(step) for _ in range(3)}
        assert answers == {step % 3 == 0}
        if manager.should_save(step):
            manager.save(step, job.state)
            assert not manager.should_save(step)
    assert not manager.should_save(3)
    manager.save(7, job.state, force=True)
    manager.wait_until_finished()
    assert manager.all_steps() == [3, 6, 7]
    fresh = manage(save_policy="3")
    manager.close()
    assert fresh.restore(6, Job(seed=4).state) == 6
    assert not fresh.should_save(6) and fresh.should_save(9)


@pytest.mark.parametrize("policy", ["1s", "auto"])
def test_a_policy_of_time_is_asked_once_for_a_step(
    manage: Manage, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    monkeypatch.setattr("cloudshift_lab.core.save_policy.FIRST_SAVE_S", 1.0)
    job, manager = Job(), manage(save_policy=policy)
    step = 1
    while not manager.should_save(step):
        assert manager.save(step, job.state).is_skipped
        step += 1
        time.sleep(0.02)
    assert step > 2
    assert manager.should_save(step) and not manager.save(step, job.state).is_skipped
    assert not manager.should_save(step) and not manager.should_save(step + 1)


def test_a_step_is_deleted_but_never_the_newest(manage: Manage) -> None:
    job, manager = Job(), manage(keep="all")
    for step in (1, 2, 3):
        job.step(step)
        manager.save(step, job.state)
        manager.wait_until_finished()
    manager.delete(2)
    assert manager.all_steps() == [1, 3]
    with pytest.raises(UsageError, match="newest"):
        manager.delete(3)
    with pytest.raises(NotFound, match="no step 2"):
        manager.delete(2)
    job.step(4)
    manager.save(4, job.state)
    manager.wait_until_finished()
    assert manager.all_steps() == [1, 3, 4]


def test_a_policy_that_nobody_understands_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="no checkpoint interval"):
        CheckpointManager(url, "run", save_policy="often")


def test_a_torn_copy_is_told_to_whoever_waits_for_the_upload(manage: Manage) -> None:
    job, manager = Job(), manage()
    manager.attach(job.optimizer, job.model)
    job.step(1)
    handle = manager.save(1, job.state)
    with torch.no_grad():
        job.model.wte.weight.add_(1)
    with pytest.raises(CloudshiftError, match=r"changed while it was copied; save again"):
        handle.upload_completion.result(timeout=30)
    with pytest.raises(CloudshiftError):
        manager.save(1, job.state)
    assert manager.save(1, job.state).upload_completion.result(timeout=30) == 1


def test_a_save_cannot_be_cancelled_and_the_next_one_works(manage: Manage) -> None:
    job, manager = Job(), manage()
    handle = manager.save(1, job.state)
    assert not handle.upload_completion.cancel() and not handle.staging_completion.cancel()
    manager.save(2, job.state)
    manager.wait_until_finished()
    assert manager.all_steps() == [1, 2]


# -- restore --------------------------------------------------------------------------------------


def test_the_latest_of_nothing_leaves_everything_as_it_is(manage: Manage) -> None:
    job, untouched = Job(), Job()
    assert manage().restore("latest", job.state) == -1
    assert same(job.everything(), untouched.everything())
    with pytest.raises(NotFound):
        manage("other").restore(3, job.state)


def test_a_model_that_does_not_fit_is_named_and_strict_false_takes_the_rest(
    manage: Manage,
) -> None:
    manager = manage(async_=False)
    manager.save(1, {"model": nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5)), "n": 1})
    other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 6), nn.Linear(1, 1))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(UsageError) as caught:
        manager.restore(1, {"model": other, "m": 2})
    for name in ("model/2.weight", "model/1.weight (saved float32[5, 4], built float32[6, 4])"):
        assert name in caught.value.message
    assert same(dict(other.state_dict()), before)
    assert manager.restore(1, {"model": other}, strict=False) == 1
    report = manager.last_restore
    assert report is not None and report.unexpected == ("n",)
    assert set(report.missing) == {"model/2.weight", "model/2.bias"}
    assert not torch.equal(other[0].weight, before["0.weight"])
    assert torch.equal(other[1].weight, before["1.weight"])


def test_weights_saved_apart_do_not_vanish_in_a_model_that_ties_them(manage: Manage) -> None:
    apart = Tied()
    apart.head.weight = nn.Parameter(torch.ones(31, 8))
    manager = manage(async_=False)
    manager.save(1, {"model": apart})
    tied = Tied()
    with pytest.raises(UsageError, match=r"saved apart from model/wte\.weight"):
        manager.restore(1, {"model": tied})
    assert manager.restore(1, {"model": tied}, strict=False) == 1
    assert torch.equal(tied.head.weight, apart.wte.weight)


def test_a_step_of_another_kind_is_refused_in_words(manage: Manage, url: str) -> None:
    import torch.distributed.checkpoint as dcp

    from cloudshift_lab.training.dcp import CasStorageWriter

    with pytest.warns(UserWarning, match="torch.distributed is disabled"):
        dcp.save({"a": torch.ones(1)}, storage_writer=CasStorageWriter(url, "run"))
    with pytest.raises(CloudshiftError, match="was not saved by a CheckpointManager"):
        manage().restore("latest", {"a": torch.zeros(1)})


def test_a_step_goes_out_as_plain_pytorch_knows_it(
    manage: Manage, url: str, tmp_path: Path
) -> None:
    job, manager = Job(), manage(async_=False)
    job.step(1)
    manager.save(1, job.state)
    export_state_dict(url, "run", tmp_path / "state.pt")
    found = read_item((tmp_path / "state.pt").read_bytes(), "state")
    fresh = Job(seed=3)
    fresh.model.load_state_dict(found["model"])
    fresh.optimizer.load_state_dict(found["optimizer"])
    assert same(fresh.everything()[:2], job.everything()[:2])
    assert found["note"] == {"t": (1, 2.5), 7: b"x"} and "sampler" not in found
    export_safetensors(url, "run", tmp_path / "m.safetensors")
    assert same(load_file(tmp_path / "m.safetensors"), dict(job.model.state_dict()))


# -- whole processes ------------------------------------------------------------------------------


def test_a_loop_that_is_interrupted_ends_cleanly_and_its_last_save_counts(
    url: str, store: Store
) -> None:
    process = subprocess.Popen(
        [sys.executable, str(LOOP), url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 4"):
            break
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode != 0 and "KeyboardInterrupt" in complaint
    state = RunLog(store, "loop").sync()
    assert state.owner is None
    assert state.last_commit is not None and (state.last_commit.step or 0) >= 4
    which = blake3(f"{store.url}\nloop".encode()).hexdigest()[:16]
    assert not Path(f"/dev/shm/cloudshift-{os.getuid()}-save-{which}-0").exists()


def test_a_run_whose_process_was_killed_is_taken_over_at_once_on_the_same_machine(
    url: str, manage: Manage
) -> None:
    process = subprocess.Popen([sys.executable, str(LOOP), url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 3"):
            break
    process.kill()
    process.wait()
    process.stdout.close()
    job, manager = Job(), manage("loop")
    found = manager.restore("latest", {"w": torch.zeros(10), "n": 0})
    assert found >= 1
    manager.save(found + 1000, job.state)
    manager.wait_until_finished()
    assert manager.latest_step() == found + 1000


def ranks(count: int, *arguments: str) -> str:
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}",
            "--standalone", str(RANKS), *arguments,
        ],
        capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout


def test_fsdp2_saves_at_three_ranks_and_restores_at_two_and_one_bitwise(
    url: str, store: Store
) -> None:
    ranks(3, "save", "fsdp2", url)
    assert open_run(store, "ranks").world_size == 3
    ranks(2, "check", "fsdp2", url)
    ranks(1, "check", "plain", url)


def test_ddp_ranks_agree_on_a_policy_of_time_and_share_the_state_out(
    url: str, store: Store
) -> None:
    ranks(2, "timed", "ddp", url)
    found = open_run(store, "ranks")
    assert found.coverage == "complete" and found.world_size == 2


def test_ranks_with_different_states_are_told(url: str) -> None:
    assert "PerRank" in ranks(2, "odd", "ddp", url)


def test_ranks_stay_in_step_when_one_of_them_hears_of_a_failure_and_goes_on(url: str) -> None:
    ranks(2, "stumble", "ddp", url)


def test_what_one_rank_refuses_no_rank_saves_and_each_says_why(url: str) -> None:
    ranks(2, "refused", "ddp", url)


def test_ranks_that_ask_before_they_save_hear_the_same(url: str) -> None:
    ranks(2, "asked", "ddp", url)
