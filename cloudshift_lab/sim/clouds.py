"""Two simulated clouds: an S3 and a Google Cloud Storage server, with real, dated list prices."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cloudshift_lab.core.errors import Unavailable, UsageError
from cloudshift_lab.core.home import load_clouds, local_cloud, save_clouds
from cloudshift_lab.core.placement import Cloud, Clouds, NoticeDialect, Notices
from cloudshift_lab.core.world import REAL_WORLD, World
from cloudshift_lab.sim import catalogue
from cloudshift_lab.sim.link import Direction, Door, Link, LinkSpec
from cloudshift_lab.sim.metadata import Preempt, preempt
from cloudshift_lab.sim.metadata_words import Preemption
from cloudshift_lab.sim.servers import (
    HOST,
    Server,
    ServerKind,
    find_server,
    make_bucket,
    start_server,
    stop_server,
)

AWS_SIM = "aws-sim"
GCP_SIM = "gcp-sim"
KINDS: dict[str, ServerKind] = {AWS_SIM: "s3", GCP_SIM: "gcs"}
DIALECTS: dict[str, NoticeDialect] = {AWS_SIM: "aws", GCP_SIM: "gcp"}
METADATA = "metadata-sim"
_LEFT = {
    "s3": "it kept its objects in memory, so they are gone, checkpoints too",
    "gcs": "its objects stay on disk for the next 'clouds up'",
}


@dataclass(frozen=True)
class SimStatus:
    """Whether one simulated cloud runs, and where; ``endpoint`` and ``pid`` are None when not."""

    name: str
    running: bool
    store_url: str
    endpoint: str | None = None
    pid: int | None = None


class SimClouds:
    """The simulated clouds of one state directory.

    The servers live in sessions of their own until ``down``: they survive this process. What
    ``aws-sim`` holds is in its memory and gone after ``down``; ``gcp-sim`` keeps it on disk.
    """

    def __init__(self, root: Path, world: World = REAL_WORLD) -> None:
        self._root = root
        self._folder = root / "sim"
        self._world = world

    def up(self, progress: Callable[[str], None] | None = None) -> tuple[Cloud, ...]:
        """Start what is not running, make the buckets, and list both clouds in ``clouds.json``.

        Raises:
            Unsupported: A server's package is not installed; says what to install.
            Unavailable: A server does not start; names its log.
        """
        with self._locked():
            servers = [self._ensure(name, progress or _quiet) for name in KINDS]
            metadata = find_server(self._folder, METADATA) or start_server(
                self._folder, METADATA, "metadata", world=self._world
            )
            clouds = tuple(describe(server, metadata=metadata) for server in servers)
            self._list(clouds)
        return clouds

    def down(self, progress: Callable[[str], None] | None = None) -> None:
        """Stop the servers and take both clouds off ``clouds.json``; fine when none runs."""
        with self._locked():
            for name in (*KINDS, METADATA):
                if (server := find_server(self._folder, name)) is not None:
                    stop_server(server, world=self._world)
                    if name in KINDS:
                        left = _LEFT[KINDS[name]]
                        (progress or _quiet)(f"{name} (simulated) is stopped; {left}")
                (self._folder / f"{name}.json").unlink(missing_ok=True)
            self._list(())

    def preempt(
        self, name: str, in_s: float, *, run_id: str = "", kills: bool = False
    ) -> tuple[Preemption, ...]:
        """Play that the provider takes the machines of one simulated cloud away.

        They hear of it as early as that provider says it: see ``metadata_words``.

        Args:
            name: The cloud.
            in_s: Seconds until they go.
            run_id: Only those of this run; empty: all that have asked for notices.
            kills: End what runs there when the time is over; else they are spared.

        Raises:
            UsageError: There is no such simulated cloud.
            Unavailable: It is not up.
            Conflict: Nothing runs there.
        """
        if name not in KINDS:
            raise UsageError(
                f"'{name}' is no simulated cloud, and no other is taken away here; "
                f"choose one of: {', '.join(KINDS)}"
            )
        server = find_server(self._folder, METADATA)
        if server is None:
            raise Unavailable(f"{name} is not up, or was before; run: cloudshift clouds up")
        machine = f"{name}.{run_id}." if run_id else f"{name}."
        return preempt(server.port, Preempt(in_s=in_s, machine=machine, kills=kills))

    def status(self) -> tuple[SimStatus, ...]:
        """Which of the two run, and where."""
        return tuple(self._status(name) for name in KINDS)

    @contextmanager
    def joined(self, *, rtt_s: float, bytes_per_s: float | None) -> Iterator[Link]:
        """Let all who are outside of a cloud reach it over one limited link, while this lasts.

        Its direction ``out`` is from ``aws-sim`` to ``gcp-sim``. The clouds must be up.

        Args:
            rtt_s: There and back, seconds.
            bytes_per_s: Of each direction; None: no limit.

        Raises:
            Unavailable: A cloud is not up, or the link does not start.
        """
        doors = tuple(self._door(name) for name in KINDS)
        with Link(LinkSpec(doors, rtt_s, bytes_per_s)) as link:
            self._publish(link.ports)
            try:
                yield link
            finally:
                self._publish({})

    def server(self, name: str) -> Server | None:
        """A running server, for playing an outage with ``freeze`` and ``thaw``."""
        return find_server(self._folder, name)

    def _status(self, name: str) -> SimStatus:
        server = find_server(self._folder, name)
        if server is None:
            return SimStatus(name, running=False, store_url=store_url(name))
        return SimStatus(
            name,
            running=True,
            store_url=store_url(name),
            endpoint=server.endpoint,
            pid=server.pid,
        )

    def _ensure(self, name: str, progress: Callable[[str], None]) -> Server:
        server = find_server(self._folder, name)
        verb = "already runs at" if server else "runs at"
        if server is None:
            server = start_server(self._folder, name, KINDS[name], world=self._world)
        make_bucket(server, _bucket(name))
        progress(f"{name} (simulated) {verb} {server.endpoint}, store {store_url(name)}")
        return server

    def _door(self, name: str) -> Door:
        server = find_server(self._folder, name)
        if server is None:
            raise Unavailable(
                f"{name} is not up, so no link leads to it; run: cloudshift clouds up"
            )
        is_first = name == AWS_SIM
        up: Direction = "in" if is_first else "out"
        down: Direction = "out" if is_first else "in"
        return Door(name, server.port, up, down)

    def _publish(self, ports: dict[str, int]) -> None:
        """Write who is reached where from outside; without a port: where everybody is."""
        with self._locked():
            running = (find_server(self._folder, name) for name in KINDS)
            metadata = find_server(self._folder, METADATA)
            self._list(
                tuple(
                    describe(server, ports.get(server.name), metadata=metadata)
                    for server in running
                    if server is not None
                )
            )

    def _list(self, clouds: tuple[Cloud, ...]) -> None:
        ours = {AWS_SIM, GCP_SIM}
        local = local_cloud(self._root)
        kept = (c for c in load_clouds(self._root).clouds if c.name not in ours and c != local)
        save_clouds(self._root, Clouds(clouds=(*kept, *clouds)))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One caller at a time, also across processes."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def store_url(name: str) -> str:
    """Where a simulated cloud keeps the runs' objects."""
    return f"{'s3' if KINDS[name] == 's3' else 'gs'}://{_bucket(name)}/lab"


