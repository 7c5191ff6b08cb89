"""A metadata service that plays preemptions: real HTTP on this machine, simulated news.

It speaks as the instances of AWS, Google Cloud and Azure hear it (``metadata_words``). Each machine
may have an address of its own, ``http://127.0.0.1:PORT/machine/NAME``, so that one service plays
many. What happens is said at ``/simulated/...``. Every answer carries ``X-Cloudshift-Simulated``.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import signal
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Literal

import msgspec

from cloudshift_lab.core.errors import Conflict, Unavailable
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.core.world import REAL_WORLD, World
from cloudshift_lab.engines.local import LocalEngine
from cloudshift_lab.engines.notices_http import MAX_BYTES, SIMULATED_HEADER
from cloudshift_lab.sim.metadata_words import Asked, Preemption, Reply, answer

HOST = "127.0.0.1"
GONE_S = 2.0
ASK_LIMIT_S = 10.0
_LONGEST_WAIT_S = 0.2
_REAP_EVERY_S = 0.1
_MACHINE = "/machine/"
_CONTROL = "/simulated/"
_ALONE = "simulated-machine"
Mood = Literal["well", "busy", "silent"]


class Preempt(msgspec.Struct, frozen=True):
    """Ask the emulator to have machines taken away ``in_s`` seconds from now.

    ``machine``: the beginning of their names; empty: all that have asked for notices so far.
    ``lead_s``: how long before that they are told; None: as the provider does. ``is_hint``: tell
    them only that it may happen. ``kills``: end what runs there when the time is over.
    """

    in_s: float
    machine: str = ""
    lead_s: float | None = None
    is_hint: bool = False
    kills: bool = False


class MetadataState(msgspec.Struct, frozen=True):
    """What the emulator knows: which machines have asked, and what is to happen to them."""

    machines: tuple[str, ...]
    events: tuple[Preemption, ...]


class PlayedMachines:
    """Which machines there are, and which of them must go; the memory of the emulator.

    A machine that was made after a preemption was said is not concerned by it. One that is still
    there when its time is over was spared: it hears no more of it.

    Args:
        world: Clock and names.
    """

    def __init__(self, world: World = REAL_WORLD) -> None:
        self._world = world
        self._news = threading.Condition()
        self._seen: dict[str, float] = {}
        self._events: dict[str, Preemption] = {}
        self._tokens: dict[str, float] = {}
        self.mood: Mood = "well"

    def now(self) -> float:
        return self._world.now()

    def see(self, machine: str) -> None:
        """The machine has asked something: it is there."""
        with self._news:
            self._seen.setdefault(machine, self._world.now())

    def state(self) -> MetadataState:
        """For people and tests."""
        with self._news:
            return MetadataState(tuple(self._seen), tuple(self._events.values()))

    def preempt(self, ask: Preempt) -> tuple[Preemption, ...]:
        """Say to the machines asked for, or to all, that they will be taken away.

        Raises:
            Conflict: There is no such machine.
        """
        with self._news:
            now = self._world.now()
            names = [name for name in self._seen if name.startswith(ask.machine)]
            events = tuple(
                Preemption(
                    event_id=self._world.new_id("event"),
                    machine=name,
                    at=now,
                    deadline=now + ask.in_s,
                    lead_s=ask.lead_s,
                    is_hint=ask.is_hint,
                    kills=ask.kills,
                )
                for name in names
            )
            self._events |= {event.event_id: event for event in events}
            self._news.notify_all()
        if not events:
            raise Conflict("no machine is there that would hear it; start a run there first")
        return events

    def due(self) -> tuple[str, ...]:
        """Machines whose time is over and which are to be ended now; each is given out once."""
        now = self._world.now()
        with self._news:
            over = [e for e in self._events.values() if e.kills and now >= e.deadline]
            for event in over:
                del self._events[event.event_id]
                self._seen.pop(event.machine, None)
        return tuple(event.machine for event in over)

    def clear(self) -> None:
        """Nothing is going to happen any more."""
        with self._news:
            self._events.clear()
            self._news.notify_all()

    def forget_tokens(self) -> None:
        """Refuse all tokens that were given out."""
        with self._news:
            self._tokens.clear()

    # -- what the dialects ask for -----------------------------------------------------------------

    def of(self, machine: str) -> tuple[Preemption, ...]:
        return tuple(event for event in self.of_all() if event.machine == machine)

    def of_all(self) -> tuple[Preemption, ...]:
        now = self._world.now()
        with self._news:
            return tuple(e for e in self._events.values() if now < e.deadline + GONE_S)

    def wait_s(self, seconds: float) -> None:
        with self._news:
            self._news.wait(min(seconds, _LONGEST_WAIT_S))

    def ready(self, event_id: str, machine: str) -> bool:
        with self._news:
            event = self._events.get(event_id)
            if event is None or event.machine != machine:
                return False
            started = tuple(dict.fromkeys((*event.started, machine)))
            self._events[event_id] = msgspec.structs.replace(event, started=started)
            return True

    def new_token(self, seconds: float) -> str:
        token = self._world.new_id("token")
        with self._news:
            self._tokens[token] = self._world.monotonic() + seconds
        return token

    def is_token(self, token: str) -> bool:
        with self._news:
            return self._world.monotonic() < self._tokens.get(token, float("-inf"))


class MetadataServer:
    """The emulator in a thread of this process; use as a context manager.

    Args:
        machines: What it plays.
        port: Where it listens; 0: on a free port.
    """

    def __init__(self, machines: PlayedMachines | None = None, *, port: int = 0) -> None:
        self.machines = PlayedMachines() if machines is None else machines
        played, self._closing = self.machines, threading.Event()
        closing = self._closing

        class Handler(_Handler):
            machines = played
            is_closing = closing

        self._server = _Server((HOST, port), Handler)
        self.port: int = self._server.server_address[1]

    @property
    def url(self) -> str:
        """Where a machine without a name asks."""
        return f"http://{HOST}:{self.port}"

    def url_of(self, machine: str) -> str:
        """Where this machine asks."""
        return f"{self.url}{_MACHINE}{machine}"

    def __enter__(self) -> MetadataServer:
        threading.Thread(target=self.serve, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def serve(self) -> None:
        """Answer until the end."""
        self._server.serve_forever(poll_interval=0.05)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False


class _Handler(BaseHTTPRequestHandler):
    """One request; the machine's name is cut off its path."""

    machines: PlayedMachines
    is_closing: threading.Event
    timeout = ASK_LIMIT_S

    def do_GET(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing: what is asked here every second is no news."""

    def _serve(self) -> None:
        if self.machines.mood == "silent":
            self.is_closing.wait()
            return
        size = self.headers.get("Content-Length", "0")
        body = self.rfile.read(min(int(size), MAX_BYTES)) if size.isdecimal() else b""
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self._reply(Asked(self.command, self.path, headers, body))
        with contextlib.suppress(ConnectionError):  # whoever asked waits no longer
            self.send_response(reply.status)
            told = {"Content-Type": reply.kind, "Content-Length": str(len(reply.body))}
            for name, value in {**told, **reply.headers, SIMULATED_HEADER: "true"}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)

    def _reply(self, asked: Asked) -> Reply:
        if asked.path.startswith(_CONTROL):
            return self._control(asked)
        if self.machines.mood == "busy":
            return Reply(503)
        machine, asked = _addressed(asked)
        self.machines.see(machine)
        return answer(self.machines, machine, asked)

    def _control(self, asked: Asked) -> Reply:
        """Only for programs that say what they are: no page in a browser can send the header."""
        if not asked.header(SIMULATED_HEADER):
            return Reply(403)
        verb = asked.path.removeprefix(_CONTROL)
        try:
            if verb == "preempt":
                return _told(self.machines.preempt(from_json(asked.body, Preempt, what="request")))
        except Conflict as error:
            return Reply(409, error.message.encode())
        if verb == "clear":
            self.machines.clear()
        return _told(self.machines.state()) if verb in ("state", "clear") else Reply(404)


def _addressed(asked: Asked) -> tuple[str, Asked]:
    """Which machine asks, and what it asks of its own service."""
    if not asked.target.startswith(_MACHINE):
        return _ALONE, asked
    machine, _, rest = asked.target.removeprefix(_MACHINE).partition("/")
    return machine, Asked(asked.method, f"/{rest}", asked.headers, asked.body)


def _told(value: object) -> Reply:
    return Reply(200, to_json(value), "application/json")


# -- from another process --------------------------------------------------------------------------


def preempt(port: int, ask: Preempt) -> tuple[Preemption, ...]:
    """Have a running emulator take machines away.

    Raises:
        Conflict: It plays no such machine.
        Unavailable: It does not answer.
    """
    return from_json(_ask(port, "preempt", to_json(ask)), tuple[Preemption, ...], what="the answer")


def look(port: int) -> MetadataState:
    """What a running emulator knows.

    Raises:
        Unavailable: It does not answer.
    """
    return from_json(_ask(port, "state"), MetadataState, what="the answer")


def _ask(port: int, verb: str, body: bytes = b"") -> bytes:
    connection = http.client.HTTPConnection(HOST, port, timeout=ASK_LIMIT_S)
    try:
        connection.request("POST", f"{_CONTROL}{verb}", body, {SIMULATED_HEADER: "true"})
        reply = connection.getresponse()
        told = reply.read()
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(
            f"the simulated metadata service does not answer ({type(error).__name__}); "
            "run: cloudshift clouds down, then up"
        ) from error
    finally:
        connection.close()
    if reply.status == 409:
        raise Conflict(told.decode())
    if reply.status != 200:
        raise Unavailable(f"the simulated metadata service answered {reply.status}; restart it")
    return told


def main(arguments: Sequence[str] | None = None) -> None:
    """Be an emulator until killed: ``python -m cloudshift_lab.sim.metadata --port PORT``."""
    parser = argparse.ArgumentParser(prog="metadata", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--home", type=Path, help="whose machines may be ended")
    options = parser.parse_args(arguments)
    server = MetadataServer(port=options.port)
    print(f"SIMULATED metadata service at {server.url}", flush=True)
    if options.home is not None:
        reaper = threading.Thread(target=_reap, args=(server.machines, options.home), daemon=True)
        reaper.start()
    server.serve()


def _reap(machines: PlayedMachines, home: Path) -> None:
    """End the machines whose time is over, as a provider does."""
    while True:
        for machine in machines.due():
            name = machine.partition(".")[2]
            print(f"SIMULATED end of {machine}: {end_machine(home, name)}", flush=True)
        REAL_WORLD.sleep(_REAP_EVERY_S)


def end_machine(home: Path, machine: str) -> str:
    """Kill the agent of one node and, with it, all of its ranks; what was done.

    Args:
        home: The state directory of the run.
        machine: ``RUN.GENERATION.NODE``.
    """
    run_id, generation, node = machine.rsplit(".", 2)
    engine = LocalEngine(home)
    handle = engine.find(run_id, int(generation), int(node))
    if handle is None or engine.observe(handle).is_gone:
        return "nothing ran there any more"
    with contextlib.suppress(ProcessLookupError):
        os.killpg(handle.pid, signal.SIGKILL)
    return f"killed process {handle.pid}"


if __name__ == "__main__":
    main()
