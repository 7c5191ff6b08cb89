"""Tombstones: what a collection is about to delete, said before it does, and who may call it off.

gc/<id>.json           the tombstone: keys that nothing referred to when it was written
gc/<id>.verdict.json   create-if-absent: "sweep" (with what is spared after all) or "cancelled"
gc/<id>.swept.json     every delete has been answered; the tombstone still warns for a while
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Literal

import msgspec

from cloudshift_lab.checkpoint.pins import place_hold
from cloudshift_lab.core.errors import Corrupt, NotFound, Unavailable
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.core.world import REAL_WORLD, World
from cloudshift_lab.storage.store import MAX_CREATE_BYTES, Store

GC = "gc"
_FILE = re.compile(r"gc/(?P<id>[A-Za-z0-9-]{1,64})(?P<part>|\.verdict|\.swept)\.json")
_PACK = re.compile(r"packs/[0-9a-f]{2}/(?P<hash>[0-9a-f]{64})\.pack")
_STEP = re.compile(
    r"runs/(?P<run>[A-Za-z0-9][A-Za-z0-9._-]{0,127})/steps/(?P<step>[0-9]{8,18})/g(?P<generation>[0-9]{1,18})"
    r"/[A-Za-z0-9_.-]+"
)
_SPARED_BYTES = MAX_CREATE_BYTES - 1000


class Tombstone(msgspec.Struct, frozen=True):
    """Garbage at one moment, with its ``sizes`` in bytes.

    ``logs``: how many records each run's log had when it was read.
    """

    id: str
    at: float
    keys: tuple[str, ...]
    sizes: tuple[int, ...]
    logs: dict[str, int]

    @property
    def num_bytes(self) -> int:
        return sum(self.sizes)


class Verdict(msgspec.Struct, frozen=True):
    """What becomes of a tombstone; the first one written counts."""

    id: str
    kind: Literal["sweep", "cancelled"]
    nonce: str
    spared: tuple[str, ...] = ()


class Swept(msgspec.Struct, frozen=True):
    """All deletes of a tombstone were answered at ``at``, wall clock."""

    id: str
    at: float


def pack_of(key: str) -> str | None:
    """The hash of the pack that a key names; None for any other key."""
    match = _PACK.fullmatch(key)
    return None if match is None else match["hash"]


def step_of(key: str) -> tuple[str, int, int] | None:
    """Run, step and generation of an object of a step; None for any other key."""
    match = _STEP.fullmatch(key)
    return None if match is None else (match["run"], int(match["step"]), int(match["generation"]))


def tombstone_key(tomb_id: str) -> str:
    """Where a tombstone lies."""
    return f"{GC}/{tomb_id}.json"


def verdict_key(tomb_id: str) -> str:
    """Where its verdict lies."""
    return f"{GC}/{tomb_id}.verdict.json"


def swept_key(tomb_id: str) -> str:
    """Where it is said that all its deletes were answered."""
    return f"{GC}/{tomb_id}.swept.json"


def tombstoned(store: Store) -> frozenset[str]:
    """Hashes of packs that are, or may be, about to be deleted from a store.

    A writer reads this when a save begins, neither reuses nor writes these packs, and commits with
    ``since``. Who copies into a store uses ``hold`` instead: a copy cannot choose other names.

    Raises:
        Corrupt: A tombstone cannot be read; then no save may begin.
        Unavailable, Denied: As the store reported.
    """
    doomed = (key for tomb in open_tombstones(store) for key in doomed_keys(store, tomb))
    return frozenset(pack for key in doomed if (pack := pack_of(key)) is not None)


def hold(
    store: Store, run_id: str, generation: int, keys: Collection[str], *, world: World = REAL_WORLD
) -> None:
    """Guard what a copy brings into a store until its commit lands there; safe to repeat.

    Call it before anything is copied or found to be there already, with every key of the step.
    The hold is written first, then tombstones are read: a collection that did not see the hold
    has its tombstone there to be seen, and is called off, or has begun and is waited for.

    Args:
        store: Where the copy goes.
        run_id: Whose state.
        generation: Of the attempt that is to own the run there.
        keys: Packs, chunk tables, records and manifest.
        world: Nonces.

    Raises:
        Unavailable: Some of it is being deleted there right now; try again later.
    """
    place_hold(store, run_id, generation, keys)
    wanted = set(keys)
    for tomb in open_tombstones(store):
        if wanted.isdisjoint(tomb.keys):
            continue
        verdict = decide(store, Verdict(tomb.id, "cancelled", world.new_id("cancel")))
        if verdict.kind == "sweep" and not wanted.isdisjoint(set(tomb.keys) - set(verdict.spared)):
            raise Unavailable(
                f"{store.url} is deleting objects that this copy needs; "
                "it is tried again once that is done"
            )


def decide(store: Store, wanted: Verdict) -> Verdict:
    """Give a tombstone its verdict; returns the one that counts, which may be somebody else's.

    Raises:
        Unavailable: Unknown whether it landed; deciding again tells.
    """
    body = to_json(wanted)
    if len(body) > _SPARED_BYTES:
        body = to_json(Verdict(wanted.id, "cancelled", wanted.nonce))
    store.create(verdict_key(wanted.id), body)
    found = verdict_of(store, wanted.id)
    if found is None:
        raise Unavailable(f"{store.url} lost a verdict that it had taken; run the collection again")
    return found


def verdict_of(store: Store, tomb_id: str) -> Verdict | None:
    """The verdict on a tombstone; None while there is none."""
    key = verdict_key(tomb_id)
    try:
        return from_json(store.get(key), Verdict, what=f"{store.url}/{key}")
    except NotFound:
        return None


def doomed_keys(store: Store, tomb: Tombstone) -> tuple[str, ...]:
    """What a tombstone may still take; nothing once it is cancelled."""
    verdict = verdict_of(store, tomb.id)
    if verdict is None:
        return tomb.keys
    spared = set(verdict.spared)
    return () if verdict.kind == "cancelled" else tuple(k for k in tomb.keys if k not in spared)


def open_tombstones(store: Store) -> Iterator[Tombstone]:
    """Every tombstone there is; one that goes away meanwhile is left out.

    Raises:
        Corrupt: One cannot be read, or names what no collection may delete.
    """
    for tomb_id in tomb_ids(store.list(GC)):
        key = tombstone_key(tomb_id)
        try:
            tomb = from_json(store.get(key), Tombstone, what=f"{store.url}/{key}")
        except NotFound:
            continue
        if (
            tomb.id != tomb_id
            or len(tomb.keys) != len(tomb.sizes)
            or not all(pack_of(k) or step_of(k) for k in tomb.keys)
        ):
            raise Corrupt(f"{store.url}/{key} is no tombstone of ours; delete it", key=key)
        yield tomb


def tomb_ids(listing: Collection[str], part: str = "") -> tuple[str, ...]:
    """Ids of the tombstones (or ``.verdict`` or ``.swept`` documents) in a listing of ``gc``."""
    matches = (_FILE.fullmatch(key) for key in listing)
    return tuple(m["id"] for m in matches if m is not None and m["part"] == part)
