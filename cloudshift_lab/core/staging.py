"""What the ranks of a node and their agent write for each other in the agent's shared memory.

::

    <node dir>/control.json              agent -> ranks: gate, drain, captures, what was committed
    <node dir>/rank-<r>.state.json       rank -> agent: where it is, what troubles it
    <node dir>/rank-<r>.slot-<k>         the bytes of a staged step; slot 1 only for a last step
    <node dir>/rank-<r>.slot-<k>.json    says that slot k is complete, and what it holds
    <node dir>/rank-<r>.rows.json        rows that found no way out before the rank ended
    <node dir>/rows.sock                 datagrams: a JSON list of step reports each

Every JSON file is replaced atomically; none holds a secret.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

NODE_DIR_ENV = "CLOUDSHIFT_NODE_DIR"
JOB_ENV = "CLOUDSHIFT_JOB"
SEED_ENV = "CLOUDSHIFT_SEED"
CONTROL_FILE = "control.json"
ROWS_SOCKET = "rows.sock"
NUM_SLOTS = 2


class Go(msgspec.Struct, frozen=True):
    """Open gate: train on from ``step``; without a manifest from the script's own beginning."""

    step: int = 0
    manifest_key: str | None = None
    manifest_digest: str | None = None


class Control(msgspec.Struct, frozen=True):
    """The agent's word to its ranks.

    ``go`` None keeps them at the gate. ``released_step``: the newest staged step that is
    committed, so that its slot may be written again. ``capture``: counts how often the agent
    wanted a save; when it has grown, the ranks capture at the next boundary that all agree upon.
    ``limit``: the ranks hold after this step (and say so) until it is raised or None; they rehearse
    what another attempt has done already. While they hold, a grown ``capture`` stages that step.
    ``serial`` grows with every word, so that ranks that wait together know who has heard less.
    """

    go: Go | None = None
    drain: bool = False
    released_step: int = -1
    capture: int = 0
    limit: int | None = None
    serial: int = 0


class RankState(msgspec.Struct, frozen=True):
    """Where one rank is. ``drained`` and ``finished`` are said just before it exits; ``held``:
    it waits after ``step`` for the limit to be raised.

    ``warning``: why it cannot save, or saves only while training waits; None when all is well.
    """

    rank: int
    state: Literal["gate", "running", "held", "drained", "finished"]
    step: int
    state_bytes: int = 0
    warning: str | None = None


class StagedBox(msgspec.Struct, frozen=True):
    """Where one tensor (or part of one) lies in a slot; units as in the checkpoint format."""

    name: str
    dtype: str
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    start: int
    num_bytes: int


class StagedSpec(msgspec.Struct, frozen=True):
    """Name, dtype and global shape of one tensor of the whole state."""

    name: str
    dtype: str
    global_shape: tuple[int, ...]


class StagedHead(msgspec.Struct, frozen=True):
    """What the agent needs of a slot's description; decodes ``StagedRank`` without its body."""

    step: int
    is_last: bool


class StagedRank(msgspec.Struct, frozen=True):
    """A complete slot. ``leaves`` is typed JSON, ``is_last``: the rank runs no further step."""

    step: int
    is_last: bool
    rank: int
    world_size: int
    slot_file: str
    boxes: tuple[StagedBox, ...]
    leaves: msgspec.Raw
    catalog: tuple[StagedSpec, ...] = ()


class StepReport(msgspec.Struct, frozen=True):
    """One finished optimizer step of one rank; ``ts`` wall-clock seconds, ``step_s`` seconds.

    ``sections``: seconds of the step by the name of a part that the script times.
    ``rehearsed``: it was done under a limit, so that it is none of the run's own.
    """

    ts: float
    rank: int
    step: int
    loss: float | None = None
    tokens: int | None = None
    step_s: float | None = None
    rehearsed: bool = False
    sections: dict[str, float] | None = None


class RankFailure(msgspec.Struct, frozen=True):
    """Why a rank ended early, as it told itself; ``at`` wall-clock seconds."""

    rank: int
    at: float
    message: str
    traceback: str


def state_file(node_dir: Path, rank: int) -> Path:
    """Where a rank says where it is."""
    return node_dir / f"rank-{rank}.state.json"


def slot_file(node_dir: Path, rank: int, slot: int) -> Path:
    """Where the bytes of one slot are; its description has ``.json`` after it."""
    return node_dir / f"rank-{rank}.slot-{slot}"


def staged_file(node_dir: Path, rank: int, slot: int) -> Path:
    """What makes a slot complete."""
    return node_dir / f"rank-{rank}.slot-{slot}.json"


def rows_file(node_dir: Path, rank: int) -> Path:
    """Step reports that a rank could not send before its end."""
    return node_dir / f"rank-{rank}.rows.json"


def replace_file(path: Path, data: bytes) -> None:
    """Replace a small file atomically. For shared memory: nothing is forced to a disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
