"""Kill one of several real ranks, phase by phase and seed by seed, and compare with a control."""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from cloudshift_lab.core.errors import CloudshiftError, NotFound
from cloudshift_lab.core.home import open_home, save_clouds
from cloudshift_lab.core.orders import AgentStatus, status_key
from cloudshift_lab.core.placement import Cloud, Clouds, Placement
from cloudshift_lab.core.run import JobSpec, Spare
from cloudshift_lab.core.wire import from_json
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.engines.local import LocalEngine
from cloudshift_lab.sim.bench import surroundings
from cloudshift_lab.sim.bench.rows import Machine
from cloudshift_lab.sim.chaos.diary import PHASES, Diary, Order, Phase, Wound, digests, judge, parse
from cloudshift_lab.storage.store import open_store

TRAINEE = Path(__file__).with_name("trainee.py")
NUM_RANKS = 4
FIRST_STEP, STEPS_BETWEEN = 8, 12
RUN_SEED = 11
LIMIT_S = 600.0


class Series(msgspec.Struct, frozen=True):
    """Seconds, of many kills."""

    median: float
    p95: float
    largest: float


class RanksReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a campaign against ranks found."""

    command: str
    date: str
    commit: str
    machine: Machine
    spare: Spare
    ranks: int
    seconds: float
    kills: int
    resumed: int
    most_lost_steps: int
    equal_losses: int
    runs: int
    equal_hashes: int
    to_step_s: Series | None
    imports_s: Series | None
    by_phase: dict[str, dict[str, float]]
    wounds: tuple[Wound, ...]

    @property
    def passed(self) -> bool:
        """Whether every kill was survived as promised."""
        return (
            self.resumed == self.equal_losses == self.kills
            and self.equal_hashes == self.runs
            and self.most_lost_steps <= 1
        )


def orders_of(
    seed: int, num_ranks: int = NUM_RANKS, phases: Sequence[Phase] = PHASES
) -> tuple[Order, ...]:  # fmt: skip
    """A kill in each phase, in an order and of ranks that the seed decides."""
    draw = random.Random(seed)
    return tuple(
        Order(FIRST_STEP + number * STEPS_BETWEEN + draw.randrange(6), phase,
              draw.randrange(num_ranks))
        for number, phase in enumerate(draw.sample(phases, len(phases)))
    )  # fmt: skip


class Ward:
    """One state directory with a store, in which runs are attacked one after the other.

    Args:
        folder: For everything; each run has a folder of its own in it.
        spare: Whether interpreters wait with everything imported.
        num_ranks: Of each run.
    """

    def __init__(self, folder: Path, *, spare: Spare, num_ranks: int = NUM_RANKS) -> None:
        home = open_home(folder / "home")
        cloud = Cloud("here", "here", store_url=f"file://{folder}/store")
        save_clouds(home, Clouds((cloud,)))
        self._home = home
        self._folder = folder
        self._spare: Spare = spare
        self._num_ranks = num_ranks
        self._engine = LocalEngine(home)
        self._store = open_store(cloud.store_url)

    def run(self, name: str, orders: Sequence[Order], steps: int) -> list[Diary]:
        """Train with these kills; every rank's diary.

        Raises:
            CloudshiftError: The run did not finish; names where to look.
        """
        diary = self._folder / name
        diary.mkdir(parents=True)
        env = {
            "KILLS": json.dumps([msgspec.to_builtins(order) for order in orders]),
            "STEPS": str(steps), "DIARY": str(diary), "SPARE": self._spare if orders else "off",
        }  # fmt: skip
        job = JobSpec(
            run_id=name, generation=1, owner=f"{name}-1",
            placement=Placement("here", "r", "m", ranks_per_node=self._num_ranks),
            store_url=self._store.url, script=str(TRAINEE), home=str(self._home), workdir="",
            seed=RUN_SEED, save_policy="10m", env=env, restarts=3, spare=self._spare,
        )  # fmt: skip
        handle = self._engine.submit(job)
        try:
            self._wait(job)
        finally:
            self._engine.stop(handle, grace_s=10.0)
        paths = [diary / f"rank-{rank}.jsonl" for rank in range(self._num_ranks)]
        return [parse(path.read_text()) for path in paths]

    def _wait(self, job: JobSpec) -> None:
        key, until = status_key(job.run_id, 1), REAL_WORLD.monotonic() + LIMIT_S
        while REAL_WORLD.monotonic() < until:
            try:
                status = from_json(self._store.get(key), AgentStatus)
            except NotFound:
                status = None
            if status is not None and status.state == "finished":
                return
            if status is not None and status.state in ("failed", "fenced", "stopped"):
                raise CloudshiftError(
                    f"{job.run_id} {status.state}: {status.error}; {status.warnings}; see "
                    f"{self._engine.workdir(job.run_id, 1)}"
                )
            REAL_WORLD.sleep(0.1)
        raise CloudshiftError(f"{job.run_id} did not finish; see {self._folder}")


def attack(
    num_seeds: int, folder: Path, say: Callable[[str], None], *, spare: Spare,
    num_ranks: int = NUM_RANKS, phases: Sequence[Phase] = PHASES,
    keep: Callable[[RanksReport], None] = lambda _report: None,
) -> RanksReport:  # fmt: skip
    """A whole campaign: one undisturbed run, then one per seed with a kill in each phase.

    Args:
        num_seeds: How many runs.
        folder: For everything.
        say: Shows a line.
        spare: Whether interpreters wait with everything imported.
        num_ranks: Of each run.
        phases: To kill in.
        keep: Given the report so far after each run: a campaign takes long.

    Raises:
        CloudshiftError: A run did not finish, which is a finding too; names where to look.
    """
    began = REAL_WORLD.monotonic()
    steps = FIRST_STEP + len(phases) * STEPS_BETWEEN
    ward = Ward(folder, spare=spare, num_ranks=num_ranks)
    control = ward.run("control", (), steps)
    wounds: list[Wound] = []
    num_equal = 0
    report = _report(wounds, 0, 0, spare=spare, num_ranks=num_ranks, seconds=0.0)
    for seed in range(1, num_seeds + 1):
        orders = orders_of(seed, num_ranks, phases)
        diaries = ward.run(f"seed-{seed}", orders, steps)
        num_equal += digests(diaries) == digests(control)
        found = [judge(seed, order, diaries, control) for order in orders]
        wounds += found
        say(f"seed {seed}: " + ", ".join(_words(wound) for wound in found))
        seconds = REAL_WORLD.monotonic() - began
        report = _report(wounds, num_equal, seed, spare=spare, num_ranks=num_ranks, seconds=seconds)
        keep(report)
    return report


def _report(
    wounds: list[Wound], num_equal: int, num_seeds: int, *, spare: Spare, num_ranks: int,
    seconds: float,
) -> RanksReport:  # fmt: skip
    return RanksReport(
        command=f"python -m cloudshift_lab chaos ranks --seeds {num_seeds} --spare {spare}",
        date=surroundings.date(),
        commit=surroundings.commit(),
        machine=surroundings.machine(),
        spare=spare,
        ranks=num_ranks,
        seconds=round(seconds, 1),
        kills=len(wounds),
        resumed=sum(wound.resumed_at is not None for wound in wounds),
        most_lost_steps=max((wound.lost_steps or 0 for wound in wounds), default=0),
        equal_losses=sum(wound.is_equal for wound in wounds),
        runs=num_seeds,
        equal_hashes=num_equal,
        to_step_s=_series([wound.to_step_s for wound in wounds]),
        imports_s=_series([wound.imports_s for wound in wounds]),
        by_phase={phase: _of_phase(wounds, phase) for phase in PHASES},
        wounds=tuple(wounds),
    )


def _of_phase(wounds: list[Wound], phase: str) -> dict[str, float]:
    mine = [wound for wound in wounds if wound.order.phase == phase]
    series = _series([wound.to_step_s for wound in mine])
    return {
        "kills": len(mine),
        "resumed": sum(wound.resumed_at is not None for wound in mine),
        "equal": sum(wound.is_equal for wound in mine),
        "lost_steps": sum(wound.lost_steps or 0 for wound in mine),
        "to_step_median_s": 0.0 if series is None else series.median,
    }


def _series(values: Sequence[float | None]) -> Series | None:
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    p95 = known[min(len(known) - 1, round(0.95 * (len(known) - 1)))]
    return Series(round(statistics.median(known), 3), round(p95, 3), round(known[-1], 3))


def _words(wound: Wound) -> str:
    order = wound.order
    where = f"rank {order.rank} in {order.phase} of step {order.step}"
    if wound.resumed_at is None:
        return f"{where}: NOT RESUMED"
    equal = "" if wound.is_equal else ", LOSSES DIFFER"
    return (
        f"{where}: on after {wound.resumed_at} ({wound.lost_steps} lost) in "
        f"{wound.to_step_s:.1f} s{equal}"
    )


def text_of(report: RanksReport) -> str:
    """The report for people."""
    lines = [
        f"{report.kills} kills of one of {report.ranks} ranks: {report.resumed} resumed, at most "
        f"{report.most_lost_steps} steps lost, {report.equal_losses} with equal losses; "
        f"{report.equal_hashes} of {report.runs} runs ended with the control's state",
    ]
    if report.to_step_s is not None and report.imports_s is not None:
        lines.append(
            f"from the kill to the next optimizer step: median {report.to_step_s.median:.2f} s, "
            f"p95 {report.to_step_s.p95:.2f} s; of it imports: median "
            f"{report.imports_s.median:.2f} s (spare interpreters: {report.spare})"
        )
    return "\n".join(lines)
