"""Talking to an agent through the bucket: one order at a time in, its own word out."""

from __future__ import annotations

from cloudshift_lab.core.errors import Corrupt, Exhausted, NotFound
from cloudshift_lab.core.orders import AgentStatus, Order, OrderKind, inbox_key, status_key
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.core.world import World
from cloudshift_lab.storage.store import Store

_MAX_ORDERS = 100_000
_LONGEST_GAP_S = 10.0
_ENDED = frozenset({"stopped", "finished", "failed", "retired", "fenced"})


class AgentLine:
    """The conductor's end of the line to one attempt's agent.

    Args:
        store: The store of that attempt.
        run_id: Its run.
        generation: Its generation.
        world: Clock.
    """

    def __init__(self, store: Store, run_id: str, generation: int, world: World) -> None:
        self._store = store
        self._run_id = run_id
        self._generation = generation
        self._world = world
        self._sent: set[str] = set()
        self._next = 0
        self._beat: int | None = None
        self._changed_at: float | None = None
        self._looked_at: float | None = None

    def order(
        self,
        order_id: str,
        kind: OrderKind,
        *,
        step: int | None = None,
        manifest_digest: str | None = None,
    ) -> None:
        """Put an order into the inbox that needs no more than a step; as ``send``."""
        self.send(
            Order(
                order_id=order_id,
                kind=kind,
                at=self._world.now(),
                step=step,
                manifest_digest=manifest_digest,
            )
        )

    def send(self, order: Order) -> None:
        """Put an order into the inbox exactly once, whoever asked before and crashed.

        Raises:
            Unavailable, Denied: As the store reported; ask again.
            Exhausted: The inbox is absurdly full.
        """
        if order.order_id in self._sent:
            return
        while self._next < _MAX_ORDERS:
            found = self._read(self._next) or self._create(self._next, order)
            if found is not None:
                self._next += 1
                self._sent.add(found.order_id)
            if found is not None and found.order_id == order.order_id:
                return
        raise Exhausted(f"the inbox of {self._run_id} is full; start a new run")

    def look(self) -> AgentStatus | None:
        """The agent's newest word; None when it has not said any yet.

        Raises:
            Unavailable, Denied: Could not look, which proves nothing about the agent.
        """
        asked_at = self._world.monotonic()
        try:
            data = self._store.get(status_key(self._run_id, self._generation))
            status = from_json(data, AgentStatus, what="the agent's status")
        except NotFound:
            status = None
        except Corrupt:
            status = None
        self._notice(status, asked_at)
        return status

    def silent_for_s(self) -> float:
        """Seconds the agent has said nothing new while we could look, on our own clock."""
        if self._changed_at is None or self._looked_at is None:
            return 0.0
        return self._looked_at - self._changed_at

    def listen_anew(self) -> None:
        """Count silence from now: the agent was started again and needs its time to speak."""
        self._beat = self._changed_at = self._looked_at = None

    def _notice(self, status: AgentStatus | None, asked_at: float) -> None:
        beat = None if status is None else status.beat
        was_away = self._looked_at is None or asked_at - self._looked_at > _LONGEST_GAP_S
        self._looked_at = asked_at
        if was_away or beat != self._beat or self._changed_at is None:
            self._beat, self._changed_at = beat, self._world.monotonic()
            self._looked_at = max(self._looked_at, self._changed_at)

    def _key(self, number: int) -> str:
        return inbox_key(self._run_id, self._generation, number)

    def _create(self, number: int, order: Order) -> Order | None:
        """Our order when it is there now; None when somebody else's took the place."""
        return order if self._store.create(self._key(number), to_json(order)) else None

    def _read(self, number: int) -> Order | None:
        try:
            return from_json(self._store.get(self._key(number)), Order, what="an order")
        except NotFound:
            return None


def ends_attempt(status: AgentStatus) -> bool:
    """Whether the agent has said its last word."""
    return status.state in _ENDED
