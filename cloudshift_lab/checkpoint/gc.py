"""Garbage collection: mark, wait, announce, look again, sweep (PROTOCOL.md section 9).

Safety never rests on a clock: a save begun before a sweep is refused by the run log, a copy holds
what it brings, a pin counts from before it is checked. The grace only spares saves a repetition.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

import msgspec

from cloudshift_lab.checkpoint.pins import (
    Hold,
    Pin,
    list_holds,
    list_pins,
    pin,
    release_holds,
    unpin,
)
from cloudshift_lab.checkpoint.roots import Roots, is_finished, read_guards, runs_of
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
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.core.world import REAL_WORLD, World
from cloudshift_lab.storage.fanout import fan_out
from cloudshift_lab.storage.log import LogState, RunLog
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
    ``given_up`` are steps (``run@step``) of finished runs that nobody can read any more, which
    kept what their records still name and no more.
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
    given_up: tuple[str, ...] = ()


def collect(
    store: Store, *, world: World = REAL_WORLD, grace_s: float = GRACE_S,
    linger_s: float | None = None, dry_run: bool = False, concurrency: int = 8,
    progress: Progress | None = None, without: Collection[str] = (),
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
        without: Ids of finished runs whose unreadable steps must not stop the collection; of such
            a step only what its records name is kept, the rest is lost for good.

    Raises:
        Corrupt: A log, a manifest, a pin, a hold or a tombstone cannot be read: nothing more was
            deleted.
        Unavailable, Denied: As the store reported; run it again.
    """
    tombs = list(open_tombstones(store))
    work = Roots(store, world, concurrency, frozenset(without))
    if dry_run:
        return _report(_garbage(work), tombs, work, grace_s=grace_s, dry_run=True)
    due = [t for t in tombs if world.now() - t.at >= grace_s and not _is_swept(store, t.id)]
    done = [_sweep(work, tomb, progress) for tomb in due]
    _bury(store, world, GRACE_S if linger_s is None else linger_s)
    made = _mark(work)
    if made.tomb is not None and grace_s <= 0:
        done.append(_sweep(work, made.tomb, progress))
    waiting = [tomb for tomb in tombs if tomb not in due and not _is_swept(store, tomb.id)]
    return _report(made, waiting, work, grace_s=grace_s, done=done)


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
    return _mark(Roots(store, world, concurrency, frozenset()))


def _mark(work: Roots) -> Marked:
    found = _garbage(work)
    if found.tomb is not None:
        work.store.put(tombstone_key(found.tomb.id), to_json(found.tomb))
    return found


def _garbage(work: Roots) -> Marked:
    """Objects first, logs afterwards: what is committed meanwhile is then not called garbage."""
    store, world = work.store, work.world
    known = {key for tomb in open_tombstones(store) for key in doomed_keys(store, tomb)}
    listed = [*store.list("packs"), *store.list("runs")]
    guards = read_guards(store)
    states = work.read_logs(runs_of(listed))
    alive = work.follow(states, guards)
    keys = sorted((k for k in listed if k not in known and not alive.keeps(k)), key=_top_down)
    if not keys:
        return Marked(None, len(states), alive.num_steps)
    sizes = fan_out(store.size, keys, work.concurrency)
    tomb = Tombstone(
        id=world.new_id("gc"), at=world.now(), keys=tuple(keys),
        sizes=tuple(size or 0 for size in sizes),
        logs={run: state.next_seq for run, state in states.items()},
    )  # fmt: skip
    return Marked(tomb, len(states), alive.num_steps)


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
    return _sweep(Roots(store, world, concurrency, frozenset()), tomb, progress)


def _sweep(work: Roots, tomb: Tombstone, progress: Progress | None) -> Swath:
    store, begun = work.store, verdict_of(work.store, tomb.id)
    verdict = begun or _judge(work, tomb)
    if verdict.kind == "cancelled":
        _remove(store, tomb.id)
        return Swath(0, 0, len(tomb.keys))
    spared = set(verdict.spared)
    doomed = [key for key in tomb.keys if key not in spared]
    if begun is not None:
        doomed = _still_there(store, doomed)
    for start in range(0, len(doomed), _BATCH):
        if store.size(tombstone_key(tomb.id)) is None or _is_swept(store, tomb.id):
            return Swath(0, 0, len(spared))  # another collector was faster
        fan_out(store.delete, doomed[start : start + _BATCH], work.concurrency)
        if progress is not None:
            progress(min(start + _BATCH, len(doomed)), len(doomed))
    store.put(swept_key(tomb.id), to_json(Swept(tomb.id, work.world.now())))
    gone = set(doomed)
    num_bytes = sum(n for k, n in zip(tomb.keys, tomb.sizes, strict=True) if k in gone)
    return Swath(len(doomed), num_bytes, len(spared))


def _still_there(store: Store, doomed: Sequence[str]) -> list[str]:
    """What a collection that was ended has left of its deletes, found by listing, not by asking."""
    places = {step_of(key) for key in doomed} - {None}
    folders = ["packs", *sorted({f"runs/{place[0]}/steps" for place in places if place})]
    left = {key for folder in folders for key in store.list(folder)}
    return [key for key in doomed if key in left]


def _judge(work: Roots, tomb: Tombstone) -> Verdict:
    """Announce the sweep to every owner, then look again at everything that may need an object.

    What was forgotten since the marking counts as alive: somebody may refer to it since then.
    Manifests are read before anybody is told, and afterwards only those that are new: a collection
    that is ended while it reads, or cannot read one, has then cost no save anything.
    """
    store = work.store
    work.follow(work.read_logs(runs_of(store.list("runs"))), read_guards(store), tomb.logs)
    guards = read_guards(store)
    runs = runs_of(store.list("runs"))
    told = work.read_logs(runs, lambda run: _announce(store, run, tomb.id, work.world))
    alive = work.follow(told, guards, tomb.logs)
    spared = tuple(key for key in tomb.keys if alive.keeps(key))
    return decide(store, Verdict(tomb.id, "sweep", work.world.new_id("verdict"), spared))


def _announce(store: Store, run_id: str, tomb_id: str, world: World) -> LogState:
    """Tell a run's owner, if it has one here. Who acquires later reads the tombstone anyway.

    A log is told of one tombstone once, however often its sweep is begun: whoever began to save
    after that record has seen the tombstone. Returns the log as it is now, not as it was then.
    """
    log = RunLog(store, run_id, world)
    state = log.sync()
    if is_finished(state, store):
        return state
    return log.sweep(collection=tomb_id, nonce=f"sweep-{tomb_id}")


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
    found: Marked, waiting: Iterable[Tombstone], work: Roots, *, grace_s: float,
    dry_run: bool = False, done: Iterable[Swath] = (),
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
        given_up=tuple(f"{run}@{step}" for run, step in sorted(work.given_up)),
    )
