"""The verbs about stored steps, on a conductor whose runs and jobs are a script."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from cloudshift_lab.core.errors import CloudshiftError, NotFound
from cloudshift_lab.core.steps import (
    BranchAsk,
    Collected,
    Diff,
    DiffAsk,
    DiffReport,
    ForgetAsk,
    ForgetReport,
    GcAsk,
    GcReport,
    History,
    JobView,
    LeafDiff,
    PinAsk,
    PinReport,
    RepairAsk,
    RepairReport,
    RestoreAsk,
    Restored,
    RunUsage,
    StepCheck,
    StepLine,
    StepRepair,
    StepUsage,
    TensorDiff,
    UnpinAsk,
    Usage,
    UsageAsk,
    UsageReport,
    VerifyAsk,
    VerifyReport,
)
from cloudshift_lab.core.views import Problem
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.lab import stored
from cloudshift_lab.lab.cli import main
from cloudshift_lab.lab.desk import Desk
from cloudshift_lab.lab.render import steps

NOW = 1_764_000_000.0
URL = "s3://bucket"


def line(step: int, **changes: Any) -> StepLine:
    made = StepLine(
        step=step, at=NOW - 3600 + step, generation=1, urls=(URL,), manifest_key="k",
        manifest_digest="d", world_size=2, coverage="complete", raw_bytes=61_200_000,
        stored_bytes=44_100_000, new_bytes=1_000_000,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def tensor(name: str, **changes: Any) -> TensorDiff:
    made = TensorDiff(
        name=name, dtype="float32", shape=(4, 3), fate="changed", elements=12, changed=6,
        norm=0.5, relative=0.01, max_abs=0.25,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


DIFF = DiffReport(
    "first@100", "first@120",
    Diff(
        before=100, after=120, world_sizes=(2, 4),
        tensors=(
            tensor("model/a", is_bound=True),
            tensor("model/b", relative=0.2, non_finite=3),
            tensor("optimizer/a/exp_avg", relative=1.5),
            tensor("model/head", fate="replaced", note="was float32 [4, 2]"),
            tensor("model/same", fate="same", changed=0, relative=None),
        ),
        leaves=(LeafDiff("optimizer/groups[0]/lr", "0.001", "0.0005"),), more_leaves=2,
        total_bytes=61_200_000, shared_bytes=30_600_000, read_bytes=30_600_000,
    ),
)  # fmt: skip
RESULTS: dict[type, object] = {
    DiffAsk: DIFF,
    VerifyAsk: VerifyReport(
        run_id="run-1", run_name="first", level=2,
        checks=(
            StepCheck(step=100, place="aws-sim", ok=True, objects=9, num_bytes=13_000_000),
            StepCheck(step=120, place="aws-sim", ok=False, objects=9, num_bytes=13_000_000,
                      problems=("a pack has 0 of 8 bytes; copy it again",)),
        ),
    ),
    UsageAsk: UsageReport(
        (
            Usage(
                url=URL, raw_bytes=100, pack_bytes=70, loose_packs=2, loose_bytes=5_000_000,
                runs=(
                    RunUsage(run_id="run-1", steps=(StepUsage(100, 100, 70, 20),), raw_bytes=100,
                             pack_bytes=70, only_here_bytes=60),
                ),
            ),
        ),
        {"run-1": "first"}, {URL: "aws-sim"},
    ),
    GcAsk: GcReport(
        stores=(
            Collected(url=URL, runs=1, steps_kept=5, marked=3, marked_bytes=7_000_000,
                      due_at=NOW + 3600),
        ),
        places={URL: "aws-sim"}, is_dry_run=False, as_of=NOW,
    ),
    RepairAsk: RepairReport(
        run_id="run-1", run_name="first", is_dry_run=False, num_bytes=13_000_000,
        steps=(
            StepRepair(place="aws-sim", step=120, state="damaged", num_tensors=9,
                       lost=tuple(f"model/{n}" for n in range(7))),
            StepRepair(place="aws-sim", step=100, state="whole", num_tensors=9),
        ),
        healed={"aws-sim": ("a", "b")}, bad={"aws-sim": ("c",)},
    ),
    PinAsk: PinReport(step="first@100", is_pinned=True, names=("best",), places=("aws-sim",)),
    UnpinAsk: PinReport(step="first@100", is_pinned=False, names=("best",), places=("aws-sim",)),
    ForgetAsk: ForgetReport(step="first@100", places=("aws-sim",), newest_in=("gcp-sim",)),
    RestoreAsk: Restored(step="first@120", format="npz", path="/data/o.npz", num_bytes=9_300_000),
}  # fmt: skip


class Jobs:
    """What a scripted service answers about steps and jobs; remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.branches: list[BranchAsk] = []
        self.cancelled: list[str] = []
        self.polls = 0
        self.ends_after = 1
        self.error: Problem | None = None
        self.lines = (line(100, pins=("best",)), line(120, is_final=True))
        self.view = JobView(
            job_id="job-1", kind="diff", title="diff first@100 first@120", state="running",
            started_at=NOW, done=25, total=100, as_of=NOW + 3,
        )  # fmt: skip

    def history(self, run: str, *, last: int | None) -> History:
        return History(
            run_id=run, run_name="first", lines=self.lines[-(last or 99) :], num_older=3,
            origin="base@40 (run-0)", places={URL: "aws-sim", "gs://old": "gcp-sim"},
            unreachable={"gs://old": "it does not answer; try again later"}, as_of=NOW,
        )  # fmt: skip

    def ask(self, ask: Any) -> JobView:
        self.asked.append(ask)
        return self.view

    def job(self, job_id: str) -> JobView:
        if job_id != self.view.job_id:
            raise NotFound(f"no job called '{job_id}'")
        self.polls += 1
        if self.polls < self.ends_after:
            return self.view
        ask = self.asked[-1] if self.asked else DiffAsk("a", "b")
        ended = {"state": "failed", "error": self.error} if self.error else {
            "state": "done", "result": msgspec.Raw(to_json(RESULTS[type(ask)]))}  # fmt: skip
        return msgspec.structs.replace(self.view, ended_at=NOW + 4, **ended)

    def jobs(self) -> tuple[JobView, ...]:
        return (self.view,)

    def cancel_job(self, job_id: str) -> JobView:
        self.cancelled.append(job_id)
        return self.view