def describe(
    server: Server, public_port: int | None = None, *, metadata: Server | None = None
) -> Cloud:
    """The entry of ``clouds.json`` for a running server.

    Args:
        server: Keeps the cloud's objects.
        public_port: Where those outside of the cloud reach it; None: where everybody does.
        metadata: Tells its machines of their end; None: nobody does.
    """
    if server.kind == "s3":
        title = "simulated AWS (an S3 server on this machine)"
        prices = catalogue.AWS_TYPE, catalogue.AWS_AS_OF, catalogue.AWS_PRICES
        egress = catalogue.AWS_EGRESS
    else:
        title = "simulated Google Cloud (a GCS server on this machine)"
        prices = catalogue.GCP_TYPE, catalogue.GCP_AS_OF, catalogue.GCP_PRICES
        egress = catalogue.GCP_EGRESS
    return Cloud(
        name=server.name,
        title=title,
        store_url=store_url(server.name),
        store_options=_options(server.kind, server.endpoint),
        public_store_options=(
            None if public_port is None else _options(server.kind, f"http://{HOST}:{public_port}")
        ),
        offers=catalogue.offers(server.name, *prices),
        egress=egress,
        put_micro_usd_per_1000=catalogue.PUT_MICRO_USD_PER_1000,
        get_micro_usd_per_1000=catalogue.GET_MICRO_USD_PER_1000,
        simulated=True,
        note=catalogue.NOTE,
        notices=None if metadata is None else _notices(server.name, metadata),
    )


def _notices(name: str, metadata: Server) -> Notices:
    """Each machine has an address of its own; nothing is polled but the emulator."""
    return Notices(DIALECTS[name], f"{metadata.endpoint}/machine/{name}.{{machine}}")


def _options(kind: ServerKind, endpoint: str) -> dict[str, msgspec.Raw]:
    if kind == "s3":
        options = {"key": "simulated", "secret": "simulated", "endpoint_url": endpoint}
    else:
        options = {"token": "anon", "project": "simulated", "endpoint_url": endpoint}
    return {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in options.items()}


def _bucket(name: str) -> str:
    return f"cloudshift-{name}"


def _quiet(line: str) -> None:
    """Say nothing."""
    del line
