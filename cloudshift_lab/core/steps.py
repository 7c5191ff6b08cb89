"""Stored steps as every surface shows them, and the long jobs that look into them."""

from __future__ import annotations

from typing import Literal

import msgspec

from cloudshift_lab.core.views import Problem

Fate = Literal["same", "changed", "added", "removed", "replaced"]
JobState = Literal["waiting", "running", "done", "failed", "cancelled"]
ENDED_JOB: frozenset[str] = frozenset({"done", "failed", "cancelled"})
RestoreFormat = Literal["npz", "safetensors", "dcp", "state_dict"]


class StepLine(msgspec.Struct, frozen=True, kw_only=True):
    """One committed step. ``at`` is the wall-clock time of its first commit, seconds.

    ``new_bytes`` are in packs that no earlier step of the run (or of the run it branched from)
    has. ``urls`` are the stores that hold the step, ``pins`` the names under which it is kept for
    ever. ``problem`` says why its manifest cannot be read; the sizes are then 0.
    """

    step: int
    at: float
    generation: int
    urls: tuple[str, ...]
    manifest_key: str
    manifest_digest: str
    world_size: int = 0
    coverage: str = ""
    raw_bytes: int = 0
    stored_bytes: int = 0
    new_bytes: int = 0
    is_final: bool = False
    pins: tuple[str, ...] = ()
    problem: str = ""


class History(msgspec.Struct, frozen=True, kw_only=True):
    """A run's steps, oldest first; ``num_older`` are left out before them.

    ``origin`` is the step that a branch began from. ``unreachable`` are stores of the run's chain
    by url, with the reason; ``places`` are the names of the clouds by url.
    """

    run_id: str
    lines: tuple[StepLine, ...]
    num_older: int = 0
    origin: str | None = None
    unreachable: dict[str, str] = {}
    places: dict[str, str] = {}
    run_name: str = ""
    as_of: float = 0.0


class StepUsage(msgspec.Struct, frozen=True):
    """What a step refers to; ``only_here_bytes`` would be free if it were forgotten."""

    step: int
    raw_bytes: int
    pack_bytes: int
    only_here_bytes: int


class RunUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What a run's steps take up; ``only_here_bytes`` are in packs that no other run refers to.

    ``problems`` are steps whose manifest cannot be read, in words.
    """

    run_id: str
    steps: tuple[StepUsage, ...]
    raw_bytes: int
    pack_bytes: int
    only_here_bytes: int
    problems: tuple[str, ...] = ()


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a store holds. ``loose`` packs are referred to by no step that was read.

    ``loose_packs`` is None where they were not looked for.
    """

    url: str
    runs: tuple[RunUsage, ...]
    raw_bytes: int
    pack_bytes: int
    loose_packs: int | None = None
    loose_bytes: int = 0


class UsageReport(msgspec.Struct, frozen=True):
    """Result of ``du``: every store that was asked; names of runs by id, of clouds by url."""

    stores: tuple[Usage, ...]
    names: dict[str, str] = {}
    places: dict[str, str] = {}


class TensorDiff(msgspec.Struct, frozen=True, kw_only=True):
    """What happened to one tensor from the first step to the second.

    ``replaced`` is one whose dtype or shape differs, in words in ``note``; nothing of it is read.
    ``changed`` counts elements whose bits differ. ``norm`` is the L2 norm of the difference,
    ``relative`` that over the tensor's own: at most that when ``is_bound``, since chunks that are
    equal are not read; None when there is nothing to relate to. ``non_finite`` differences (of
    NaN or infinity) are in none of the three numbers.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    fate: Fate
    elements: int
    changed: int = 0
    norm: float = 0.0
    relative: float | None = None
    is_bound: bool = False
    max_abs: float = 0.0
    non_finite: int = 0
    note: str = ""


class LeafDiff(msgspec.Struct, frozen=True):
    """A value that is not a tensor, before and after, cut to what can be shown."""

    path: str
    before: str
    after: str


class Diff(msgspec.Struct, frozen=True, kw_only=True):
    """Two steps compared. ``shared_bytes`` are in chunks that both have, ``read_bytes`` were read.

    ``leaves`` are of the lowest rank both have; ``more_leaves`` were left out.
    """

    before: int
    after: int
    world_sizes: tuple[int, int]
    tensors: tuple[TensorDiff, ...]
    leaves: tuple[LeafDiff, ...]
    more_leaves: int
    total_bytes: int
    shared_bytes: int
    read_bytes: int


class DiffReport(msgspec.Struct, frozen=True):
    """Result of ``diff``: the two steps as people name them, and what differs."""

    before: str
    after: str
    diff: Diff


class StepCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One step verified where it lies."""

    step: int
    place: str
    ok: bool
    objects: int
    num_bytes: int
    problems: tuple[str, ...] = ()


