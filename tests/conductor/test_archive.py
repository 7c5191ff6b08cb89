"""Stored steps through the service: found, compared, verified, restored, branched."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from cloudshift_lab.checkpoint import Staged, TensorBox, TensorSpec, seal, write_rank
from cloudshift_lab.checkpoint.layout import pack_key
from cloudshift_lab.checkpoint.pins import pin
from cloudshift_lab.conductor.archive import parse_ref
from cloudshift_lab.conductor.service import ConductorService
from cloudshift_lab.core.asks import MoveAsk
from cloudshift_lab.core.errors import Conflict, Fenced, NotFound, Unavailable, UsageError
from cloudshift_lab.core.home import save_clouds
from cloudshift_lab.core.placement import Cloud, Clouds, Offer
from cloudshift_lab.core.run import RunSpec
from cloudshift_lab.core.steps import (
    ENDED_JOB,
    BranchAsk,
    DiffAsk,
    DiffReport,
    ForgetAsk,
    ForgetReport,
    GcAsk,
    GcReport,
    JobAsk,
    JobView,
    PinAsk,
    PinReport,
    RepairAsk,
    RepairReport,
    RestoreAsk,
    Restored,
    UnpinAsk,
    UsageAsk,
    UsageReport,
    VerifyAsk,
    VerifyReport,
)
from cloudshift_lab.core.wire import from_json
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.store import Store

SCRIPT = "print('train')\nprint('more')\n"
AWS, GCP = "aws-sim:us-east-1", "gcp-sim:us-central1"


def cloud(name: str, *regions: str, url: str) -> Cloud:
    offers = tuple(
        Offer(cloud=name, region=region, instance_type="m", price_micro_usd_per_h=1_000_000)
        for region in regions
    )
    return Cloud(name=name, title=name, store_url=url, offers=offers, simulated=True)


class Desk:
    """A service with two clouds, ticked by hand, whose runs are saved by the test."""

    def __init__(self, root: Path, two_clouds: Any) -> None:
        self.root, self.world, self.engine = root, two_clouds.world, two_clouds.engine
        self.service = ConductorService(root, self.engine, self.world)
        self.engine._open_store = self.service.places.store

    def step(self) -> None:
        self.world.clock_s += 1
        self.engine.tick()
        for tender in self.service._registry.all():
            tender.tick()

    def train(self, name: str = "gpt", **named: Any) -> str:
        spec = RunSpec(**{"name": name, "script": SCRIPT, "target": AWS, **named})
        run_id = self.service.train(spec).run_id
        self.step()
        self.step()
        return run_id

    def store(self, name: str = "aws-sim") -> Store:
        return self.service.places.store(name, self.service.places.clouds().find(name).store_url)

    def save(self, run_id: str, step: int, weights: np.ndarray, *, generation: int = 1) -> None:
        """Store and commit one real step, as the run's agent would."""
        store = self.engine.puppets[run_id, generation].store
        box = TensorBox("model/w", "float32", weights.shape, (0, 0), weights.shape)
        spec = TensorSpec("model/w", "float32", weights.shape)
        data = np.ascontiguousarray(weights).reshape(-1).view(np.uint8)
        staged = Staged(step, 0, 1, (box,), (data,), {"step": step}, (spec,))
        written = write_rank(store, run_id, staged, generation=generation)
        sealed = seal(store, run_id, step, generation=generation, world_size=1, written=[written])
        RunLog(store, run_id, self.world).commit(
            generation=generation, step=step, manifest_key=sealed.manifest_key,
            manifest_digest=sealed.manifest_digest, nonce=f"save-{step}",
        )  # fmt: skip

    def result(self, ask: JobAsk, kind: type[Any]) -> Any:
        view = self.job(ask)
        assert view.state == "done", view.error
        return from_json(bytes(view.result), kind)

    def job(self, ask: JobAsk) -> JobView:
        view = self.service.ask(ask)
        pause = threading.Event()
        for _ in range(3000):
            if view.state in ENDED_JOB:
                return view
            pause.wait(0.01)
            view = self.service.job(view.job_id)
        raise AssertionError("the job does not end")


@pytest.fixture
def desk(tmp_path: Path, two_clouds: Any) -> Any:
    name = tmp_path.name
    clouds = (
        cloud("aws-sim", "us-east-1", "us-west-2", url=f"memory://aws-{name}"),
        cloud("gcp-sim", "us-central1", url=f"memory://gcp-{name}"),
    )
    save_clouds(tmp_path, Clouds(clouds=clouds))
    made = Desk(tmp_path, two_clouds)
    yield made
    made.service.close()


