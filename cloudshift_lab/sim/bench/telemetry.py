"""Telemetry at scale: a thousand ranks and three readers, then kill -9 again and again.

The collector is the conductor's own process, the hosts are the agent's own shippers and senders,
one per machine of eight ranks, each post on a connection of its own; only the training is left
out. Everything shares this machine's processors. What counts as lost is decided by the clients'
record of what the collector acknowledged, and of what they emitted.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from cloudshift_lab.core.home import open_home
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.sim.bench.collecting import (
    DATABASE,
    RUN_ID,
    Collector,
    Worker,
    make_run,
    preload,
)
from cloudshift_lab.sim.bench.emulated import Emission, Emitted, Keys, emit
from cloudshift_lab.sim.bench.reading import Looked, read
from cloudshift_lab.sim.bench.rows import Row, Say, Size, at_most, exactly, median, percentile, row
from cloudshift_lab.storage.store import open_store
from cloudshift_lab.telemetry.schema import SCHEMAS
from cloudshift_lab.telemetry.spool import replay
from cloudshift_lab.telemetry.store import TelemetryStore

NUM_READERS = 3
RANKS_PER_HOST = 8
_QUESTIONS = {
    "newest": "newest step of each rank",
    "curve": "curve of the whole run",
    "spread": "step times of each rank, 2 min",
}
_HISTORY_CHUNK_S = 600


class Load(NamedTuple):
    """How much is emitted and read, and for how long; ``history_s`` was stored before."""

    num_hosts: int
    hz: float
    history_s: int
    warm_up_s: float
    measured_s: float


class Kills(NamedTuple):
    """How often the collector is killed while rows come in, and how long it is away at the end."""

    num_hosts: int
    hz: float
    num: int
    away_s: float


LOADS: dict[Size, Load] = {
    "tiny": Load(num_hosts=4, hz=2, history_s=60, warm_up_s=2, measured_s=3),
    "full": Load(num_hosts=125, hz=1, history_s=3600, warm_up_s=6, measured_s=40),
}
KILLS: dict[Size, Kills] = {
    "tiny": Kills(num_hosts=4, hz=10, num=3, away_s=2),
    "full": Kills(num_hosts=16, hz=5, num=100, away_s=60),
}
SEED = 20261123


class Loaded(NamedTuple):
    """What the load did to the collector and to those who looked."""

    looked: tuple[Looked, ...]
    emitted: Emitted
    cpu_share: float
    memory_bytes: int
    stored: Keys


class Survived(NamedTuple):
    """What was stored of what was emitted, and how long it took to be there again."""

    emitted: Emitted
    stored: Keys
    restarts_s: tuple[float, ...]
    caught_up_s: float


def run(size: Size, say: Say) -> tuple[Row, ...]:
    """Measure the load, then kill the collector."""
    preload()
    with tempfile.TemporaryDirectory(prefix="telemetry-", ignore_cleanup_errors=True) as name:
        loaded = _load(LOADS[size], open_home(Path(name) / "load"), say)
        survived = _survive(KILLS[size], open_home(Path(name) / "kills"), say)
    return (*_load_rows(LOADS[size], loaded), *_kill_rows(KILLS[size], survived))


# -- a thousand ranks ----------------------------------------------------------------------


def _load(load: Load, home: Path, say: Say) -> Loaded:
    job = make_run(home, num_hosts=load.num_hosts, ranks_per_host=RANKS_PER_HOST)
    num_ranks = load.num_hosts * RANKS_PER_HOST
    say(f"{load.history_s} s of history of {num_ranks} ranks")
    first_step = _make_history(load, home)
    say(f"{num_ranks} ranks at {load.hz:g} Hz, {NUM_READERS} readers, {load.measured_s:g} s")
    emission = Emission(job, load.num_hosts, RANKS_PER_HOST, load.hz, first_step)
    with Collector(home) as collector, ExitStack() as workers:
        address = collector.start()
        emitting: Worker[Emitted] = workers.enter_context(Worker(emit, emission))
        readers: list[Worker[Looked]] = [
            workers.enter_context(Worker(read, address, num_ranks)) for _ in range(NUM_READERS)
        ]
        REAL_WORLD.sleep(load.warm_up_s)
        used, began = collector.cpu_s(), REAL_WORLD.monotonic()
        REAL_WORLD.sleep(load.measured_s)
        share = (collector.cpu_s() - used) / (REAL_WORLD.monotonic() - began)
        memory_bytes = collector.memory_bytes()
        for reader in readers:
            reader.tell_to_stop()
        looked = tuple(reader.answer() for reader in readers)
        emitting.tell_to_stop()
        emitted = emitting.answer()
    stored = _stored(home)
    return Loaded(looked, emitted, share, memory_bytes, stored[stored[:, 1] >= first_step])


def _make_history(load: Load, home: Path) -> int:
    """Store what the run did before, as so many seconds of it; the step it has come to."""
    num_steps = round(load.history_s * load.hz)
    began_us = round((REAL_WORLD.now() - load.history_s - 5) * 1e6)
    store = TelemetryStore(home / DATABASE)
    chunk = round(_HISTORY_CHUNK_S * load.hz)
    for number, first in enumerate(range(0, num_steps, chunk)):
        steps = np.arange(first, min(first + chunk, num_steps))
        data = _history(load, steps, began_us)
        store.ingest(f"history-{number}", "step", data)
        store.roll(REAL_WORLD.now())
    store.close()
    return num_steps


def _history(load: Load, steps: Keys, began_us: int) -> bytes:
    num_ranks = load.num_hosts * RANKS_PER_HOST
    step = np.repeat(steps, num_ranks)
    rank = np.tile(np.arange(num_ranks), len(steps))
    num_rows = len(step)
    columns = {
        "ts": began_us + (step / load.hz * 1e6).astype(np.int64) + rank,
        "run_id": pa.array([RUN_ID]).take(pa.array(np.zeros(num_rows, np.int64))),
        "generation": np.ones(num_rows, np.int64),
        "rank": rank.astype(np.int32),
        "step": step,
        "loss": 5.0 / (1 + step) + rank * 1e-6,
        "tokens": np.full(num_rows, 4096),
        "step_s": np.full(num_rows, 1 / load.hz),
        "sections": pa.nulls(num_rows, SCHEMAS["step"].field("sections").type),
    }
    schema = SCHEMAS["step"]
    arrays = [pa.array(columns[name]).cast(schema.field(name).type) for name in schema.names]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.table(arrays, schema=schema))
    return bytes(sink.getvalue().to_pybytes())


def _load_rows(load: Load, loaded: Loaded) -> Iterator[Row]:
    ms = {
        title: [each * 1000 for one in loaded.looked for each in one.answers[question]]
        for question, title in _QUESTIONS.items()
    }
    everything = [each for samples in ms.values() for each in samples]
    ages = [age for one in loaded.looked for age in one.ages_s]
    num_ranks = load.num_hosts * RANKS_PER_HOST
    of = f"{num_ranks} ranks at {load.hz:g} Hz, {NUM_READERS} readers"
    yield row("live query p95", percentile(everything, 0.95), "ms", samples=everything,
              goal=at_most(150), full_only=True,
              note=f"{of}; three questions, over HTTP")  # fmt: skip
    yield row("live query p50", median(everything), "ms", samples=everything)
    for title, samples in ms.items():
        yield row(f"{title}: p95", percentile(samples, 0.95), "ms", samples=samples)
    yield row("staleness p95", percentile(ages, 0.95), "s", samples=_thinned(ages),
              goal=at_most(1), full_only=True,
              note="age of a rank's row when a reader first sees it, from the end of the step; "
                   "the reader looks every 0.25 s, the host sends every 0.5 s")  # fmt: skip
    yield row("staleness p50", median(ages), "s", samples=_thinned(ages))
    yield row("collector's share of a core", loaded.cpu_share, "cores", goal=at_most(0.5),
              full_only=True, note=of)  # fmt: skip
    yield row("collector's memory", loaded.memory_bytes, "bytes")
    yield row("rows stored before", load.history_s * load.hz * num_ranks, "rows")
    yield row("emission fell behind by at most", loaded.emitted.late_s, "s",
              samples=[loaded.emitted.late_s])  # fmt: skip
    yield row("load: rows lost", _lost(loaded.emitted, loaded.stored), "rows", goal=exactly(0))


def _thinned(samples: list[float]) -> list[float]:
    """At most about a thousand of them, evenly taken."""
    return samples[:: max(1, len(samples) // 1000)]


# -- kill -9 -------------------------------------------------------------------------------


def _survive(kills: Kills, home: Path, say: Say) -> Survived:
    job = make_run(home, num_hosts=kills.num_hosts, ranks_per_host=RANKS_PER_HOST)
    bucket = f"file://{home}/bucket"
    emission = Emission(job, kills.num_hosts, RANKS_PER_HOST, kills.hz, bucket=bucket)
    draw = random.Random(SEED)
    restarts = []
    with Collector(home) as collector, ExitStack() as workers:
        emitting: Worker[Emitted] = workers.enter_context(Worker(emit, emission))
        collector.start()
        say(f"{kills.num} kills")
        for _ in range(kills.num):
            REAL_WORLD.sleep(draw.uniform(0.1, 0.6))
            collector.kill()
            began = REAL_WORLD.monotonic()
            collector.start()
            restarts.append(REAL_WORLD.monotonic() - began)
        say(f"away for {kills.away_s:g} s")
        collector.kill()
        REAL_WORLD.sleep(kills.away_s)
        collector.start()
        began = REAL_WORLD.monotonic()
        emitting.tell_to_stop()
        emitted = emitting.answer()
        caught_up_s = REAL_WORLD.monotonic() - began
    _replay(bucket, home)
    return Survived(emitted, _stored(home), tuple(restarts), caught_up_s)


def _replay(bucket: str, home: Path) -> None:
    """Take in what was spooled, as a conductor does for a run that lives."""
    store = TelemetryStore(home / DATABASE)
    try:
        replay(open_store(bucket), RUN_ID, store.ingest)
    finally:
        store.close()


def _kill_rows(kills: Kills, survived: Survived) -> Iterator[Row]:
    emitted, stored = survived.emitted, survived.stored
    missing = len(_set(emitted.acknowledged) - _set(stored))
    yield row("collector killed during ingest", kills.num, "times")
    yield row("away at the end", kills.away_s, "s", samples=[kills.away_s])
    yield row("acknowledged rows lost", missing, "rows", goal=exactly(0),
              note="of the clients' own record of what the collector confirmed")  # fmt: skip
    yield row("rows stored twice", len(stored) - len(_set(stored)), "rows", goal=exactly(0))
    yield row(
        "rows lost, acknowledged or not", _lost(emitted, stored), "rows", goal=exactly(0),
        note="half the hosts keep in memory what is not taken, half spool to a bucket",
    )  # fmt: skip
    yield row("rows emitted", emitted.rows, "rows")
    yield row("rows acknowledged", len(emitted.acknowledged), "rows")
    yield row("until it answers after a kill", median(survived.restarts_s), "s",
              samples=survived.restarts_s,
              note="imports left out: it is forked with them done")  # fmt: skip
    yield row("until every host has delivered after being away", survived.caught_up_s, "s",
              samples=[survived.caught_up_s])  # fmt: skip


def _lost(emitted: Emitted, stored: Keys) -> int:
    return emitted.rows - len(_set(stored))


def _set(keys: Keys) -> set[tuple[int, int]]:
    return {(int(rank), int(step)) for rank, step in keys}


def _stored(home: Path) -> Keys:
    """Every stored row, once the collector is gone: shape [rows, 2], rank and step."""
    store = TelemetryStore(home / DATABASE)
    try:
        table = store.sql("SELECT rank, step FROM step", limit=1 << 40, timeout_s=60)
    finally:
        store.close()
    return np.stack([table["rank"].to_numpy(), table["step"].to_numpy()], axis=1)