@pytest.fixture
def jobs(service: Any, make_run: Callable[..., Any]) -> Jobs:
    """The service answers about steps and jobs too, and has one run."""
    made = Jobs()
    for name in ("history", "ask", "job", "jobs", "cancel_job"):
        setattr(service, name, getattr(made, name))

    def branch(ask: BranchAsk) -> Any:
        made.branches.append(ask)
        return make_run(name="first-120", run_id="run-2", state="starting", origin="first@120")

    service.branch = branch
    service.views = [make_run()]
    return made


def call(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    status = main(words, out=out, err=err)
    return status, out.getvalue(), err.getvalue()


def test_log_lists_steps_newest_first_with_columns_that_line_up(jobs: Jobs) -> None:
    status, out, _ = call("log")
    lines = out.splitlines()
    assert status == 0
    assert lines[0] == "Steps of first (run-1)"
    head, newest, older = lines[1:4]
    assert newest.split()[0] == "120"
    assert older.split()[0] == "100"
    assert head.index("stored") + len("stored") == newest.index("44.1 MB") + len("44.1 MB")
    assert "last save of its attempt" in newest
    assert "pinned: best" in older
    assert "branched from base@40" in out
    assert "✗ steps in gcp-sim are not shown: it does not answer" in out
    assert "next: cloudshift diff first@100 first@120" in out


def test_log_as_json_and_with_a_damaged_step(jobs: Jobs) -> None:
    assert json.loads(call("log", "--json")[1])["lines"][1]["step"] == 120
    jobs.lines = (line(100, problem="its manifest differs from its hash; use another step"),)
    assert "✗ its manifest differs" in call("log")[1]


def test_a_run_that_has_saved_nothing_says_so(jobs: Jobs) -> None:
    jobs.lines = ()
    assert "none is stored yet" in call("log")[1]


@pytest.mark.parametrize(
    "words",
    [
        ("first@100", "first@120"),
        ("first", "100", "120"),
        ("@100", "@120"),
        ("100", "120"),
        ("first@100", "120"),
        ("run-1@100", "@120"),
    ],
)
def test_diff_takes_two_steps_however_they_are_named(jobs: Jobs, words: tuple[str, ...]) -> None:
    assert call("diff", *words)[0] == 0
    assert jobs.asked == [DiffAsk("run-1@100", "run-1@120")]


def test_diff_shows_the_model_first_bounds_and_other_values(jobs: Jobs) -> None:
    out = call("diff", "first@100", "first@120")[1]
    order = [out.index(name) for name in ("model/head", "model/b", "model/a ", "optimizer/a/")]
    assert order == sorted(order)
    assert "4 of 5 tensors differ" in out
    assert "replaced (was float32 [4, 2])" in out
    assert "≤ 0.01" in out
    assert "0.25 (+3 not finite)" in out
    assert "optimizer/groups[0]/lr" in out
    assert "… 2 more" in out
    assert "saved by 2 and by 4 ranks" in out
    assert "50.0% of it in chunks that both steps share" in out
    assert "3 more tensors changed" in call("diff", "100", "120", "--top", "1")[1]


@pytest.mark.parametrize("words", [(), ("first@100",)])
def test_diff_without_two_steps_says_how(jobs: Jobs, words: tuple[str, ...]) -> None:
    status, _, err = call("diff", *words)
    assert status == 2
    assert "cloudshift diff RUN@100 RUN@200" in err
    assert "cloudshift log RUN" in err


def test_branch_sends_what_was_asked_and_shows_the_new_run(jobs: Jobs) -> None:
    out = call("branch", "first@120", "--name", "again", "--seed", "7")[1]
    assert jobs.branches == [BranchAsk("run-1@120", name="again", seed=7)]
    assert "first-120 (run-2)" in out
    status, _, err = call("branch")
    assert (status, "cloudshift log RUN" in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "path", "kind"),
    [
        (("--to", "out.npz"), "/out.npz", "npz"),
        (("--to", "model.pt"), "/model.pt", "state_dict"),
        (("--to", "folder"), "/folder", "safetensors"),
        (("--to", "folder", "--format", "dcp"), "/folder", "dcp"),
    ],
)
def test_restore_makes_the_path_whole_and_knows_the_format(
    jobs: Jobs, words: tuple[str, ...], path: str, kind: str
) -> None:
    assert call("restore", "@120", *words)[0] == 0
    (ask,) = jobs.asked
    assert (ask.ref, ask.format) == ("run-1@120", kind)
    assert ask.to.startswith("/")
    assert ask.to.endswith(path)


