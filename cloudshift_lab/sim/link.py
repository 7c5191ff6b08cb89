"""A limited link between two simulated clouds: round trip, bandwidth, cuts, and byte counters.

A process of its own forwards TCP connections, so that it costs whoever measures no Python time::

    python -m cloudshift_lab.sim.link        # LinkSpec as the first line of stdin, then commands

Each direction is a lane: a queue that empties at the link's rate, shared by all connections. A
connection begins with the three-way handshake's round trip and ten packets in flight, and doubles
them each round trip up to ``WINDOW_BYTES``, as TCP does without loss. TCP's own headers are not
counted; HTTP's are.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Literal

import msgspec

from cloudshift_lab.core.errors import Unavailable
from cloudshift_lab.core.wire import from_json, to_json

_HOST = "127.0.0.1"
_CHUNK_BYTES = 1 << 17
_FIRST_WINDOW_BYTES = 14_600
WINDOW_BYTES = 4 << 20
_END_LIMIT_S = 5.0

Command = Literal["count", "cut", "restore", "reset"]
Direction = Literal["out", "in"]


class Door(msgspec.Struct, frozen=True):
    """A port behind which a cloud's server is reached over the link.

    ``up`` is the lane of what is asked, ``down`` that of the answers.
    """

    name: str
    upstream_port: int
    up: Direction
    down: Direction


class LinkSpec(msgspec.Struct, frozen=True):
    """A link. ``rtt_s``: there and back, seconds; ``bytes_per_s`` of each direction, None: any.

    ``out`` is the direction from the first cloud to the second, ``in`` the other one.
    """

    doors: tuple[Door, ...]
    rtt_s: float = 0.0
    bytes_per_s: float | None = None


class Count(msgspec.Struct, frozen=True):
    """What a link has carried so far, bytes, per lane and in all; ``ports`` by door."""

    ports: dict[str, int]
    out_bytes: int = 0
    in_bytes: int = 0

    @property
    def num_bytes(self) -> int:
        return self.out_bytes + self.in_bytes


class Link:
    """A running link; use as a context manager. Commands may come from any thread.

    Args:
        spec: Rate, round trip and doors.

    Raises:
        Unavailable: Its process did not start.
    """

    def __init__(self, spec: LinkSpec) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cloudshift_lab.sim.link"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self.ports = self._ask(to_json(spec)).ports

    @property
    def pid(self) -> int:
        """Its process, for who wants to know how much processor time the link takes."""
        return self._process.pid

    def count(self) -> Count:
        """What was carried so far."""
        return self._ask(to_json("count"))

    def cut(self) -> None:
        """Deliver nothing any more, as when packets are dropped: no end of a connection is seen."""
        self._ask(to_json("cut"))

    def restore(self) -> None:
        """End a cut; what waited arrives."""
        self._ask(to_json("restore"))

    def reset(self) -> None:
        """End all connections at once; new ones are let through."""
        self._ask(to_json("reset"))

    def close(self) -> None:
        """End the link and all its connections."""
        with self._lock:
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None, "both were asked for"
                with suppress(BrokenPipeError):
                    pipe.close()
        try:
            self._process.wait(_END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Link:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, line: bytes) -> Count:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None, "both were asked for"
        with self._lock, suppress(BrokenPipeError):
            if not stdin.closed:
                stdin.write(line + b"\n")
                stdin.flush()
                if answer := stdout.readline():
                    return from_json(answer, Count, what="the link's answer")
        raise Unavailable("the simulated link's process has ended; start it again")


class _Lane:
    """One direction: what leaves it, when, and how much arrived."""

    def __init__(self, bytes_per_s: float | None) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at = 0.0
        self.num_bytes = 0

    def leave_at(self, now: float, num_bytes: int) -> float:
        """When the last byte is on the wire."""
        if self._bytes_per_s is None:
            return now
        self._free_at = max(now, self._free_at) + num_bytes / self._bytes_per_s
        return self._free_at


class _Window:
    """How many bytes of one direction of one connection may be under way."""

    def __init__(self) -> None:
        self._room = self._size = _FIRST_WINDOW_BYTES
        self._freed = asyncio.Event()

    async def room(self) -> int:
        """Bytes that may be sent now, > 0; waits for them."""
        while self._room <= 0:
            self._freed.clear()
            await self._freed.wait()
        return min(self._room, _CHUNK_BYTES)

    def take(self, num_bytes: int) -> None:
        self._room -= num_bytes

    def free(self, num_bytes: int) -> None:
        """They were acknowledged; the window grows by as much."""
        grown = min(self._size + num_bytes, WINDOW_BYTES)
        self._room += num_bytes + grown - self._size
        self._size = grown
        self._freed.set()


class _Carrier:
    """The link's process: its lanes, its doors, its open connections."""

    def __init__(self, spec: LinkSpec) -> None:
        self._half_s = spec.rtt_s / 2
        self._lanes: dict[Direction, _Lane] = {
            "out": _Lane(spec.bytes_per_s), "in": _Lane(spec.bytes_per_s)
        }  # fmt: skip
        self._whole = asyncio.Event()
        self._whole.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[None]] = set()
        self._ports: dict[str, int] = {}
        self._loop = asyncio.get_running_loop()

    async def open(self, door: Door) -> None:
        """Listen for one door."""

        def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = self._loop.create_task(self._carry(door, reader, writer))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

        server = await asyncio.start_server(carry, _HOST, 0, limit=_CHUNK_BYTES)
        self._ports[door.name] = server.sockets[0].getsockname()[1]

    def obey(self, command: Command) -> None:
        """Do what the parent asks; ``count`` needs nothing."""
        if command == "cut":
            self._whole.clear()
        elif command == "restore":
            self._whole.set()
        elif command == "reset":
            for writer in self._writers:
                writer.transport.abort()

    def count(self) -> Count:
        """What the parent is told after every command."""
        return Count(self._ports, self._lanes["out"].num_bytes, self._lanes["in"].num_bytes)

    async def _carry(
        self, door: Door, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Carry one connection until both its ends, or one of its sides, are gone."""
        open_at = self._loop.time() + 2 * self._half_s
        ends = {writer}
        self._writers.add(writer)
        try:
            there, back = await asyncio.open_connection(
                _HOST, door.upstream_port, limit=_CHUNK_BYTES
            )
            ends.add(back)
            self._writers.add(back)
            async with asyncio.TaskGroup() as group:
                for source, sink, lane in ((reader, back, door.up), (there, writer, door.down)):
                    flow = _Flow(self._lanes[lane], self._half_s, self._whole)
                    group.create_task(flow.send(source, open_at))
                    group.create_task(flow.deliver(sink))
        except* OSError:
            await asyncio.sleep(2 * self._half_s)
            await self._whole.wait()
        finally:
            self._writers -= ends
            for each in ends:
                each.transport.abort()


class _Flow:
    """One direction of one connection."""

    def __init__(self, lane: _Lane, half_s: float, whole: asyncio.Event) -> None:
        self._lane = lane
        self._half_s = half_s
        self._whole = whole
        self._window = _Window()
        self._under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    async def send(self, reader: asyncio.StreamReader, open_at: float) -> None:
        """Put on the wire what comes from a side, as fast as lane and window let it, to its end."""
        while data := await reader.read(await self._window.room()):
            self._window.take(len(data))
            left_at = self._lane.leave_at(max(self._loop.time(), open_at), len(data))
            self._under_way.put_nowait((left_at + self._half_s, data))
        self._under_way.put_nowait((self._loop.time() + self._half_s, b""))

    async def deliver(self, writer: asyncio.StreamWriter) -> None:
        """Give the other side what is due; the sender hears of it half a round trip later."""
        while True:
            due_at, data = await self._under_way.get()
            await asyncio.sleep(max(0.0, due_at - self._loop.time()))
            await self._whole.wait()
            if not data:
                writer.write_eof()
                return
            self._lane.num_bytes += len(data)
            writer.write(data)
            await writer.drain()
            self._loop.call_later(self._half_s, self._window.free, len(data))


async def _serve() -> None:
    """Carry until stdin ends: whoever started this is gone then."""
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    spec = from_json(await commands.readline(), LinkSpec, what="the link")
    carrier = _Carrier(spec)
    for door in spec.doors:
        await carrier.open(door)
    _answer(carrier.count())
    while line := await commands.readline():
        command: Command = msgspec.json.decode(line, type=Command)
        carrier.obey(command)
        _answer(carrier.count())


def _answer(count: Count) -> None:
    sys.stdout.buffer.write(to_json(count) + b"\n")
    sys.stdout.buffer.flush()


def main(arguments: Sequence[str]) -> int:
    """Be a link until stdin ends."""
    del arguments
    asyncio.run(_serve())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
