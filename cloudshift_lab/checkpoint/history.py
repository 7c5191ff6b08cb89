"""The steps of a run along its chain of logs, and what runs and steps take up in a store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from cloudshift_lab.checkpoint.layout import (
    Manifest,
    ObjectRef,
    fetch_verified,
    parse_document,
)
from cloudshift_lab.core.errors import CloudshiftError, NotFound
from cloudshift_lab.core.steps import History, RunUsage, StepLine, StepUsage, Usage
from cloudshift_lab.core.wire import from_json
from cloudshift_lab.storage.fanout import fan_out
from cloudshift_lab.storage.log import LogRecord, LogState, RunLog
from cloudshift_lab.storage.store import Store

CONCURRENCY = 8
_LOOK_BACK = 8  # steps before the first one shown, to tell which of its packs are new
OpenStore = Callable[[str], Store]
"""Opens the store at a url that a log names."""
Progress = Callable[[int, int], None]


class Origin(msgspec.Struct, frozen=True):
    """Content of ``runs/<run>/origin.json``: the step of another run that a branch began from."""

    run_id: str
    step: int
    manifest_digest: str
    packs: tuple[ObjectRef, ...] = ()

    @property
    def ref(self) -> str:
        """As people type it: ``run-1@400``."""
        return f"{self.run_id}@{self.step}"


class _Seen(NamedTuple):
    """A commit, the stores that hold it, and its manifest or why there is none."""

    record: LogRecord
    stores: list[Store]
    manifest: Manifest | None = None
    problem: str = ""


def origin_key(run_id: str) -> str:
    """Where a branch says what it began from."""
    return f"runs/{run_id}/origin.json"


def read_origin(store: Store, run_id: str) -> Origin | None:
    """What a run branched from; None for one that began by itself.

    Raises:
        Corrupt: The object is damaged.
    """
    key = origin_key(run_id)
    try:
        return from_json(store.get(key), Origin, what=f"{store.url}/{key}")
    except NotFound:
        return None


def history(
    store: Store, run_id: str, *, open_store: OpenStore | None = None, last: int | None = None
) -> History:
    """All committed steps of a run, also those in stores that it has moved away from.

    Args:
        store: Any store of the run's chain.
        run_id: Which run.
        open_store: Opens the other stores of the chain; None: they are left out.
        last: The newest so many only.

    Raises:
        NotFound: The store has no log of this run.
        Corrupt: Its log is damaged.
        Unavailable, Denied: As the store reported.
    """
    logs, unreachable = _chain(store, run_id, open_store)
    if not any(state.records for _, state in logs):
        raise NotFound(f"{store.url} holds no log of '{run_id}'; check the run id and the store")
    commits = _merge(logs)
    num_shown = len(commits) if last is None else min(last, len(commits))
    first = len(commits) - num_shown
    read = _read_manifests(commits[max(0, first - _LOOK_BACK) :])
    earlier = read[: len(read) - num_shown]
    origin = next((found for each, _ in logs if (found := read_origin(each, run_id))), None)
    known = _packs(earlier) | set(() if origin is None else origin.packs)
    lines = []
    for seen in read[len(earlier) :]:
        lines.append(_line(seen, known))
        known |= _packs([seen])
    return History(
        run_id=run_id,
        lines=tuple(lines),
        num_older=first,
        origin=None if origin is None else origin.ref,
        unreachable=unreachable,
    )


def run_ids(store: Store) -> tuple[str, ...]:
    """Every run that has a log in a store, sorted as people count."""
    found = {key.split("/")[1] for key in store.list("runs") if "/log/" in key}
    return tuple(sorted(found, key=lambda name: (len(name), name)))


def du(store: Store, run_id: str | None = None, *, progress: Progress | None = None) -> Usage:
    """What the runs of a store take up, shared packs counted once.

    Args:
        store: Which.
        run_id: Show this run only; what it shares with the others is looked up all the same.
        progress: Called with runs read and runs in all; may raise to stop.

    Raises:
        NotFound: The store has no such run.
        Corrupt: A log is damaged.
        Unavailable, Denied: As the store reported.
    """
    names = run_ids(store)
    if run_id is not None and run_id not in names:
        raise NotFound(f"{store.url} holds no log of '{run_id}'; check the run id and the store")
    read: dict[str, list[_Seen]] = {}
    for number, name in enumerate(names):
        if progress is not None:
            progress(number, len(names))
        state = RunLog(store, name).sync()
        read[name] = _read_manifests(_merge([(store, state)]))
    packs = {name: _packs(seen) for name, seen in read.items()}
    shown = names if run_id is None else (run_id,)
    everything = set().union(*packs.values()) if packs else set()
    loose = _loose(store, {pack.blake3 for pack in everything}) if run_id is None else None
    runs = tuple(_run_usage(name, read[name], _others(packs, name)) for name in shown)
    return Usage(
        url=store.url,
        runs=runs,
        raw_bytes=sum(run.raw_bytes for run in runs),
        pack_bytes=_size(set().union(*(packs[name] for name in shown)) if shown else set()),
        loose_packs=None if loose is None else len(loose),
        loose_bytes=0 if loose is None else sum(loose.values()),
    )


def _chain(
    store: Store, run_id: str, open_store: OpenStore | None
) -> tuple[list[tuple[Store, LogState]], dict[str, str]]:
    """The logs that handovers link, and the urls of those that cannot be read, with the reason."""
    logs = [(store, RunLog(store, run_id).sync())]
    known, unreachable = {store.url}, dict[str, str]()
    for _, state in logs:  # grows while it is walked
        for url in _linked(state.records):
            if url in known or open_store is None:
                continue
            known.add(url)
            try:
                other = open_store(url)
                logs.append((other, RunLog(other, run_id).sync()))
            except CloudshiftError as error:
                unreachable[url] = error.message
    return logs, unreachable


def _linked(records: Iterable[LogRecord]) -> list[str]:
    """Where a log says the run came from or went to."""
    urls = [r.base.url if r.base is not None else r.to_url for r in records]
    return [url for url in urls if url]


def _merge(logs: Sequence[tuple[Store, LogState]]) -> list[_Seen]:
    """Each committed step once, oldest first: a move commits its sealed step at both ends."""
    found: dict[tuple[int | None, str | None], _Seen] = {}
    commits = [(record, store) for store, state in logs for record in state.commits]
    for record, store in sorted(commits, key=lambda pair: pair[0].at):
        seen = found.setdefault((record.step, record.manifest_digest), _Seen(record, []))
        if store not in seen.stores:
            seen.stores.append(store)
    return sorted(found.values(), key=lambda seen: (seen.record.step or 0, seen.record.generation))


def _read_manifests(commits: Sequence[_Seen]) -> list[_Seen]:
    def read(seen: _Seen) -> _Seen:
        try:
            return seen._replace(manifest=_manifest(seen))
        except CloudshiftError as error:
            return seen._replace(problem=error.message)

    return fan_out(read, commits, CONCURRENCY)


def _manifest(seen: _Seen) -> Manifest:
    """The manifest of a commit, from the first of its stores that still has it whole."""
    key, digest = seen.record.manifest_key or "", seen.record.manifest_digest or ""
    *others, last = seen.stores
    for store in others:
        try:
            return _fetch(store, key, digest)
        except CloudshiftError:
            continue  # the next copy may be whole; the last one's error is told
    return _fetch(last, key, digest)


def _fetch(store: Store, key: str, digest: str) -> Manifest:
    return parse_document(fetch_verified(store, key, digest), Manifest, key)


def _line(seen: _Seen, known: set[ObjectRef]) -> StepLine:
    record, manifest = seen.record, seen.manifest
    line = StepLine(
        step=record.step or 0,
        at=record.at,
        generation=record.generation,
        urls=tuple(store.url for store in seen.stores),
        manifest_key=record.manifest_key or "",
        manifest_digest=record.manifest_digest or "",
        is_final=record.final,
        problem=seen.problem,
    )
    if manifest is None:
        return line
    return msgspec.structs.replace(
        line,
        world_size=manifest.world_size,
        coverage=manifest.coverage,
        raw_bytes=manifest.raw_bytes,
        stored_bytes=manifest.stored_bytes,
        new_bytes=_size(set(manifest.packs) - known),
    )


def _packs(read: Iterable[_Seen]) -> set[ObjectRef]:
    return {pack for seen in read if seen.manifest is not None for pack in seen.manifest.packs}


def _others(packs: Mapping[str, set[ObjectRef]], run_id: str) -> set[ObjectRef]:
    return set().union(*(held for name, held in packs.items() if name != run_id))


def _run_usage(run_id: str, read: Sequence[_Seen], elsewhere: set[ObjectRef]) -> RunUsage:
    steps = [seen.manifest for seen in read if seen.manifest is not None]
    uses: dict[ObjectRef, int] = {}
    for manifest in steps:
        for pack in manifest.packs:
            uses[pack] = uses.get(pack, 0) + 1
    return RunUsage(
        run_id=run_id,
        steps=tuple(
            StepUsage(
                manifest.step,
                manifest.raw_bytes,
                _size(manifest.packs),
                _size(p for p in manifest.packs if uses[p] == 1 and p not in elsewhere),
            )
            for manifest in steps
        ),
        raw_bytes=sum(manifest.raw_bytes for manifest in steps),
        pack_bytes=_size(uses),
        only_here_bytes=_size(uses.keys() - elsewhere),
        problems=tuple(f"step {s.record.step}: {s.problem}" for s in read if s.problem),
    )


def _loose(store: Store, referred: set[str]) -> dict[str, int]:
    """Packs that no step refers to, with their bytes."""
    names = {key.rpartition("/")[2].removesuffix(".pack"): key for key in store.list("packs")}
    keys = [key for name, key in names.items() if name not in referred]
    sizes = fan_out(store.size, keys, CONCURRENCY)
    return {key: size for key, size in zip(keys, sizes, strict=True) if size is not None}


def _size(packs: Iterable[ObjectRef]) -> int:
    return sum(pack.size for pack in packs)
