"""Reads the folders the rules are judged on."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as parquet

from cloudshift_lab.core.errors import Corrupt, NotFound
from cloudshift_lab.health.windows import Floats, GpuWindow, StepWindow

MINUTE_S = 60.0


@dataclass(frozen=True)
class LabelledRun:
    """A simulated run and what was done to it; ``onset`` and ``end`` are steps, None: none."""

    file: Path
    kind: str
    factor: float
    num_ranks: int
    ranks_per_node: int
    ranks: frozenset[int]
    onset: int | None
    end: int | None

    def window(self) -> StepWindow:
        """Its steps.

        Raises:
            Corrupt: Rows or columns are missing.
        """
        table = read_parquet(self.file)
        step, rank = _column(table, self.file, "step"), _column(table, self.file, "rank")
        if len(step) % self.num_ranks:
            raise Corrupt(f"{self.file.name} lacks rows of some ranks; get it again")
        order = np.lexsort((rank, step))
        sections_s = {
            name: _column(table, self.file, f"{name}_us")[order].reshape(-1, self.num_ranks) * 1e-6
            for name in ("compute", "data_wait")
        }
        return StepWindow(int(step.min()), sections_s, self.ranks_per_node)


@dataclass(frozen=True)
class LabelledGpu:
    """A simulated GPU's telemetry and when and how it fails; minutes, None: not at all."""

    window: GpuWindow
    kind: str
    lookalike: str
    fails: int | None
    onset: int | None


@dataclass(frozen=True)
class Fault:
    """One fault of a node in a real trace, days."""

    node: str
    begin: float
    end: float
    level: str


def labelled_runs(folder: Path) -> list[LabelledRun]:
    """What ``labels.csv`` of a straggler folder lists."""
    return [
        LabelledRun(
            file=folder / row["file"], kind=row["kind"], factor=float(row["factor"]),
            num_ranks=int(row["world"]), ranks_per_node=int(row["ranks_per_node"]),
            ranks=frozenset(int(rank) for rank in row["straggler_ranks"].split()),
            onset=_or_none(row["onset_step"]), end=_or_none(row["end_step"]),
        )
        for row in read_csv(folder / "labels.csv", ("file", "kind", "world", "onset_step"))
    ]  # fmt: skip


def labelled_gpus(folder: Path) -> Iterator[LabelledGpu]:
    """What ``labels.csv`` of a precursor folder lists, each with its telemetry."""
    file = folder / "telemetry_1min.parquet"
    labels = read_csv(folder / "labels.csv", ("gpu", "fail_minute", "failure_kind"))
    table = read_parquet(file)
    gpu, minute = _column(table, file, "gpu"), _column(table, file, "minute")
    order = np.lexsort((minute, gpu))
    columns = {
        name: _column(table, file, name)[order]
        for name in ("minute", "temp_c", "power_w", "ecc_corrected", "remapped_rows",
                     "pcie_replay", "nic_flap", "throttle_bits")
    }  # fmt: skip
    names = gpu[order]
    for row in labels:
        begin, end = (
            np.searchsorted(names, int(row["gpu"]), "left"),
            np.searchsorted(names, int(row["gpu"]), "right"),
        )
        part = {name: column[begin:end] for name, column in columns.items()}
        yield LabelledGpu(
            _gpu_window(row["gpu"], part), row["failure_kind"], row.get("benign_lookalike", ""),
            _or_none(row["fail_minute"]), _or_none(row["precursor_onset"]),
        )  # fmt: skip


def _gpu_window(name: str, part: dict[str, Floats]) -> GpuWindow:
    return GpuWindow(
        gpu=name, begin_s=float(part["minute"][0]) * MINUTE_S if len(part["minute"]) else 0.0,
        every_s=MINUTE_S, temp_c=part["temp_c"], power_w=part["power_w"],
        ecc_corrected=part["ecc_corrected"], remapped_rows=part["remapped_rows"],
        pcie_replays=part["pcie_replay"], nic_flaps=part["nic_flap"],
        throttle_bits=part["throttle_bits"].astype(np.int64),
    )  # fmt: skip


def faults(file: Path) -> list[Fault]:
    """A trace of node faults, oldest first."""
    found = [
        Fault(row["node_id"], float(row["start_day"]), float(row["end_day"]), row.get("level", ""))
        for row in read_csv(file, ("node_id", "start_day", "end_day"))
    ]
    return sorted(found, key=lambda each: (each.begin, each.node))


def read_csv(file: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file.

    Raises:
        NotFound: It is not there.
        Corrupt: It lacks a column.
    """
    if not file.exists():
        raise NotFound(f"{file} is not there; give the folder that has it")
    with file.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        lacking = set(needed) - set(reader.fieldnames or ())
        if lacking:
            raise Corrupt(f"{file.name} lacks the column {min(lacking)}; get it again")
        return list(reader)


def read_parquet(file: Path) -> dict[str, Floats]:
    """Columns of a Parquet file as floats.

    Raises:
        NotFound: It is not there.
        Corrupt: It cannot be read.
    """
    if not file.exists():
        raise NotFound(f"{file} is not there; give the folder that has it")
    try:
        table = parquet.read_table(file)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise Corrupt(f"{file.name} cannot be read ({error}); get it again") from error
    return {name: np.asarray(table[name], dtype=np.float64) for name in table.column_names}


def _column(table: dict[str, Floats], file: Path, name: str) -> npt.NDArray[np.float64]:
    if name not in table:
        raise Corrupt(f"{file.name} lacks the column {name}; get it again")
    return table[name]


def _or_none(text: str) -> int | None:
    value = int(float(text))
    return None if value < 0 else value
