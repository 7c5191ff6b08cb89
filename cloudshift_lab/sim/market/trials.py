"""The replays that judge a policy: the benchmark's cells, and what they leave out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from cloudshift_lab.market.policy import CostToFinish
from cloudshift_lab.sim.market.optimum import omniscient_usd
from cloudshift_lab.sim.market.replay import Episode, Hardship, episode, play
from cloudshift_lab.sim.market.rivals import Stay, UniformProgress
from cloudshift_lab.sim.market.score import Case
from cloudshift_lab.sim.market.traces import Benchmark, Scenario, Trace, read_benchmark, read_trace

Say = Callable[[str], None]
GBIT_PER_S = 5.0
INTERNET_USD_PER_GB = 0.09
PLAIN = Hardship()
_H100 = "gcp_h100"


@dataclass(frozen=True)
class Trial:
    """One replay: ``kind`` says which of the tables it belongs to."""

    kind: str
    scenario: Scenario
    start: int
    hardship: Hardship = PLAIN


def trials(benchmark: Benchmark, *, is_quick: bool = False) -> list[Trial]:
    """Everything that is replayed; quick: only the first start of each cell."""
    found = [
        *_cells(benchmark), *_half_length(benchmark), *_lost_work(benchmark), *_across(benchmark),
    ]  # fmt: skip
    if not is_quick:
        return found
    first: dict[tuple[str, str, Hardship], Trial] = {}
    for each in found:
        first.setdefault((each.kind, each.scenario.label, each.hardship), each)
    return list(first.values())


def replay_all(folder: Path, wanted: list[Trial], say: Say) -> dict[str, list[Case]]:
    """Every trial, on all processors; the cases by kind, in the order of the trials.

    Raises:
        NotFound: A file of the benchmark is missing.
        Corrupt: One cannot be used.
    """
    benchmark = read_benchmark(folder)
    used = {each.scenario.market for each in wanted}
    traces = {name: read_trace(folder, name, benchmark) for name in sorted(used)}
    found: dict[int, Case] = {}
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        waiting = {
            pool.submit(_case, _episode(each, traces, benchmark), each, _block(each, benchmark)): at
            for at, each in enumerate(wanted)
        }
        for done in as_completed(waiting):
            found[waiting[done]] = done.result()
            if len(found) % 50 == 0 or len(found) == len(wanted):
                say(f"{len(found)} of {len(wanted)} jobs replayed")
    tables: dict[str, list[Case]] = {}
    for at, each in enumerate(wanted):
        tables.setdefault(each.kind, []).append(found[at])
    return tables


def _cells(benchmark: Benchmark) -> Iterator[Trial]:
    for scenario, start, _ in benchmark.cases():
        yield Trial("cells", scenario, start)


def _half_length(benchmark: Benchmark) -> Iterator[Trial]:
    """Jobs of half a window, from every other start, in both halves of its window."""
    for scenario in benchmark.scenarios:
        if not scenario.market.startswith(_H100) or scenario.ckpt_gb < 10:
            continue
        half = benchmark.window_ticks[scenario.provider] // 2
        for start in benchmark.starts[scenario.provider][::2]:
            for begin in (start, start + half):
                yield Trial("half", scenario, begin, Hardship(share=0.5))


def _lost_work(benchmark: Benchmark) -> Iterator[Trial]:
    """Periodic checkpoints and exposed transfers: where a net that counts live progress fails."""
    for gang in (16, 8):
        scenario = Scenario(f"{_H100}_gang{gang}", 1.2, 100)
        for checkpoint_h in (0.25, 1.0):
            for gbit_per_s in (None, GBIT_PER_S):
                yield from _hard(
                    benchmark, "lost work", scenario, Hardship(checkpoint_h, gbit_per_s)
                )


def _across(benchmark: Benchmark) -> Iterator[Trial]:
    """Regions as if they were clouds of their own: dear egress, and nothing hidden."""
    hardship = Hardship(gbit_per_s=GBIT_PER_S, usd_per_gb=INTERNET_USD_PER_GB)
    for gang in (16, 8):
        scenario = Scenario(f"{_H100}_gang{gang}", 1.2, 2000)
        yield from _hard(benchmark, f"across clouds, gang {gang}", scenario, hardship)


def _hard(
    benchmark: Benchmark, kind: str, scenario: Scenario, hardship: Hardship
) -> Iterator[Trial]:
    if scenario.market in benchmark.markets:
        for start in benchmark.starts[scenario.provider][::2]:
            yield Trial(kind, scenario, start, hardship)


def _episode(each: Trial, traces: dict[str, Trace], benchmark: Benchmark) -> Episode:
    trace = traces[each.scenario.market]
    return episode(trace, each.scenario, each.start, benchmark, each.hardship)


def _block(each: Trial, benchmark: Benchmark) -> str:
    ticks = benchmark.window_ticks[each.scenario.provider]
    return f"{each.scenario.provider}-{each.start // ticks}"


def _case(each: Episode, trial: Trial, block: str) -> Case:
    ours = play(each, CostToFinish(each.places, each.task, net=each.net))
    rivals = {
        "stay": play(each, Stay(each)).usd,
        "uniform progress": play(each, UniformProgress(each)).usd,
    }
    hard = trial.hardship
    cell = trial.scenario.label
    if trial.kind == "lost work":
        exposed = "exposed" if hard.gbit_per_s else "hidden"
        cell = f"{cell}, checkpoint every {hard.checkpoint_h:g} h, transfer {exposed}"
    return Case(
        cell=cell, block=block, start=trial.start, usd=ours.usd,
        omniscient_usd=omniscient_usd(each), rivals_usd=rivals, on_time=ours.on_time,
        num_starts=ours.num_starts,
    )  # fmt: skip
