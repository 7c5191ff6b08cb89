"""Which orders there are and whose turn it is: each is taken once, obeyed bit by bit, answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import msgspec

from cloudshift_lab.agent.attempt import Activity, Attempt
from cloudshift_lab.core.errors import CloudshiftError, Conflict, Fenced, NotFound, Unavailable
from cloudshift_lab.core.orders import Order, OrderKind, OrderResult, inbox_key
from cloudshift_lab.core.wire import from_json
from cloudshift_lab.storage.store import Store

INBOX_EVERY_S = 0.4
INBOX_BUSY_S = 0.1
_ENDING: tuple[OrderKind, ...] = ("stop", "retire")
_IN_TURN: tuple[OrderKind, ...] = ("precopy", "rehearse", "copy", "verify", "catch_up", "go")
_NOT_ENDING: tuple[OrderKind, ...] = tuple(k for k in get_args(OrderKind) if k not in _ENDING)
_OVERTAKEN: dict[OrderKind, tuple[OrderKind, ...]] = {
    "stop": _NOT_ENDING,
    "retire": _NOT_ENDING,
    "resume": ("drain", "notice"),
    "drain": ("resume",),
    "notice": ("precopy", "rehearse", "copy", "verify", "catch_up"),
    "catch_up": ("precopy", "rehearse"),
    "copy": ("precopy", "rehearse", "catch_up"),
    "go": ("precopy", "rehearse", "copy", "verify", "catch_up"),
}


class Orders:
    """Reads the attempt's inbox and keeps every order going until it is done.

    Orders that move bytes or ranks towards a move take turns, in the order of their arrival; one
    that makes earlier ones pointless calls these off.

    Args:
        attempt: Whose orders.
        store: Where the inbox is.
        obey: Begins an order. The last item of what it returns is the outcome, and it may be begun
            again after a store was away.
    """

    def __init__(
        self, attempt: Attempt, store: Store, obey: Callable[[Order], Activity]
    ) -> None:  # fmt: skip
        self._attempt = attempt
        self._store = store
        self._obey = obey
        self._next = 0
        self._has_caught_up = False
        self._read_at = float("-inf")

    def read(self) -> None:
        """Accept what has arrived, when it is time to look.

        Raises:
            CloudshiftError: As the store reported.
        """
        job, now = self._attempt.job, self._attempt.world.monotonic()
        if now < self._read_at:
            return
        is_moving = job.standby or bool(self._attempt.board.status.results)
        self._read_at = now + (INBOX_BUSY_S if is_moving else INBOX_EVERY_S)
        while True:
            key = inbox_key(job.run_id, job.generation, self._next)
            try:
                data = self._store.get(key)
            except NotFound:
                self._has_caught_up = True
                return
            self._next += 1
            order = from_json(data, Order, what=key)
            self.accept(order if self._has_caught_up else self._as_found(order))

    def _as_found(self, order: Order) -> Order:
        """An order that was there before this agent; a notice has become more urgent since."""
        if order.kind != "notice" or order.within_s is None:
            return order
        left_s = order.at + order.within_s - self._attempt.world.now()
        return msgspec.structs.replace(order, within_s=min(order.within_s, left_s))

    def accept(self, order: Order) -> None:
        """Take an order once; it calls off those that it makes pointless."""
        active = self._attempt.active
        if order.order_id in self._attempt.board.status.results or order.order_id in active:
            return
        if order.within_s is not None and order.within_s < 0:
            told = "that machine has gone; this agent runs on another one, or was spared"
            self._report(order, OrderResult(state="done", detail=told))
            return
        if not self._attempt.job.standby:
            self._attempt.board.expect_watchers()
        self._call_off(_OVERTAKEN.get(order.kind, ()))
        active[order.order_id] = (order, self._obey(order))
        self._report(order, OrderResult(state="running"))

    def advance(self) -> None:
        """Push every order on whose turn it is.

        Raises:
            Fenced: The run is not ours any more.
        """
        waits_for_turn = False
        for order, activity in list(self._attempt.active.values()):
            if order.kind in _IN_TURN:
                if waits_for_turn:
                    continue
                waits_for_turn = True
            try:
                self._report(order, next(activity))
            except Fenced as error:
                self._report(order, failure(error))
                raise
            except Unavailable as error:
                self._attempt.board.warn(error.message)
                self._attempt.active[order.order_id] = (order, self._obey(order))
            except CloudshiftError as error:
                self._report(order, failure(error))
            if self._attempt.ended_at is not None:
                return

    def close(self) -> None:
        """The attempt has ended: orders that asked for it are done, all others never will be."""
        state = self._attempt.board.status.state
        called_off = Conflict(f"the attempt ended as '{state}' before this order was obeyed")
        for order, activity in list(self._attempt.active.values()):
            activity.close()
            is_done = order.kind in _ENDING
            self._report(order, OrderResult(state="done") if is_done else failure(called_off))

    def _call_off(self, kinds: tuple[OrderKind, ...]) -> None:
        for order, activity in list(self._attempt.active.values()):
            if order.kind in kinds:
                activity.close()
                error = Conflict(f"'{order.kind}' was overtaken by a later order; ask again")
                self._report(order, failure(error))

    def _report(self, order: Order, result: OrderResult) -> None:
        board = self._attempt.board
        known = board.status.results.get(order.order_id)
        if result.state == "failed" and known is not None:  # what it had carried was paid for
            result = msgspec.structs.replace(result, num_bytes=known.num_bytes)
        board.update(results={**board.status.results, order.order_id: result})
        if result.state != "running":
            self._attempt.active.pop(order.order_id, None)


def failure(error: CloudshiftError) -> OrderResult:
    """How an order ended that could not be obeyed."""
    return OrderResult(state="failed", error_kind=type(error).__name__, error=error.message)