class VerifyReport(msgspec.Struct, frozen=True, kw_only=True):
    """Result of ``verify``. Level 2 decodes every chunk, level 1 checks stored hashes only."""

    run_id: str
    run_name: str
    level: int
    checks: tuple[StepCheck, ...]


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """Result of ``restore``: a step of a run as a file or folder of another format."""

    step: str
    format: RestoreFormat
    path: str
    num_bytes: int


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """What a collection did in one store.

    ``marked`` objects are garbage found now, ``waiting`` that found earlier; a collection at
    ``due_at`` (wall clock, seconds) or later deletes them. ``spared`` were needed after all.
    ``given_up`` are steps, by run id, that cannot be read and were not to stop the collection.
    """

    url: str
    runs: int
    steps_kept: int
    marked: int = 0
    marked_bytes: int = 0
    waiting: int = 0
    waiting_bytes: int = 0
    due_at: float | None = None
    deleted: int = 0
    deleted_bytes: int = 0
    spared: int = 0
    given_up: tuple[str, ...] = ()


class GcReport(msgspec.Struct, frozen=True, kw_only=True):
    """Result of ``gc``: every store that was collected; names of clouds by url."""

    stores: tuple[Collected, ...]
    places: dict[str, str]
    is_dry_run: bool
    as_of: float


class PinReport(msgspec.Struct, frozen=True, kw_only=True):
    """Result of ``pin`` and ``unpin``: which step is kept, or no longer, by which ``names``."""

    step: str
    is_pinned: bool
    names: tuple[str, ...]
    places: tuple[str, ...]


class ForgetReport(msgspec.Struct, frozen=True, kw_only=True):
    """Result of ``forget``: the clouds whose log has the step no longer, and those where it stays
    because it is the newest there.
    """

    step: str
    places: tuple[str, ...]
    newest_in: tuple[str, ...] = ()


class StepRepair(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of a step in one store: ``whole``, ``damaged`` (``lost`` tensors cannot be read
    whole) or ``gone``; ``problem`` says why.
    """

    place: str
    step: int
    state: str
    lost: tuple[str, ...] = ()
    num_tensors: int = 0
    problem: str = ""


class RepairReport(msgspec.Struct, frozen=True, kw_only=True):
    """Result of ``repair``: objects ``healed`` from other copies, and still ``bad``, by cloud."""

    run_id: str
    run_name: str
    is_dry_run: bool
    steps: tuple[StepRepair, ...]
    healed: dict[str, tuple[str, ...]]
    bad: dict[str, tuple[str, ...]]
    num_bytes: int

    @property
    def newest_whole(self) -> int | None:
        """The newest step that can be restored; None when there is none."""
        whole = (each.step for each in self.steps if each.state == "whole")
        return max(whole, default=None)


class DiffAsk(msgspec.Struct, frozen=True, tag="diff"):
    """Compare two steps, each ``RUN@STEP``."""

    before: str
    after: str


class UsageAsk(msgspec.Struct, frozen=True, tag="du"):
    """What one run, or everything in every store of our runs, takes up."""

    run: str | None = None


class VerifyAsk(msgspec.Struct, frozen=True, tag="verify"):
    """Check ``RUN@STEP``, or every step of ``RUN``."""

    ref: str
    level: Literal[1, 2] = 2


class RestoreAsk(msgspec.Struct, frozen=True, tag="restore"):
    """Write ``RUN@STEP`` to an absolute path of this machine."""

    ref: str
    to: str
    format: RestoreFormat


class GcAsk(msgspec.Struct, frozen=True, tag="gc"):
    """Collect the stores of one run, or of all; ``is_now`` deletes without waiting a grace.

    ``without`` are ids of finished runs whose unreadable steps are given up.
    """

    run: str | None = None
    is_dry_run: bool = False
    is_now: bool = False
    without: tuple[str, ...] = ()


class PinAsk(msgspec.Struct, frozen=True, tag="pin"):
    """Keep ``RUN@STEP`` until it is unpinned; ``name`` None: a name made of run and step."""

    ref: str
    name: str | None = None


class UnpinAsk(msgspec.Struct, frozen=True, tag="unpin"):
    """Take out the pins of ``RUN@STEP``, or the one called ``name``."""

    ref: str
    name: str | None = None


class ForgetAsk(msgspec.Struct, frozen=True, tag="forget"):
    """Make ``RUN@STEP`` exist no longer; a collection then takes what only it needs."""

    ref: str


class RepairAsk(msgspec.Struct, frozen=True, tag="repair"):
    """Heal what can be healed of a run's steps, from other packs and other stores."""

    run: str
    is_dry_run: bool = False


KeepAsk = PinAsk | UnpinAsk | ForgetAsk
JobAsk = DiffAsk | UsageAsk | VerifyAsk | RestoreAsk | GcAsk | RepairAsk | KeepAsk


class BranchAsk(msgspec.Struct, frozen=True):
    """Begin a new run from ``RUN@STEP``; what is None is as the parent has it."""

    ref: str
    name: str | None = None
    seed: int | None = None
    target: str | None = None


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """A long job of the conductor. ``result`` is JSON of what its kind gives, once it is done.

    ``done`` and ``total`` are in ``unit``; a ``total`` of 0 means not known yet.
    """

    job_id: str
    kind: str
    title: str
    state: JobState
    started_at: float
    done: int = 0
    total: int = 0
    unit: str = "bytes"
    ended_at: float | None = None
    error: Problem | None = None
    result: msgspec.Raw = msgspec.Raw(b"null")
    as_of: float = 0.0
