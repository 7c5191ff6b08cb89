"""Pins and holds: what a collection must leave alone although no commit needs it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

import msgspec

from cloudshift_lab.checkpoint.layout import blake3_hex, step_dir
from cloudshift_lab.core.errors import Conflict, NotFound, UsageError
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.core.world import REAL_WORLD, World
from cloudshift_lab.storage.log import LogRecord, LogState, RunLog
from cloudshift_lab.storage.store import Store

PINS = "pins"
HOLDS = "holds"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Pin(msgspec.Struct, frozen=True):
    """``pins/<name>.json``: a committed step whose objects stay, and which retention spares.

    ``checked`` once the log was seen to have the step after the pin was there: before that, a
    sweep may be under way that did not see the pin.
    """

    name: str
    run_id: str
    step: int
    manifest_key: str
    manifest_digest: str
    at: float
    checked: bool = False


class Hold(msgspec.Struct, frozen=True):
    """``holds/<run>/<hash>.json``: objects that a copy into this store brings before its commit.

    ``generation`` is that of the attempt which will own the run here if the move succeeds.
    """

    run_id: str
    generation: int
    keys: tuple[str, ...]

    def is_over(self, log: LogState) -> bool:
        """Whether the run's log here has taken over the guard, or the move cannot end here."""
        is_committed = any(c.generation >= self.generation for c in log.commits)
        return is_committed or log.generation > self.generation


def pin(store: Store, name: str, run_id: str, step: int, *, world: World = REAL_WORLD) -> Pin:
    """Keep a committed step for good, until ``unpin``.

    The order makes it safe beside a collection: the pin is written, then the log is read. A step
    that the log still has then was not marked before, or its mark spares what is pinned.

    Raises:
        UsageError: A name that cannot be part of a key.
        NotFound: The run has no such step (any more); nothing stays pinned.
        Conflict: The name is taken by another step.
    """
    commit = _commit_of(store, run_id, step, world)
    made = Pin(
        name, run_id, step, commit.manifest_key or "", commit.manifest_digest or "", world.now()
    )
    key = pin_key(name)
    if not store.create(key, to_json(made)):
        there = from_json(store.get(key), Pin, what=f"{store.url}/{key}")
        if (there.run_id, there.manifest_key) != (made.run_id, made.manifest_key):
            raise Conflict(
                f"pin '{name}' holds step {there.step} of run {there.run_id}; "
                "unpin it or choose another name"
            )
        if there.checked:
            return there
    try:
        _commit_of(store, run_id, step, world)
    except NotFound:
        store.delete(key)
        raise
    checked = msgspec.structs.replace(made, checked=True)
    store.put(key, to_json(checked))
    return checked


def unpin(store: Store, name: str) -> None:
    """Let a pinned step go; a pin that is not there is no error."""
    store.delete(pin_key(name))


def list_pins(store: Store, run_id: str | None = None) -> tuple[Pin, ...]:
    """All pins, or those on steps of one run.

    Raises:
        Corrupt: A pin cannot be read; a collection then refuses to delete.
    """
    pins = tuple(from_json(body, Pin, what=key) for key, body in _bodies(store, PINS))
    return tuple(found for found in pins if run_id in (None, found.run_id))


def pin_key(name: str) -> str:
    """Where a pin lies.

    Raises:
        UsageError: The name cannot be part of a key.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{name[:80]}' cannot name a pin; use letters, digits, '.', '_' and '-'")
    return f"{PINS}/{name}.json"


def place_hold(store: Store, run_id: str, generation: int, keys: Collection[str]) -> Hold:
    """Write a hold; ``tombs.hold`` does this and also stops deletions that are on their way."""
    made = Hold(run_id, generation, tuple(sorted(keys)))
    body = to_json(made)
    store.put(f"{_holds_of(run_id)}/{blake3_hex(body)}.json", body)
    return made


def release_holds(store: Store, run_id: str, generation: int) -> None:
    """Let go what a move that was cancelled had copied; only after ``cancel`` is in the log.

    After a move that succeeded nothing needs to be done: a collection sees its commit.
    """
    for key, body in list(_bodies(store, _holds_of(run_id))):
        if from_json(body, Hold, what=key).generation <= generation:
            store.delete(key)


def list_holds(store: Store) -> tuple[tuple[str, Hold], ...]:
    """All holds with their keys.

    Raises:
        Corrupt: A hold cannot be read; a collection then refuses to delete.
    """
    return tuple((key, from_json(body, Hold, what=key)) for key, body in _bodies(store, HOLDS))


def _holds_of(run_id: str) -> str:
    step_dir(run_id, 0, 0)
    return f"{HOLDS}/{run_id}"


def _bodies(store: Store, prefix: str) -> Iterator[tuple[str, bytes]]:
    """Objects below a prefix; one that vanishes after it was listed is left out."""
    for key in _json_keys(store.list(prefix)):
        try:
            yield key, store.get(key)
        except NotFound:
            continue


def _json_keys(keys: Iterable[str]) -> list[str]:
    return [key for key in keys if key.endswith(".json")]


def _commit_of(store: Store, run_id: str, step: int, world: World) -> LogRecord:
    commits = RunLog(store, run_id, world).sync().commits
    found = [commit for commit in commits if commit.step == step]
    if not found:
        raise NotFound(
            f"run '{run_id}' has no step {step} in {store.url} (any more); "
            "see `cloudshift log` for those it has"
        )
    return found[-1]
