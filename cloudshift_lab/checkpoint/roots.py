"""What a collection must leave alone: roots, and what they lead to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from cloudshift_lab.checkpoint.layout import (
    Manifest,
    RankRecord,
    StepDir,
    fetch_verified,
    pack_key,
    parse_document,
    parse_manifest_key,
)
from cloudshift_lab.checkpoint.pins import Hold, Pin, list_holds, list_pins
from cloudshift_lab.checkpoint.tombs import pack_of, step_of
from cloudshift_lab.core.errors import Corrupt, NotFound
from cloudshift_lab.core.world import World
from cloudshift_lab.storage.fanout import fan_out
from cloudshift_lab.storage.log import LogRecord, LogState, RunLog
from cloudshift_lab.storage.logstate import commits_at
from cloudshift_lab.storage.store import Store

_RECORD = re.compile(r"rank-[0-9]+of[0-9]+\.(?P<hash>[0-9a-f]{64})\.json")


class Guards(NamedTuple):
    """Pins and holds. Read before the logs: whoever lets one go has its commit in a log by then."""

    pins: tuple[Pin, ...]
    holds: tuple[Hold, ...]


class Alive(NamedTuple):
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


class _Root(NamedTuple):
    """A step that must stay, as a commit or a pin names it."""

    run_id: str
    key: str
    digest: str

    @property
    def place(self) -> StepDir:
        return parse_manifest_key(*self)


class Roots:
    """Follows commits and pins to what they need; reads no manifest twice.

    Args:
        store: Where.
        world: Clock and nonces.
        concurrency: Requests at a time.
        without: Finished runs whose unreadable steps are given up.
    """

    def __init__(
        self, store: Store, world: World, concurrency: int, without: frozenset[str]
    ) -> None:
        self.store = store
        self.world = world
        self.concurrency = concurrency
        self._without = without
        self._packs: dict[_Root, frozenset[str]] = {}
        self.given_up: set[tuple[str, int]] = set()

    def read_logs(
        self, runs: Sequence[str], read: Callable[[str], LogState] | None = None
    ) -> dict[str, LogState]:
        """Every run's log as it is now."""
        read = read or (lambda run: RunLog(self.store, run, self.world).sync())
        return dict(zip(runs, fan_out(read, runs, self.concurrency), strict=True))

    def follow(
        self,
        states: Mapping[str, LogState],
        guards: Guards,
        since: Mapping[str, int] | None = None,
    ) -> Alive:  # fmt: skip
        """What is alive; what was forgotten after ``since`` counts too.

        Raises:
            Corrupt: A manifest cannot be read: what it needs is unknown.
        """
        roots = sorted(_roots_of(states, guards, since))
        unread = [root for root in roots if root not in self._packs]
        found = fan_out(lambda root: self._packs_of(root, states), unread, self.concurrency)
        self._packs.update(zip(unread, found, strict=True))
        holds = (h for h in guards.holds if not h.is_over(states.get(h.run_id, LogState())))
        return Alive(
            states=states,
            packs=frozenset().union(*(self._packs[root] for root in roots)),
            folders=frozenset(root.place.prefix for root in roots),
            held=frozenset(key for hold in holds for key in hold.keys),
            num_steps=len(roots),
        )

    def _packs_of(self, root: _Root, states: Mapping[str, LogState]) -> frozenset[str]:
        """What a root's manifest names; one that cannot be read stops the collection."""
        try:
            manifest = parse_document(
                fetch_verified(self.store, root.key, root.digest), Manifest, root.key
            )
            if (manifest.run_id, manifest.step, manifest.generation) != root.place:
                raise Corrupt(f"{root.key} is the manifest of another step", key=root.key)
        except (Corrupt, NotFound) as error:
            state = states.get(root.run_id, LogState())
            if root.run_id in self._without and is_finished(state, self.store):
                self.given_up.add((root.run_id, root.place.step))
                return self._salvaged(root.place)
            raise Corrupt(
                f"nothing was collected: {error.message}; {_advice(root, state)}",
                key=root.key, run=root.run_id,
            ) from error  # fmt: skip
        return frozenset(pack_key(pack.blake3) for pack in manifest.packs)

    def _salvaged(self, place: StepDir) -> frozenset[str]:
        """Packs that a given-up step's readable records name."""
        packs: set[str] = set()
        for key in self.store.list(place.prefix):
            name = _RECORD.fullmatch(key.rpartition("/")[2])
            if name is None:
                continue
            try:
                record = fetch_verified(self.store, key, name["hash"])
                found = parse_document(record, RankRecord, key).packs
            except (Corrupt, NotFound):
                continue  # damaged like the manifest, and given up with it
            packs |= {pack_key(pack.blake3) for pack in found}
        return frozenset(packs)


def _roots_of(
    states: Mapping[str, LogState], guards: Guards, since: Mapping[str, int] | None
) -> set[_Root]:
    def commits(run: str, state: LogState) -> Sequence[LogRecord]:
        if since is None:
            return state.commits
        return commits_at(state.records, forgets_before=since.get(run, 0))

    named = {
        _Root(run, str(commit.manifest_key), str(commit.manifest_digest))
        for run, state in states.items()
        for commit in commits(run, state)
    }
    return named | {_Root(p.run_id, p.manifest_key, p.manifest_digest) for p in guards.pins}


def is_finished(state: LogState, store: Store) -> bool:
    """Whether nobody owns the run in this store, so that nobody saves it here."""
    return state.owner is None or state.home_url not in (None, store.url)


def _advice(root: _Root, state: LogState) -> str:
    """How to go on although a step that must stay cannot be read."""
    ref, run = f"{root.run_id}@{root.place.step}", root.run_id
    newest = state.last_commit
    if newest is None or newest.manifest_digest != root.digest:
        return f"repair run {run}, or else: cloudshift unpin {ref}, cloudshift forget {ref}"
    return f"repair run {run}, or else stop it, then: cloudshift gc --without {run}"


def read_guards(store: Store) -> Guards:
    """All pins and holds; call it before the logs are read.

    Raises:
        Corrupt: One cannot be read.
    """
    return Guards(list_pins(store), tuple(hold for _, hold in list_holds(store)))


def runs_of(listed: Iterable[str]) -> list[str]:
    """The runs that listed keys belong to, sorted."""
    parts = (key.split("/", 2) for key in listed)
    return sorted({part[1] for part in parts if len(part) == 3 and part[0] == "runs"})


def _is_left_over(log: LogState, step: int, generation: int) -> bool:
    """Whether no owner, present or future, can still commit an uncommitted step's objects.

    A running save may write these very names again, for it cannot choose others: what the present
    generation is saving, at or after the newest commit, is never touched.
    """
    newest = log.last_commit
    is_behind = newest is not None and step < (newest.step or 0)
    return is_behind or generation < log.generation
