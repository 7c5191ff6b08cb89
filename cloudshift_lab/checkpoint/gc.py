"""Garbage collection: mark, wait, announce, look again, sweep (PROTOCOL.md section 9).

Safety never rests on a clock: a save begun before a sweep is refused by the run log, a copy holds
what it brings, a pin counts from before it is checked. The grace only spares saves a repetition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from cloudshift_lab.checkpoint.layout import (
    Manifest,
    fetch_verified,
    pack_key,
    parse_document,
    parse_manifest_key,
)
from cloudshift_lab.checkpoint.pins import (
    Hold,
    Pin,
    list_holds,
    list_pins,
    pin,
    release_holds,
    unpin,
)
from cloudshift_lab.checkpoint.tombs import (
    GC,
    Swept,
    Tombstone,
    Verdict,
    decide,
    doomed_keys,
    hold,
    open_tombstones,
    pack_of,
    step_of,
    swept_key,
    tomb_ids,
    tombstone_key,
    tombstoned,
    verdict_key,
    verdict_of,
)
from cloudshift_lab.core.errors import Corrupt, NotFound
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.core.world import REAL_WORLD, World
from cloudshift_lab.storage.fanout import fan_out
from cloudshift_lab.storage.log import LogRecord, LogState, RunLog
from cloudshift_lab.storage.logstate import commits_at
from cloudshift_lab.storage.store import Store

__all__ = [
    "GRACE_S",
    "SAVE_WITHIN_S",
    "GcReport",
    "Hold",
    "Pin",
    "Tombstone",
    "collect",
    "hold",
    "list_pins",
    "mark",
    "pin",
    "release_holds",
    "sweep",
    "tombstoned",
    "unpin",
]

GRACE_S = 3600.0
SAVE_WITHIN_S = GRACE_S / 2
_BATCH = 32
Progress = Callable[[int, int], None]


class GcReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one collection did.

    ``marked`` objects of ``marked_bytes`` are garbage and will be deleted by a collection that
    runs at ``due_at`` (wall clock) or later; ``deleted`` are gone, ``spared`` were needed again.
    """

    dry_run: bool = False
    marked: int = 0
    marked_bytes: int = 0
    waiting: int = 0
    waiting_bytes: int = 0
    due_at: float | None = None
    deleted: int = 0
    deleted_bytes: int = 0
    spared: int = 0
    steps_kept: int = 0
    runs: int = 0


class _Guards(NamedTuple):
    """Pins and holds. Read before the logs: whoever lets one go has its commit in a log by then."""

    pins: tuple[Pin, ...]
    holds: tuple[Hold, ...]


class _Roots(NamedTuple):
    """What commits, pins and holds keep alive: packs and held objects by key, steps by folder."""

    states: Mapping[str, LogState]
    packs: frozenset[str]
    folders: frozenset[str]
    held: frozenset[str]
    num_steps: int

    def keeps(self, key: str) -> bool:
        """Whether a key is reached from a root, or is none that may ever be collected."""
        if key in self.held:
            return True
        if pack_of(key) is not None:
            return key in self.packs
        place = step_of(key)
        if place is None or key.rpartition("/")[0] in self.folders:
            return True
        run_id, step, generation = place
        return not _is_left_over(self.states.get(run_id, LogState()), step, generation)


def collect(
    store: Store, *, world: World = REAL_WORLD, grace_s: float = GRACE_S,
    linger_s: float | None = None, dry_run: bool = False, concurrency: int = 8,
    progress: Progress | None = None,
) -> GcReport:  # fmt: skip
    """Mark what nothing refers to, and sweep what was marked a grace ago. Safe beside everything.

    Run it again whenever it was interrupted: every line may be the last one.

    Args:
        store: What to collect, with all runs in it.
        world: Clock and nonces.
        grace_s: Seconds between marking and sweeping; less only makes running saves repeat.
        linger_s: Seconds that a tombstone warns after its sweep, longer than any request may take
            effect after it was sent; None: ``GRACE_S``.
        dry_run: Only say what is garbage.
        concurrency: Requests at a time.
        progress: Called with objects deleted and objects to delete.

    Raises:
        Corrupt: A log, a manifest, a pin, a hold or a tombstone cannot be read: nothing more was
            deleted.
        Unavailable, Denied: As the store reported; run it again.
    """
    tombs = list(open_tombstones(store))
    if dry_run:
        found = _garbage(store, world, concurrency)
        return _report(found, tombs, grace_s=grace_s, dry_run=True)
    due = [t for t in tombs if world.now() - t.at >= grace_s and not _is_swept(store, t.id)]
    done = [sweep(store, t, world=world, concurrency=concurrency, progress=progress) for t in due]
    _bury(store, world, GRACE_S if linger_s is None else linger_s)
    made = mark(store, world=world, concurrency=concurrency)
    if made.tomb is not None and grace_s <= 0:
        done.append(
            sweep(store, made.tomb, world=world, concurrency=concurrency, progress=progress)
        )
    waiting = [tomb for tomb in tombs if tomb not in due and not _is_swept(store, tomb.id)]
    return _report(made, waiting, grace_s=grace_s, done=done)