@pytest.fixture
def weights() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((400, 300)).astype(np.float32)


@pytest.fixture
def saved(desk: Desk, weights: np.ndarray) -> str:
    """A run with steps 10 and 20."""
    run_id = desk.train(restart="never")
    desk.save(run_id, 10, weights)
    desk.save(run_id, 20, weights + 1)
    return run_id


@pytest.mark.parametrize(
    ("ref", "said"),
    [("gpt@40", ("gpt", 40)), ("gpt@latest", ("gpt", None)), ("run-1", ("run-1", None))],
)
def test_a_step_is_named_by_run_and_number(ref: str, said: tuple[str, int | None]) -> None:
    assert parse_ref(ref) == said


@pytest.mark.parametrize("ref", ["gpt@", "gpt@x", "@4", "gpt@4@5", "gpt@-1", "", "gpt@4.5"])
def test_anything_else_names_no_step_and_says_how(ref: str) -> None:
    with pytest.raises(UsageError, match="write RUN@STEP"):
        parse_ref(ref)


def test_history_tells_steps_with_their_cloud(desk: Desk, saved: str) -> None:
    told = desk.service.history("gpt", last=None)
    assert [line.step for line in told.lines] == [10, 20]
    assert told.run_name == "gpt"
    assert {told.places[url] for line in told.lines for url in line.urls} == {"aws-sim"}
    assert desk.service.history("gpt", last=1).num_older == 1


def test_a_run_that_has_saved_nothing_has_an_empty_history(desk: Desk) -> None:
    desk.train()
    assert desk.service.history("gpt", last=None).lines == ()
    with pytest.raises(NotFound, match=r"gpt has no checkpoint yet.*cloudshift log gpt"):
        desk.service.branch(BranchAsk("gpt"))


def test_a_missing_step_lists_those_near_it(desk: Desk, saved: str) -> None:
    with pytest.raises(NotFound, match=r"no checkpoint of step 15 .*gpt@10, gpt@20.*log gpt"):
        desk.service.ask(DiffAsk("gpt@15", "gpt@20"))
    assert desk.service.jobs() == ()


def test_two_steps_are_compared(desk: Desk, saved: str) -> None:
    report = desk.result(DiffAsk("gpt@10", f"{saved}@latest"), DiffReport)
    assert (report.before, report.after) == ("gpt@10", "gpt@20")
    (tensor,) = report.diff.tensors
    assert tensor.max_abs == pytest.approx(1.0, rel=1e-5)
    assert [leaf.path for leaf in report.diff.leaves] == ["step"]


def test_every_step_is_verified_and_a_damaged_one_found(desk: Desk, saved: str) -> None:
    report = desk.result(VerifyAsk("gpt"), VerifyReport)
    assert [(check.step, check.ok, check.place) for check in report.checks] == [
        (10, True, "aws-sim"), (20, True, "aws-sim"),
    ]  # fmt: skip
    store = desk.store()
    manifest = desk.service._archive.find("gpt@10").open().manifest
    key = pack_key(manifest.packs[0].blake3)
    store.put(key, store.get(key)[:-1] + b"?")
    ten, twenty = desk.result(VerifyAsk("gpt"), VerifyReport).checks
    assert (ten.ok, twenty.ok) == (False, True)
    assert ten.problems
    assert [check.ok for check in desk.result(VerifyAsk("gpt@20"), VerifyReport).checks] == [True]


