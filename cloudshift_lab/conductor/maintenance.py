"""Maintenance requests of one state directory: opened once, marked by people, kept for good."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from cloudshift_lab.conductor.automation import load_automation
from cloudshift_lab.conductor.journal import Journal
from cloudshift_lab.conductor.sinks import Sink, sinks_of
from cloudshift_lab.core.errors import CloudshiftError, Conflict, Corrupt, NotFound, UsageError
from cloudshift_lab.core.maintenance import (
    CORDONING,
    NODE_ACTIONS,
    Delivery,
    MaintenanceAsk,
    MaintenanceMark,
    MaintenanceRequest,
    MaintenanceView,
    Passport,
    PassportEntry,
)
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.core.world import World

_LONGEST_WORDS = 500
_MOST_EXHIBITS = 100


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """A request was made."""

    request: MaintenanceRequest


class SeenAgain(msgspec.Struct, frozen=True, tag="again"):
    """The same was asked for while it was open."""

    request_id: str
    at: float


class Marked(msgspec.Struct, frozen=True, tag="marked"):
    """Its state changed."""

    request_id: str
    mark: MaintenanceMark


class Delivered(msgspec.Struct, frozen=True, tag="delivered"):
    """A sink took it in that state."""

    request_id: str
    sink: str
    state: str
    at: float


class Noted(msgspec.Struct, frozen=True, tag="noted"):
    """Something that happened to a machine without a request; ``key`` is kept once."""

    node: str
    key: str
    entry: PassportEntry


_Event = Opened | SeenAgain | Marked | Delivered | Noted
_DECODER: msgspec.json.Decoder[_Event] = msgspec.json.Decoder(_Event)


class Maintenance:
    """All requests and all passports: a fold over ``maintenance.jsonl``. Safe from any thread.

    ``damage`` says why the file cannot be read; then nothing is known and nothing can be asked.

    Args:
        root: State directory.
        world: Clock.
    """

    def __init__(self, root: Path, world: World) -> None:
        self._root = root
        self._world = world
        self._lock = threading.RLock()
        self.damage = ""
        self.changed: Callable[[], None] = _nobody
        self._views: dict[str, MaintenanceView] = {}
        self._noted: dict[tuple[str, str], PassportEntry] = {}
        self._delivered: dict[tuple[str, str], str] = {}
        self._troubles: dict[tuple[str, str], str] = {}
        try:
            self._journal = Journal(root / "maintenance.jsonl")
            for line in self._journal.replay():
                self._apply(_parse(line))
        except Corrupt as error:
            self.damage = error.message
            self._views.clear()

    # -- asked by people and rules ---------------------------------------------------------------

    def open(self, ask: MaintenanceAsk) -> MaintenanceView:
        """Make a request; one about the same thing that is not resolved is returned instead.

        Raises:
            UsageError: It names no machine, no action or nobody.
            Exhausted: The journal's disk is full.
            Corrupt: The journal is damaged.
        """
        _check(ask)
        key = ask.key or f"{ask.node}/{ask.action}"
        now = self._world.now()
        with self._lock:
            held = self._unresolved(key)
            if held is not None:
                self._keep(SeenAgain(held.request.request_id, now))
                return self.view(held.request.request_id)
            request = MaintenanceRequest(
                request_id=f"mnt-{len(self._views) + 1}",
                key=key,
                node=ask.node,
                action=ask.action,
                words=ask.words,
                by=ask.by,
                opened_at=now,
                run_id=ask.run_id,
                evidence=ask.evidence,
                deadline=None if ask.within_s is None else now + ask.within_s,
            )
            self._keep(Opened(request))
        self.changed()
        return self.view(request.request_id)

    def mark(self, request_id: str, mark: MaintenanceMark) -> MaintenanceView:
        """Say that a request was taken on or done; saying it twice changes nothing.

        Raises:
            NotFound: No such request.
            Conflict: It is resolved already.
            UsageError: Nothing says who did what.
            Exhausted: The journal's disk is full.
        """
        if not mark.by.strip() or (mark.state == "resolved" and not mark.words.strip()):
            raise UsageError("a request is resolved with who did it and what was done; give both")
        if mark.state == "open":
            raise UsageError("a request is acknowledged or resolved; to ask again, open another")
        mark = msgspec.structs.replace(
            mark, at=self._world.now(), words=mark.words[:_LONGEST_WORDS]
        )
        with self._lock:
            held = self.view(request_id)
            if held.state == mark.state:
                return held
            if held.state == "resolved":
                raise Conflict(f"{request_id} is resolved already; open another one")
            self._keep(Marked(request_id, mark))
        self.changed()
        return self.view(request_id)

    def note(self, node: str, key: str, entry: PassportEntry) -> None:
        """Keep in a machine's passport what happened to it, once per ``key``.

        Raises:
            Exhausted: The journal's disk is full.
        """
        with self._lock:
            if (node, key) not in self._noted:
                self._keep(Noted(node, key, entry))

    # -- seeing ----------------------------------------------------------------------------------

    def all(self) -> tuple[MaintenanceView, ...]:
        """All requests, those that wait for somebody first, then the newest first.

        Raises:
            Corrupt: The journal is damaged.
        """
        self._refuse_damage()
        with self._lock:
            views = [self.view(request_id) for request_id in self._views]
        return tuple(sorted(views, key=lambda v: (v.state == "resolved", -v.request.opened_at)))

    def view(self, request_id: str) -> MaintenanceView:
        """One request.

        Raises:
            NotFound: No such request; lists those that are not resolved.
        """
        with self._lock:
            held = self._views.get(request_id)
            if held is None:
                known = [n for n, each in self._views.items() if each.state != "resolved"]
                raise NotFound(
                    f"no maintenance request called '{request_id}'; choose one of: "
                    f"{', '.join(known) or 'none is open'}"
                )
            found = tuple(self._delivery(held, sink) for sink in self._sinks())
        return msgspec.structs.replace(held, deliveries=found)

    def cordoned(self) -> frozenset[str]:
        """Machines on which nothing new is started."""
        with self._lock:
            return frozenset(
                each.request.node
                for each in self._views.values()
                if each.state != "resolved" and each.request.action in CORDONING
            )

    def nodes(self) -> tuple[str, ...]:
        """Every machine that has a passport, by name."""
        with self._lock:
            named = {each.request.node for each in self._views.values()}
            return tuple(sorted(named | {node for node, _ in self._noted}))

    def passport(self, node: str) -> Passport:
        """A machine's history.

        Raises:
            NotFound: Nothing is known of it; lists those with a history.
        """
        with self._lock:
            entries = [entry for (name, _), entry in self._noted.items() if name == node]
            for each in self._views.values():
                if each.request.node == node:
                    entries += _entries(each)
        if not entries:
            raise NotFound(
                f"nothing is known against a machine called '{node}'; machines with a history: "
                f"{', '.join(self.nodes()) or 'none'}"
            )
        ordered = tuple(sorted(entries, key=lambda entry: entry.at))
        return Passport(node=node, is_cordoned=node in self.cordoned(), entries=ordered)

    # -- delivering ------------------------------------------------------------------------------

    def deliver(self) -> bool:
        """Send to every sink what it has not got yet; True when all have everything.

        What a sink refuses is shown with the request, and tried again at the next call.

        Raises:
            Exhausted: The journal's disk is full.
            Corrupt: ``automation.json`` is not readable.
        """
        is_done = True
        sinks = self._sinks()
        with self._lock:
            views = list(self._views.values())
        for view in views:
            for sink in sinks:
                if not self._has(view, sink) and not self._send(view, sink):
                    is_done = False
        return is_done

    def _send(self, view: MaintenanceView, sink: Sink) -> bool:
        request_id = view.request.request_id
        try:
            sink.send(view)
        except CloudshiftError as error:
            with self._lock:
                is_news = self._troubles.get((request_id, sink.name)) != error.message
                self._troubles[request_id, sink.name] = error.message
            if is_news:
                self.changed()
            return False
        with self._lock:
            self._troubles.pop((request_id, sink.name), None)
            self._keep(Delivered(request_id, sink.name, view.state, self._world.now()))
        self.changed()
        return True

    def _sinks(self) -> tuple[Sink, ...]:
        return sinks_of(self._root, load_automation(self._root))

    def _has(self, view: MaintenanceView, sink: Sink) -> bool:
        return self._delivered.get((view.request.request_id, sink.name)) == view.state

    def _delivery(self, view: MaintenanceView, sink: Sink) -> Delivery:
        trouble = self._troubles.get((view.request.request_id, sink.name), "")
        return Delivery(sink.name, self._has(view, sink), trouble)

    # -- the fold --------------------------------------------------------------------------------

    def _unresolved(self, key: str) -> MaintenanceView | None:
        found = (v for v in self._views.values() if v.request.key == key and v.state != "resolved")
        return next(found, None)

    def _refuse_damage(self) -> None:
        if self.damage:
            raise Corrupt(self.damage)

    def _keep(self, event: _Event) -> None:
        self._refuse_damage()
        self._journal.append(to_json(event))
        self._apply(event)

    def _apply(self, event: _Event) -> None:
        if isinstance(event, Opened):
            self._views[event.request.request_id] = MaintenanceView(event.request, "open")
        elif isinstance(event, SeenAgain):
            held = self._views[event.request_id]
            self._views[event.request_id] = msgspec.structs.replace(
                held, times_seen=held.times_seen + 1
            )
        elif isinstance(event, Marked):
            held = self._views[event.request_id]
            self._views[event.request_id] = msgspec.structs.replace(
                held, state=event.mark.state, marks=(*held.marks, event.mark)
            )
        elif isinstance(event, Delivered):
            self._delivered[event.request_id, event.sink] = event.state
        else:
            self._noted.setdefault((event.node, event.key), event.entry)


class Postman:
    """Delivers in a thread of its own, so that a sink that hangs holds up nobody.

    Args:
        maintenance: Whose requests.
        changed: Called when there is something new to see.
    """

    _AGAIN_S = 30.0

    def __init__(self, maintenance: Maintenance, changed: Callable[[], None]) -> None:
        self._maintenance = maintenance
        self._changed = changed
        self._woken = threading.Event()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._loop, name="postman", daemon=True)
        self.trouble = ""
        maintenance.changed = self._wake

    def start(self) -> None:
        self._woken.set()
        self._thread.start()

    def stop(self, patience_s: float = 1.0) -> None:
        """Begin nothing more; a delivery under way is cut off and made again."""
        self._is_stopping = True
        self._woken.set()
        if self._thread.ident is not None:
            self._thread.join(patience_s)

    def _wake(self) -> None:
        if threading.current_thread() is not self._thread:
            self._woken.set()
        self._changed()

    def _loop(self) -> None:
        is_done = True
        while True:
            self._woken.wait(None if is_done else self._AGAIN_S)
            self._woken.clear()
            if self._is_stopping:
                return
            try:
                is_done = self._maintenance.deliver()
                self.trouble = ""
            except CloudshiftError as error:
                is_done, self.trouble = False, error.message


def _check(ask: MaintenanceAsk) -> None:
    if not ask.node.strip() or not ask.words.strip() or not ask.by.strip():
        raise UsageError("a request says which machine, what happened and who asks; give all three")
    if ask.action not in NODE_ACTIONS:
        raise UsageError(f"ask for one of: {', '.join(NODE_ACTIONS)}; not '{ask.action}'")
    if len(ask.evidence) > _MOST_EXHIBITS or len(ask.words) > _LONGEST_WORDS:
        raise UsageError(
            f"a request has at most {_MOST_EXHIBITS} rows of evidence and {_LONGEST_WORDS} letters "
            "of words; shorten it"
        )


def _entries(view: MaintenanceView) -> list[PassportEntry]:
    """What a request adds to its machine's passport."""
    request = view.request
    opened = PassportEntry(
        request.opened_at, "opened", f"{request.action}: {request.words}",
        run_id=request.run_id, request_id=request.request_id,
    )  # fmt: skip
    marks = [
        PassportEntry(
            mark.at, "resolved" if mark.state == "resolved" else "acknowledged",
            f"{mark.by}: {mark.words}" if mark.words else mark.by, request_id=request.request_id,
        )
        for mark in view.marks
    ]  # fmt: skip
    return [opened, *marks]


def _parse(line: bytes) -> _Event:
    try:
        return _DECODER.decode(line)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise Corrupt(
            f"maintenance.jsonl holds an event of another version ({error}); "
            "use the version of CloudShift Lab that wrote it"
        ) from error


def _nobody() -> None:
    """Nobody wants to know."""