class Swath(NamedTuple):
    """What one sweep did: objects and bytes deleted, objects that were needed after all."""

    deleted: int
    num_bytes: int
    spared: int


class Marked(NamedTuple):
    """Garbage found; ``tomb`` is None when there is none."""

    tomb: Tombstone | None
    runs: int
    num_steps: int


def mark(store: Store, *, world: World = REAL_WORLD, concurrency: int = 8) -> Marked:
    """Write a tombstone over what nothing refers to and no other tombstone names.

    Raises:
        Corrupt: Something that may refer to objects cannot be read.
        Unavailable, Denied: As the store reported.
    """
    found = _garbage(store, world, concurrency)
    if found.tomb is not None:
        store.put(tombstone_key(found.tomb.id), to_json(found.tomb))
    return found


def _garbage(store: Store, world: World, concurrency: int) -> Marked:
    """Objects first, logs afterwards: what is committed meanwhile is then not called garbage."""
    known = {key for tomb in open_tombstones(store) for key in doomed_keys(store, tomb)}
    listed = [*store.list("packs"), *store.list("runs")]
    guards = _guards(store)
    runs = _runs(listed)
    states = dict(
        zip(runs, fan_out(lambda r: RunLog(store, r, world).sync(), runs, concurrency), strict=True)
    )
    commits = {run: state.commits for run, state in states.items()}
    logs = _read_roots(store, states, commits, guards, concurrency=concurrency)
    keys = sorted((k for k in listed if k not in known and not logs.keeps(k)), key=_top_down)
    if not keys:
        return Marked(None, len(states), logs.num_steps)
    sizes = fan_out(store.size, keys, concurrency)
    tomb = Tombstone(
        id=world.new_id("gc"), at=world.now(), keys=tuple(keys),
        sizes=tuple(size or 0 for size in sizes),
        logs={run: state.next_seq for run, state in states.items()},
    )  # fmt: skip
    return Marked(tomb, len(states), logs.num_steps)


def sweep(
    store: Store, tomb: Tombstone, *, world: World = REAL_WORLD, concurrency: int = 8,
    progress: Progress | None = None,
) -> Swath:  # fmt: skip
    """Delete what a tombstone names, except what is needed after all. Safe to repeat and to race.

    Args:
        store: Where.
        tomb: As read from the store, so that it is there for writers to see.
        world: Nonces.
        concurrency: Deletes at a time.
        progress: Called with objects deleted and objects to delete.

    Raises:
        Corrupt: Something that may refer to objects cannot be read; nothing was deleted.
        Unavailable, Denied: As the store reported; sweep again.
    """
    verdict = verdict_of(store, tomb.id) or _judge(store, tomb, world, concurrency)
    if verdict.kind == "cancelled":
        _remove(store, tomb.id)
        return Swath(0, 0, len(tomb.keys))
    spared = set(verdict.spared)
    doomed = [key for key in tomb.keys if key not in spared]
    for start in range(0, len(doomed), _BATCH):
        if store.size(tombstone_key(tomb.id)) is None or _is_swept(store, tomb.id):
            return Swath(0, 0, len(spared))  # another collector was faster
        fan_out(store.delete, doomed[start : start + _BATCH], concurrency)
        if progress is not None:
            progress(min(start + _BATCH, len(doomed)), len(doomed))
    store.put(swept_key(tomb.id), to_json(Swept(tomb.id, world.now())))
    num_bytes = sum(n for k, n in zip(tomb.keys, tomb.sizes, strict=True) if k not in spared)
    return Swath(len(doomed), num_bytes, len(spared))


def _judge(store: Store, tomb: Tombstone, world: World, concurrency: int) -> Verdict:
    """Announce the sweep to every owner, then look again at everything that may need an object.

    What was forgotten since the marking counts as alive: somebody may refer to it since then.
    """
    guards = _guards(store)
    runs = _runs(store.list("runs"))
    states = dict(
        zip(
            runs,
            fan_out(lambda run: _announce(store, run, tomb.id, world), runs, concurrency),
            strict=True,
        )
    )
    commits = {
        run: commits_at(state.records, forgets_before=tomb.logs.get(run, 0))
        for run, state in states.items()
    }
    logs = _read_roots(store, states, commits, guards, concurrency=concurrency)
    spared = tuple(key for key in tomb.keys if logs.keeps(key))
    return decide(store, Verdict(tomb.id, "sweep", world.new_id("verdict"), spared))


def _announce(store: Store, run_id: str, tomb_id: str, world: World) -> LogState:
    """Tell a run's owner, if it has one here. Who acquires later reads the tombstone anyway."""
    log = RunLog(store, run_id, world)
    state = log.sync()
    if state.owner is None or state.home_url not in (None, store.url):
        return state
    return log.sweep(collection=tomb_id, nonce=world.new_id("sweep"))