def test_restore_says_how_to_open_what_it_wrote(jobs: Jobs) -> None:
    out = call("restore", "first@120", "--to", "o.npz")[1]
    assert "numpy.load('/data/o.npz')" in out
    assert "9.3 MB npz" in out
    assert call("restore", "first@120")[0] == 2


def test_verify_names_the_damage_and_what_to_do(jobs: Jobs) -> None:
    out = call("verify", "first")[1]
    assert jobs.asked == [VerifyAsk("run-1", 2)]
    assert "1 of 2 steps damaged" in out
    assert "✗ step 120: a pack has 0 of 8 bytes" in out
    assert "next: cloudshift repair first" in out
    call("verify", "@120", "--quick")
    assert jobs.asked[-1] == VerifyAsk("run-1@120", 1)


def test_repair_says_what_was_healed_what_is_lost_and_where_to_go_on(jobs: Jobs) -> None:
    out = call("repair", "first")[1]
    assert jobs.asked == [RepairAsk("run-1")]
    assert "first: 2 objects healed, 1 lost" in out
    assert "7 of 9" in out
    assert "model/4 and 2 more tensors" in out
    assert "next: cloudshift branch first@100" in out
    call("repair", "--dry-run")
    assert jobs.asked[-1] == RepairAsk("run-1", is_dry_run=True)


def test_du_shows_runs_or_one_runs_steps(jobs: Jobs) -> None:
    out = call("du")[1]
    assert jobs.asked == [UsageAsk(None)]
    assert "2 packs (5.0 MB) belong to no step" in out
    assert "70 B (-30%)" in out
    assert "cloudshift gc --dry-run" in out
    assert "only here: free once that step" in call("du", "first")[1]


def test_gc_says_what_was_marked_and_when_it_goes(jobs: Jobs) -> None:
    out = call("gc")[1]
    assert jobs.asked == [GcAsk(None)]
    assert "3 (7.0 MB)" in out
    assert "(in 1 h)" in out
    call("gc", "first", "--dry-run")
    assert jobs.asked[-1] == GcAsk("run-1", is_dry_run=True)
    assert call("gc", "--dry-run", "--now")[0] == 2


def test_gc_goes_on_without_runs_that_are_given_up_and_says_what_that_cost(jobs: Jobs) -> None:
    call("gc", "--now", "--without", "first", "run-of-another-home")
    assert jobs.asked == [GcAsk(is_now=True, without=("run-1", "run-of-another-home"))]
    (found,) = RESULTS[GcAsk].stores  # type: ignore[attr-defined]
    given_up = msgspec.structs.replace(found, given_up=("run-1@120",))
    sheet = steps.gc_sheet(
        GcReport(stores=(given_up,), places={URL: "aws-sim"}, is_dry_run=False, as_of=NOW), "%c"
    )
    assert sheet.troubles == (
        "run-1@120 in aws-sim cannot be read and was given up: only what its records name is kept",
    )