def test_a_step_is_restored_as_an_archive_of_numpy(
    desk: Desk, saved: str, weights: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "out.npz"
    ask = RestoreAsk("gpt@20", str(path), "npz")
    told = desk.result(ask, Restored)
    assert (told.step, told.path, told.num_bytes) == ("gpt@20", str(path), path.stat().st_size)
    np.testing.assert_array_equal(np.load(path)["model/w"], weights + 1)
    with pytest.raises(UsageError, match="is there already"):
        desk.service.ask(ask)
    folder = tmp_path / "folder"
    folder.mkdir()
    told = desk.result(RestoreAsk("gpt@20", str(folder), "npz"), Restored)
    assert told.path == str(folder / "gpt-20.npz")


@pytest.mark.parametrize(
    ("to", "says"),
    [("out.npz", "relative path"), ("/nowhere/at/all/out.npz", "there is no folder")],
)
def test_a_place_that_cannot_be_is_refused_before_a_job_begins(
    desk: Desk, saved: str, to: str, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        desk.service.ask(RestoreAsk("gpt@20", to, "npz"))
    assert desk.service.jobs() == ()


def test_usage_covers_every_store_or_one_run(desk: Desk, saved: str) -> None:
    desk.train("other", target=GCP)
    report = desk.result(UsageAsk(), UsageReport)
    assert [report.places[usage.url] for usage in report.stores] == ["aws-sim", "gcp-sim"]
    assert report.names[saved] == "gpt"
    one = desk.result(UsageAsk("gpt"), UsageReport)
    (usage,) = one.stores
    assert [run.run_id for run in usage.runs] == [saved]
    assert usage.pack_bytes > 0


def test_a_collection_says_what_is_garbage_then_takes_it(desk: Desk, saved: str) -> None:
    store = desk.store()
    RunLog(store, saved, desk.world).forget(steps=[10], nonce="f")
    (dry,) = desk.result(GcAsk(is_dry_run=True), GcReport).stores
    assert (dry.deleted, dry.steps_kept) == (0, 1)
    assert dry.marked_bytes > 400 * 300
    (marked,) = desk.result(GcAsk("gpt"), GcReport).stores
    assert (marked.marked, marked.deleted) == (dry.marked, 0)
    assert marked.due_at == desk.world.now() + 3600
    (swept,) = desk.result(GcAsk(is_now=True), GcReport).stores
    assert swept.deleted == dry.marked
    assert desk.service._archive.find("gpt@20").open().tensor("model/w") is not None


def test_repair_says_what_is_lost_and_heals_from_a_cloud_the_run_was_in(
    desk: Desk, saved: str, serve_move: Callable[[str], None]
) -> None:
    serve_move(saved)
    here, there = desk.store(), desk.store("gcp-sim")
    packs = {
        step: pack_key(desk.service._archive.find(f"gpt@{step}").open().manifest.packs[0].blake3)
        for step in (10, 30)
    }
    whole = {step: (here if step == 10 else there).get(key) for step, key in packs.items()}
    here.put(packs[10], b"damaged")
    there.put(packs[30], b"damaged")
    here.put(packs[30], whole[30])
    report = desk.result(RepairAsk("gpt", is_dry_run=True), RepairReport)
    assert there.get(packs[30]) == b"damaged"
    report = desk.result(RepairAsk("gpt"), RepairReport)
    states = {(each.place, each.step): each.state for each in report.steps}
    assert states["gcp-sim", 30] == "whole"
    assert states["aws-sim", 10] == "damaged"
    assert there.get(packs[30]) == whole[30]
    assert report.healed == {"gcp-sim": (packs[30],)}
    assert packs[10] in report.bad["aws-sim"]
    assert report.newest_whole == 30


def test_a_pinned_step_is_shown_with_its_pin(desk: Desk, saved: str) -> None:
    pin(desk.store(), "best", saved, 10, world=desk.world)
    lines = desk.service.history("gpt", last=None).lines
    assert [line.pins for line in lines] == [("best",), ()]


def pins_of(desk: Desk, step: int) -> tuple[str, ...]:
    lines = desk.service.history("gpt", last=None).lines
    return next(line.pins for line in lines if line.step == step)


def test_a_step_is_pinned_under_a_name_or_one_of_its_own_and_let_go(desk: Desk, saved: str) -> None:
    made = desk.result(PinAsk("gpt@10"), PinReport)
    assert (made.step, made.is_pinned, made.places) == ("gpt@10", True, ("aws-sim",))
    assert made.names == (f"{saved}-10",)
    assert desk.result(PinAsk("gpt@10"), PinReport) == made
    desk.result(PinAsk("gpt@10", "best"), PinReport)
    desk.result(PinAsk("gpt@20", "last"), PinReport)
    assert set(pins_of(desk, 10)) == {"best", f"{saved}-10"}
    assert desk.job(PinAsk("gpt@20", "best")).error.kind == "Conflict"
    assert desk.result(UnpinAsk("gpt@10", "best"), PinReport).names == ("best",)
    gone = desk.result(UnpinAsk("gpt@10"), PinReport)
    assert (gone.names, gone.is_pinned) == ((f"{saved}-10",), False)
    assert (pins_of(desk, 10), pins_of(desk, 20)) == ((), ("last",))
    with pytest.raises(NotFound, match=r"gpt@10 has no pin.*cloudshift log gpt"):
        desk.service.ask(UnpinAsk("gpt@10"))


def test_a_branch_that_is_being_made_keeps_its_pin(desk: Desk, saved: str) -> None:
    pin(desk.store(), "branch-run-9", saved, 10, world=desk.world)
    with pytest.raises(NotFound):
        desk.service.ask(UnpinAsk("gpt@10"))
    with pytest.raises(UsageError, match="another name"):
        desk.service.ask(PinAsk("gpt@10", "branch-mine"))
    assert pins_of(desk, 10) == ("branch-run-9",)


def test_a_step_is_forgotten_unless_it_is_pinned_or_the_newest(desk: Desk, saved: str) -> None:
    with pytest.raises(Conflict, match=r"gpt@20 is the newest step.*cannot be forgotten"):
        desk.service.ask(ForgetAsk("gpt@20"))
    desk.result(PinAsk("gpt@10", "best"), PinReport)
    with pytest.raises(Conflict, match=r"pinned as best.*cloudshift unpin gpt@10"):
        desk.service.ask(ForgetAsk("gpt@10"))
    assert desk.service.jobs()[0].kind == "pin"
    desk.result(UnpinAsk("gpt@10"), PinReport)
    told = desk.result(ForgetAsk("gpt@10"), ForgetReport)
    assert (told.step, told.places, told.newest_in) == ("gpt@10", ("aws-sim",), ())
    assert [line.step for line in desk.service.history("gpt", last=None).lines] == [20]
    with pytest.raises(NotFound, match="no checkpoint of step 10"):
        desk.service.ask(ForgetAsk("gpt@10"))


def test_a_step_in_several_clouds_is_forgotten_where_it_is_not_the_newest(
    desk: Desk, saved: str, serve_move: Callable[[str], None]
) -> None:
    serve_move(saved)
    told = desk.result(ForgetAsk("gpt@10"), ForgetReport)
    assert told.places == ("aws-sim",)
    assert "gpt@10" not in [f"gpt@{n.step}" for n in desk.service.history("gpt", last=None).lines]


def test_a_finished_run_whose_newest_step_is_lost_is_given_up_by_name(
    desk: Desk, saved: str
) -> None:
    store = desk.store()
    other = desk.train("other")
    RunLog(store, saved, desk.world).release(generation=1, nonce="end")
    desk.engine.puppets[saved, 1].is_gone = True
    desk.step()
    store.delete(desk.service._archive.find("gpt@20").commit.manifest_key or "")
    failed = desk.job(GcAsk())
    assert failed.error is not None
    assert f"gc --without {saved}" in failed.error.message
    (told,) = desk.result(GcAsk(is_now=True, without=(saved,)), GcReport).stores
    assert told.given_up == (f"{saved}@20",)
    assert desk.service._archive.find("gpt@10").open().tensor("model/w") is not None
    assert other


def test_a_run_that_was_lost_is_given_up_too_and_its_agent_is_fenced(
    desk: Desk, saved: str
) -> None:
    store = desk.store()
    store.delete(desk.service._archive.find("gpt@20").commit.manifest_key or "")
    ask = GcAsk(is_now=True, without=(saved,))
    with pytest.raises(Conflict, match="gpt has not ended; stop it first"):
        desk.service.ask(ask)
    desk.engine.puppets[saved, 1].is_gone = True
    desk.step()
    assert desk.service.run("gpt").state == "lost"
    assert desk.job(GcAsk(is_dry_run=True, without=(saved,))).state == "failed"
    log = RunLog(store, saved, desk.world)
    assert log.sync().owner is not None
    (told,) = desk.result(ask, GcReport).stores
    assert told.given_up == (f"{saved}@20",)
    with pytest.raises(Fenced):
        log.commit(generation=1, step=30, manifest_key="k", manifest_digest="0" * 64, nonce="late")


def test_a_run_that_another_owner_has_is_not_released_for_it(desk: Desk, saved: str) -> None:
    store = desk.store()
    store.delete(desk.service._archive.find("gpt@20").commit.manifest_key or "")
    desk.engine.puppets[saved, 1].is_gone = True
    desk.step()
    log = RunLog(store, saved, desk.world)
    log.acquire(generation=2, owner="another conductor's", nonce="theirs")
    assert desk.job(GcAsk(is_now=True, without=(saved,))).state == "failed"
    assert log.sync().owner == "another conductor's"


def test_a_branch_starts_from_the_step_with_the_parents_script(desk: Desk, saved: str) -> None:
    view = desk.service.branch(BranchAsk("gpt@10"))
    assert (view.name, view.origin, view.placement.target) == ("gpt-10", "gpt@10", AWS)
    desk.step()
    puppet = desk.engine.puppets[view.run_id, 1]
    assert puppet.job.restore_step == 10
    assert Path(puppet.job.script).read_text().strip() == SCRIPT.strip()
    log = RunLog(puppet.store, view.run_id).sync()
    assert [commit.step for commit in log.commits] == [10]
    assert log.owner == puppet.job.owner
    assert desk.service.run("gpt-10").origin == "gpt@10"
    assert desk.service.history("gpt-10", last=None).origin == f"gpt@10 ({saved})"


def test_a_branch_takes_a_name_a_seed_and_a_place_on_the_same_store(desk: Desk, saved: str) -> None:
    ask = BranchAsk("gpt@20", name="retry", seed=7, target="aws-sim:us-west-2")
    view = desk.service.branch(ask)
    job = desk.engine.puppets[view.run_id, 1].job
    assert (view.name, job.seed, view.placement.target) == ("retry", 7, "aws-sim:us-west-2")
    assert desk.service.branch(BranchAsk("gpt@20")).name == "gpt-20"
    assert desk.service.branch(BranchAsk("gpt@20")).name == "gpt-20-2"
    with pytest.raises(UsageError, match="'retry' exists already"):
        desk.service.branch(ask)


def test_a_branch_on_another_store_says_to_branch_then_move(desk: Desk, saved: str) -> None:
    with pytest.raises(UsageError, match=r"leave out --on.*migrate --to gcp-sim"):
        desk.service.branch(BranchAsk("gpt@20", target="gcp-sim"))
    assert len(desk.service.runs()) == 1


def test_a_branch_whose_store_was_away_is_taken_up_by_the_next_conductor(
    desk: Desk, saved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cloudshift_lab.conductor import resuming

    def away(*args: Any, **named: Any) -> None:
        raise Unavailable("the store does not answer; try again")

    original = resuming.branch
    monkeypatch.setattr(resuming, "branch", away)
    with pytest.raises(Unavailable):
        desk.service.branch(BranchAsk("gpt@10"))
    monkeypatch.setattr(resuming, "branch", original)
    desk.service.close()
    desk.service = ConductorService(desk.root, desk.engine, desk.world)
    desk.step()
    desk.step()
    desk.step()
    view = desk.service.run("gpt-10")
    assert view.state == "running"
    assert [c.step for c in RunLog(desk.store(), view.run_id).sync().commits] == [10]


def test_a_branch_whose_parent_step_is_gone_has_failed_and_says_so(
    desk: Desk, saved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = desk.service._archive.find("gpt@10")
    RunLog(desk.store(), saved, desk.world).forget(steps=[10], nonce="f")
    monkeypatch.setattr(desk.service._archive, "find", lambda ref: found)
    with pytest.raises(NotFound):
        desk.service.branch(BranchAsk("gpt@10"))
    view = desk.service.run("gpt-10")
    assert view.state == "failed"
    assert "could not be started" in (view.error or "")


def test_a_moved_runs_steps_are_found_where_they_are(
    desk: Desk, saved: str, weights: np.ndarray, serve_move: Callable[[str], None]
) -> None:
    serve_move(saved)
    told = desk.service.history("gpt", last=None)
    where = {line.step: {told.places[url] for url in line.urls} for line in told.lines}
    assert where[10] == {"aws-sim"}
    assert where[30] == {"gcp-sim"}
    report = desk.result(DiffAsk("gpt@10", "gpt@30"), DiffReport)
    assert report.diff.tensors[0].max_abs == pytest.approx(2.0, rel=1e-5)
    view = desk.service.branch(BranchAsk("gpt@10"))
    assert view.placement.target == AWS


@pytest.fixture
def serve_move(desk: Desk, weights: np.ndarray) -> Callable[[str], None]:
    """Moves a run to the other cloud, where step 30 is saved."""

    def move(run_id: str) -> None:
        from cloudshift_lab.core.plan import Decision

        real_step = desk.engine.puppets[run_id, 1]
        real_step.step = 25
        view = desk.service.migrate(
            run_id, MoveAsk(to=GCP, expires_s=600, closing="copy", rehearse=0)
        )
        decision = Decision("d", view.plan.digest, "approve", "ada")
        desk.service.decide(view.migration_id, decision)
        for _ in range(60):
            desk.step()
            if desk.service.migration(view.migration_id).phase == "source_retired":
                break
        assert desk.service.migration(view.migration_id).phase == "source_retired"
        generation = desk.service.run(run_id).generation
        desk.save(run_id, 30, weights + 2, generation=generation)

    return move


def test_a_branch_goes_on_being_one_in_its_journal(desk: Desk, saved: str) -> None:
    run_id = desk.service.branch(BranchAsk("gpt@20")).run_id
    record = desk.service._registry.find(run_id).record
    assert record.created.origin is not None
    assert record.created.origin.ref == "gpt@20"
    assert msgspec.json.decode(msgspec.json.encode(record.created))["origin"]["step"] == 20
