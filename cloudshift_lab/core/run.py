"""What the researcher started and what can be seen of it."""

from __future__ import annotations

from typing import Literal

import msgspec

from cloudshift_lab.core.placement import Placement

RunState = Literal[
    "starting", "running", "migrating", "stopping", "stopped", "finished", "failed", "lost"
]
Restart = Literal["auto", "never"]
Spare = Literal["auto", "on", "off"]
RESTARTS: tuple[str, ...] = ("auto", "never")
FINAL_STATES: frozenset[str] = frozenset({"stopped", "finished", "failed", "lost"})


class RunSpec(msgspec.Struct, frozen=True):
    """A run as asked for. Stores are named, not opened, by it: it holds none of their credentials.

    ``args`` and ``env`` are kept word for word in files of this machine (mode 0600: the run's
    journal, each attempt's ``job.json``). Pass a secret by reference, such as the path of a file.

    ``save_policy`` says how often a step is saved (``core.save_policy``), ``keep`` which of the
    saved steps stay (``checkpoint.keep``), ``approve`` who approves its moves (``core.approval``).
    ``restart``: whether a run whose ranks fail or whose agent or machine is gone goes on by itself;
    ``restart_on``: the places where it may, besides the one it was lost in, which keep their state
    in its store; ``spare``: whether interpreters wait for that, as in ``JobSpec``.
    """

    name: str
    script: str
    target: str = "local"
    ranks_per_node: int = 2
    save_policy: str = "auto"
    keep: str = "5"
    seed: int = 0
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    budget_micro_usd: int | None = None
    approve: str = "ask"
    python: str = ""
    nodes: int = 1
    restart: Restart = "auto"
    restart_on: tuple[str, ...] = ()
    spare: Spare = "auto"


class JobSpec(msgspec.Struct, frozen=True):
    """What an engine needs to start one attempt (one generation in one placement).

    ``store_url`` is the data store of this attempt; its credentials come from ``home``'s cloud
    list by ``placement.cloud``. A ``standby`` attempt starts its ranks up to the gate and waits
    for an order; ``source_*`` then name where its state comes from. ``node``: which of the
    placement's nodes, 0 leads. ``restarts``: how often ranks that fail are started again by their
    agent without any progress since the last time; 0: never. ``spare``: whether interpreters with
    everything imported wait for that; "auto": where memory and processors allow. ``exclude``:
    machines that the engine must not use.
    """

    run_id: str
    generation: int
    owner: str
    placement: Placement
    store_url: str
    script: str
    home: str
    workdir: str
    seed: int
    save_policy: str = "auto"
    keep: str = "5"
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    python: str = ""
    restore_step: int | None = None
    standby: bool = False
    source_cloud: str | None = None
    source_url: str | None = None
    conductor_home: str | None = None
    node: int = 0
    restarts: int = 0
    spare: Spare = "auto"
    exclude: tuple[str, ...] = ()


class SaveStats(msgspec.Struct, frozen=True):
    """What a run's checkpoints cost and hold.

    ``raw_bytes``, ``stored_bytes``, ``new_bytes`` (uploaded) and ``save_s`` (copy to commit) are of
    the newest commit; ``lost_s`` is the training time a save takes away, measured. ``policy`` says
    how often and why, ``keep`` what stays; ``kept_bytes`` are the packs of the ``kept_steps``
    together, each once, None while unknown.
    """

    raw_bytes: int = 0
    stored_bytes: int = 0
    new_bytes: int = 0
    save_s: float | None = None
    lost_s: float | None = None
    policy: str = ""
    keep: str = ""
    kept_steps: int = 0
    kept_bytes: int | None = None


class Progress(msgspec.Struct, frozen=True):
    """The newest step a rank reported; ``at`` is wall-clock seconds."""

    step: int
    loss: float | None
    tokens_per_s: float | None
    at: float


class RunView(msgspec.Struct, frozen=True):
    """One run as every surface shows it. Times are wall-clock seconds, money micro-dollars.

    ``origin`` is the step that a branch began from: ``run-1@400``. ``notice_until``: when its
    machine goes, once that was said, and in ``notice`` what will be saved by then. ``restart`` is
    what was asked for, ``restarts`` how often the run went on by itself, ``restarted`` why and how
    the last time, at ``restarted_at``. ``budget`` says how the run stands with its budget, empty
    without one, and ``budget_alarm`` the highest level it has reached, in percent.
    """

    run_id: str
    name: str
    state: RunState
    placement: Placement
    generation: int
    created_at: float
    simulated: bool
    step: int | None = None
    loss: float | None = None
    tokens_per_s: float | None = None
    progress_at: float | None = None
    price_micro_usd_per_h: int = 0
    price_source: str = ""
    spent_micro_usd: int = 0
    checkpoint_step: int | None = None
    checkpoint_at: float | None = None
    store_url: str = ""
    migration_id: str | None = None
    error: str | None = None
    error_rank: int | None = None
    traceback: str | None = None
    losses: tuple[tuple[int, float], ...] = ()
    ended_at: float | None = None
    as_of: float = 0.0
    saves: SaveStats | None = None
    origin: str | None = None
    notice_until: float | None = None
    notice: str = ""
    restart: Restart = "auto"
    restarts: int = 0
    restarted: str = ""
    restarted_at: float | None = None
    budget: str = ""
    budget_alarm: int = 0