def _guards(store: Store) -> _Guards:
    return _Guards(list_pins(store), tuple(hold for _, hold in list_holds(store)))


def _read_roots(
    store: Store, states: Mapping[str, LogState], commits: Mapping[str, Sequence[LogRecord]],
    guards: _Guards, *, concurrency: int,
) -> _Roots:  # fmt: skip
    """Follow every commit and every pin to what it needs."""
    named = {
        (run_id, str(commit.manifest_key), str(commit.manifest_digest))
        for run_id, listed in commits.items()
        for commit in listed
    }
    named |= {(p.run_id, p.manifest_key, p.manifest_digest) for p in guards.pins}
    roots = sorted(named)
    manifests = fan_out(lambda root: _manifest(store, *root), roots, concurrency)
    packs = (pack_key(pack.blake3) for manifest in manifests for pack in manifest.packs)
    folders = (parse_manifest_key(*root).prefix for root in roots)
    holds = (hold for hold in guards.holds if not hold.is_over(states.get(hold.run_id, LogState())))
    held = (key for hold in holds for key in hold.keys)
    return _Roots(states, frozenset(packs), frozenset(folders), frozenset(held), len(roots))


def _manifest(store: Store, run_id: str, key: str, digest: str) -> Manifest:
    """A root's manifest; one that cannot be read stops the collection, it may need anything."""
    try:
        place = parse_manifest_key(run_id, key, digest)
        manifest = parse_document(fetch_verified(store, key, digest), Manifest, key)
        if (manifest.run_id, manifest.step, manifest.generation) != place:
            raise Corrupt(f"{key} is the manifest of another step", key=key)
    except (Corrupt, NotFound) as error:
        raise Corrupt(
            f"nothing was collected: {error.message}; repair run {run_id}, or forget that step",
            key=key, run=run_id,
        ) from error  # fmt: skip
    return manifest


def _is_left_over(log: LogState, step: int, generation: int) -> bool:
    """Whether no owner, present or future, can still commit an uncommitted step's objects.

    A running save may write these very names again, for it cannot choose others: what the present
    generation is saving, at or after the newest commit, is never touched.
    """
    newest = log.last_commit
    is_behind = newest is not None and step < (newest.step or 0)
    return is_behind or generation < log.generation


def _runs(listed: Iterable[str]) -> list[str]:
    parts = (key.split("/", 2) for key in listed)
    return sorted({part[1] for part in parts if len(part) == 3 and part[0] == "runs"})


def _top_down(key: str) -> tuple[int, str]:
    """Manifests, records, chunk tables, packs: nothing that is left ever points at what is gone."""
    name = key.rpartition("/")[2]
    if pack_of(key) is not None:
        return 3, key
    return (0 if name.startswith("manifest.") else 2 if name.endswith(".index") else 1), key


def _is_swept(store: Store, tomb_id: str) -> bool:
    return store.size(swept_key(tomb_id)) is not None


def _bury(store: Store, world: World, linger_s: float) -> None:
    """Remove tombstones that are swept for long, or cancelled, and holds that are over."""
    listing = store.list(GC)
    for tomb_id in tomb_ids(listing, ".swept"):
        body = store.get(swept_key(tomb_id))
        if world.now() - from_json(body, Swept, what=tomb_id).at >= linger_s:
            _remove(store, tomb_id)
    present = set(tomb_ids(listing))
    for tomb_id in set(tomb_ids(listing, ".verdict")) - present:
        _remove(store, tomb_id)
    for key, found in list_holds(store):
        if found.is_over(RunLog(store, found.run_id, world).sync()):
            store.delete(key)


def _remove(store: Store, tomb_id: str) -> None:
    """The tombstone goes first: without it neither of the others says anything."""
    for key in (tombstone_key(tomb_id), swept_key(tomb_id), verdict_key(tomb_id)):
        store.delete(key)


def _report(
    found: Marked, waiting: Iterable[Tombstone], *, grace_s: float, dry_run: bool = False,
    done: Iterable[Swath] = (),
) -> GcReport:  # fmt: skip
    marked = () if found.tomb is None else (found.tomb,)
    pending = tuple(waiting)
    swept = tuple(done)
    is_left = grace_s > 0 and not dry_run
    return GcReport(
        dry_run=dry_run,
        marked=sum(len(tomb.keys) for tomb in marked),
        marked_bytes=sum(tomb.num_bytes for tomb in marked),
        waiting=sum(len(tomb.keys) for tomb in pending),
        waiting_bytes=sum(tomb.num_bytes for tomb in pending),
        due_at=min(
            (t.at + grace_s for t in (*pending, *(marked if is_left else ()))), default=None
        ),
        deleted=sum(swath.deleted for swath in swept),
        deleted_bytes=sum(swath.num_bytes for swath in swept),
        spared=sum(swath.spared for swath in swept),
        steps_kept=found.num_steps,
        runs=found.runs,
    )