def test_a_step_is_pinned_and_unpinned(jobs: Jobs) -> None:
    out = call("pin", "first@100", "--name", "best")[1]
    assert jobs.asked == [PinAsk("run-1@100", "best")]
    assert "first@100 in aws-sim is pinned as best" in out
    assert "cloudshift unpin first@100" in out
    assert "first@100 in aws-sim is no longer pinned (best)" in call("unpin", "@100")[1]
    assert jobs.asked[-1] == UnpinAsk("run-1@100", None)
    assert json.loads(call("pin", "@100", "--json")[1])["names"] == ["best"]


def test_a_step_is_forgotten_where_it_is_not_the_newest(jobs: Jobs) -> None:
    out = call("forget", "first@100")[1]
    assert jobs.asked == [ForgetAsk("run-1@100")]
    assert "first@100 is forgotten in aws-sim" in out
    assert "it stays in gcp-sim, where it is the newest" in out
    assert "cloudshift gc" in out


@pytest.mark.parametrize("verb", ["pin", "unpin", "forget"])
def test_a_step_has_to_be_named_to_be_pinned_or_forgotten(jobs: Jobs, verb: str) -> None:
    for words in ((), ("first",)):
        status, _, err = call(verb, *words)
        assert (status, f"cloudshift {verb} RUN@400" in err) == (2, True)
    assert jobs.asked == []


def test_a_job_that_fails_is_one_line_of_its_own_error(jobs: Jobs) -> None:
    jobs.error = Problem("Corrupt", "a chunk differs from its hash; use another step", "stop")
    status, _, err = call("diff", "100", "120")
    assert (status, err) == (1, "a chunk differs from its hash; use another step\n")


def test_ctrl_c_leaves_the_job_running_and_says_how_to_see_it(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cloudshift_lab.core.world.time.sleep", interrupt)
    status, out, _ = call("diff", "100", "120")
    assert status == 0
    assert "detached; diff first@100 first@120 goes on: cloudshift jobs job-1" in out
    assert "--cancel" in out
    assert jobs.cancelled == []


def test_a_left_job_is_found_again_and_can_be_cancelled(jobs: Jobs) -> None:
    out = call("jobs")[1]
    assert "25% of 100 B" in out
    assert "cloudshift jobs job-1 --cancel" in out
    assert "4 of 5 tensors differ" in call("jobs", "job-1")[1]
    assert "is being cancelled" in call("jobs", "job-1", "--cancel")[1]
    assert jobs.cancelled == ["job-1"]
    assert call("jobs", "--cancel")[0] == 2
    assert "no job called 'job-9'" in call("jobs", "job-9")[2]


def test_a_long_wait_tells_how_far_the_job_is(jobs: Jobs, home: Any) -> None:
    class Fast:
        """A clock that runs while others sleep."""

        at = 0.0

        def monotonic(self) -> float:
            return self.at

        def sleep(self, seconds: float) -> None:
            self.at += seconds

        def now(self) -> float:
            return NOW + self.at

    jobs.ends_after = 8
    told: list[str | None] = []
    desk = Desk("Python", "cloudshift", world=Fast())  # type: ignore[arg-type]
    stored.diff(desk, ["100", "120"], told.append, top=5)
    assert told[-1] is None
    assert told[0] == "diff first@100 first@120 · 25% of 100 B · 3.0 s (Ctrl-C leaves it running)"


def test_every_sheet_has_html_that_escapes_names(jobs: Jobs, home: Any) -> None:
    jobs.lines = (line(100, pins=("<b>",)),)
    html = stored.log(Desk("notebook", "%cloudshift"), None, last=5).as_html()
    assert "<table" in html
    assert "&lt;b&gt;" in html
    assert "%cloudshift branch first@100" in html


def test_python_has_the_same_verbs(jobs: Jobs) -> None:
    import cloudshift_lab as cs

    assert cs.log(last=1).data.lines[0].step == 120
    assert cs.diff("first@100", "first@120").data.diff.after == 120
    assert cs.branch("first@120").run_id == "run-2"
    assert cs.verify("first").data.level == 2
    assert cs.repair("first").data.newest_whole == 100
    assert cs.du().data.stores[0].pack_bytes == 70
    assert cs.gc(dry_run=True).data.stores[0].marked == 3
    assert cs.restore("first@120", "o.npz").data.path == "/data/o.npz"
    assert cs.pin("first@100", name="best").data.names == ("best",)
    assert not cs.unpin("first@100").data.is_pinned
    assert cs.forget("first@100").data.newest_in == ("gcp-sim",)
    cs.gc(without=["first"])
    assert jobs.asked[-1] == GcAsk(without=("run-1",))
    assert cs.jobs().data[0].job_id == "job-1"
    jobs.error = Problem("NotFound", "gone; look elsewhere", "fix")
    with pytest.raises(CloudshiftError, match="gone"):
        cs.du()
