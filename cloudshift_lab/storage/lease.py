"""Who is alive: a heartbeat object per generation, judged on the observer's own clock."""

from __future__ import annotations

import msgspec

from cloudshift_lab.core.errors import NotFound
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.core.world import REAL_WORLD, World
from cloudshift_lab.storage.store import Store

TTL_S = 30.0


class Heartbeat(msgspec.Struct, frozen=True):
    """Body of ``runs/<run>/hb/<generation>.json``; ``beat`` grows, ``at`` is for people."""

    generation: int
    beat: int
    at: float
    nonce: str


def heartbeat_key(run_id: str, generation: int) -> str:
    """Where one generation's owner beats."""
    return f"runs/{run_id}/hb/{generation}.json"


class Lease:
    """The owner's side: beats, and knows when it must stop publishing.

    The lease only detects death; what keeps a sleeper from doing harm is the run log.
    """

    def __init__(
        self, store: Store, run_id: str, generation: int, world: World = REAL_WORLD,
        ttl_s: float = TTL_S,
    ) -> None:  # fmt: skip
        self._store = store
        self._key = heartbeat_key(run_id, generation)
        self._generation = generation
        self._world = world
        self._ttl_s = ttl_s
        self._nonce = world.new_id("beat")
        self._beats = 0
        self._renewed_at = float("-inf")

    def beat(self) -> None:
        """Renew, counting from before the request: a slow answer must not extend the lease.

        Raises:
            Unavailable, Denied, Exhausted: Not renewed; ``may_publish`` runs out by itself.
        """
        asked_at = self._world.monotonic()
        self._beats += 1
        body = Heartbeat(self._generation, self._beats, self._world.now(), self._nonce)
        self._store.put(self._key, to_json(body))
        self._renewed_at = asked_at

    def may_publish(self) -> bool:
        """False when the last renewal is older than two thirds of the time to live."""
        return self._world.monotonic() - self._renewed_at <= self._ttl_s * 2 / 3


class LeaseObserver:
    """Anybody else's side: expired when nothing changed for a whole time to live."""

    def __init__(
        self, store: Store, run_id: str, generation: int, world: World = REAL_WORLD,
        ttl_s: float = TTL_S,
    ) -> None:  # fmt: skip
        self._store = store
        self._key = heartbeat_key(run_id, generation)
        self._world = world
        self._ttl_s = ttl_s
        self._seen: bytes | None = None
        self._seen_at: float | None = None

    def expired(self) -> bool:
        """Look once. True when the same beat (or none at all) has stood for a time to live.

        Raises:
            Unavailable, Denied: Could not look, which proves nothing about the owner.
        """
        asked_at = self._world.monotonic()
        try:
            found: bytes | None = self._store.get(self._key)
        except NotFound:
            found = None
        if self._seen_at is None or found != self._seen:
            self._seen, self._seen_at = found, self._world.monotonic()
            return False
        return asked_at - self._seen_at > self._ttl_s
