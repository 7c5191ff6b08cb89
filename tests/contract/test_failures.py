"""When a store is away, full, closed or lies: what it costs is bounded and the message helps."""

import http.server
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cloudshift_lab.core.errors import (
    CloudshiftError,
    Denied,
    Exhausted,
    NotFound,
    Unavailable,
    Unsupported,
)
from cloudshift_lab.core.world import RealWorld
from cloudshift_lab.sim.proxy import FaultyProxy
from cloudshift_lab.sim.servers import (
    AZURE_ACCOUNT,
    AZURE_KEY,
    Server,
    make_bucket,
    start_server,
    stop_server,
)
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.store import Store, open_store, probe_store

REMOTE = ["s3", "gs", "az"]
CALLS: dict[str, Callable[[Store], object]] = {
    "get": lambda store: store.get("a"),
    "put": lambda store: store.put("a", b"x"),
    "create": lambda store: store.create("a", b"x"),
    "size": lambda store: store.size("a"),
    "list": lambda store: store.list("a"),
    "delete": lambda store: store.delete("a"),
    "probe": probe_store,
}
Address = Callable[[str], tuple[str, dict[str, object]]]


class Skipping(RealWorld):
    """Pauses take no time but count."""

    slept_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.slept_s

    def sleep(self, seconds: float) -> None:
        self.slept_s += seconds


@pytest.mark.parametrize("kind", REMOTE)
@pytest.mark.parametrize("call", CALLS)
def test_an_unreachable_store_is_unavailable_and_says_which_and_what_to_do(
    kind: str, call: str, store_address: Address
) -> None:
    url, options = store_address(kind)
    world = Skipping()
    store = open_store(
        url, {**options, "endpoint_url": "http://127.0.0.1:9"}, world=world, deadline_s=30
    )
    with pytest.raises(Unavailable) as caught:
        CALLS[call](store)
    assert caught.value.message.startswith(url)
    assert caught.value.message.endswith("check the network and the endpoint, then try again")
    assert 0 < world.slept_s <= 30


@pytest.fixture
def proxied(
    request: pytest.FixtureRequest, store_address: Address
) -> Iterator[tuple[Store, FaultyProxy]]:
    url, options = store_address(request.param)
    port = int(str(options["endpoint_url"]).rpartition(":")[2])
    with FaultyProxy(port) as proxy:
        options["endpoint_url"] = f"http://127.0.0.1:{proxy.port}"
        yield open_store(url, options, world=Skipping()), proxy


@pytest.mark.parametrize("proxied", REMOTE, indirect=True)
@pytest.mark.parametrize("fault", ["lose", "busy"])
def test_a_create_whose_answer_is_lost_is_known_to_be_ours(
    proxied: tuple[Store, FaultyProxy], fault: str
) -> None:
    store, proxy = proxied
    proxy.inject(fault)  # type: ignore[arg-type]
    assert store.create("log/0", b"ours, nonce 1")
    assert proxy.num_faults == 1
    assert store.get("log/0") == b"ours, nonce 1"


@pytest.mark.parametrize("proxied", REMOTE, indirect=True)
def test_a_lost_create_that_somebody_else_won_is_known_not_to_be_ours(
    proxied: tuple[Store, FaultyProxy],
) -> None:
    store, proxy = proxied
    assert store.create("log/0", b"theirs, nonce 1")
    proxy.inject("lose", "busy")
    assert not store.create("log/0", b"ours, nonce 2")
    assert proxy.num_faults == 2


@pytest.mark.parametrize("proxied", REMOTE, indirect=True)
def test_a_few_lost_answers_are_not_noticed(proxied: tuple[Store, FaultyProxy]) -> None:
    store, proxy = proxied
    proxy.inject("busy", "lose", "busy")
    store.put("a", b"x" * 100_000)
    proxy.inject("lose", "busy")
    assert store.get("a") == b"x" * 100_000
    assert proxy.num_faults == 5


@pytest.mark.parametrize("proxied", REMOTE, indirect=True)
def test_a_run_log_over_a_bad_network_has_each_record_once(
    proxied: tuple[Store, FaultyProxy],
) -> None:
    store, proxy = proxied
    log = RunLog(store, "r")
    log.acquire(generation=1, owner="a", nonce="acquire")
    for step in range(6):
        proxy.inject("lose", "busy")
        log.commit(
            generation=1, step=step, manifest_key="m", manifest_digest="d", nonce=f"commit-{step}"
        )
    assert [record.step for record in RunLog(store, "r").sync().commits] == list(range(6))
    assert proxy.num_faults == 12


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(kind: str, env: dict[str, str] | None = None) -> Server:
        try:
            server = start_server(tmp_path / "servers", kind, kind, env=env)  # type: ignore[arg-type]
        except Unsupported as missing:
            pytest.skip(missing.message)
        servers.append(server)
        make_bucket(server, "bucket")
        return server

    yield start
    for server in servers:
        stop_server(server)


@pytest.mark.parametrize(
    ("kind", "url", "options"),
    [
        ("s3", "s3://bucket/lab", {"key": "k", "secret": "s"}),
        ("gcs", "gs://bucket/lab", {"token": "anon", "project": "p"}),
        ("azure", "az://bucket/lab", {"account_name": AZURE_ACCOUNT, "account_key": AZURE_KEY}),
    ],
)
def test_a_frozen_store_is_unavailable_and_serves_again_when_it_thaws(
    kind: str, url: str, options: dict[str, object], own_server: Callable[..., Server]
) -> None:
    server = own_server(kind)
    patient = open_store(url, {**options, "endpoint_url": server.endpoint})
    patient.put("a", b"before")
    store = open_store(url, {**options, "endpoint_url": server.endpoint}, deadline_s=1)
    server.freeze()
    with pytest.raises(Unavailable, match="within 1 s"):
        store.put("b", b"x")
    with pytest.raises(Unavailable, match="within 1 s"):
        store.get("a")
    server.thaw()
    assert patient.get("a") == b"before"


@pytest.mark.parametrize("call", CALLS)
def test_wrong_s3_credentials_are_denied_and_never_shown(
    call: str, enforcing_server: Server
) -> None:
    store = open_store(
        "s3://bucket/lab",
        {"key": "AKIAWRONGWRONG", "secret": "topsecret", "endpoint_url": enforcing_server.endpoint},
        deadline_s=10,
    )
    with pytest.raises(Denied, match="check the credentials") as caught:
        CALLS[call](store)
    assert_silent_about(caught.value, "AKIAWRONGWRONG", "topsecret")


@pytest.fixture(scope="module")
def enforcing_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An S3 server that checks credentials after the first request, which makes the bucket."""
    folder = tmp_path_factory.mktemp("enforcing")
    server = start_server(folder, "enforcing", "s3", env={"INITIAL_NO_AUTH_ACTION_COUNT": "1"})
    make_bucket(server, "bucket")
    yield server
    stop_server(server)


class Refusing(http.server.BaseHTTPRequestHandler):
    """Answers everything with the status in the class, as a cloud's front door does."""

    status = 403

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = self.body()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        return b'{"error": {"code": %d, "message": "not allowed"}}' % self.status

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, *args: object) -> None:
        pass


class Echoing(Refusing):
    """Repeats in its answer who asked, as some proxies do."""

    def body(self) -> bytes:
        words = self.headers.get("Authorization", "")
        return f"<Error><Code>AccessDenied</Code><Message>not {words}</Message></Error>".encode()


@contextmanager
def serving(handler: type[Refusing]) -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(params=[(401, Denied), (403, Denied), (507, Exhausted)])
def refusing(request: pytest.FixtureRequest) -> Iterator[tuple[int, type[CloudshiftError]]]:
    status, error = request.param
    with serving(type("Handler", (Refusing,), {"status": status})) as port:
        yield port, error


def test_an_answer_that_repeats_the_credentials_does_not_reach_the_message() -> None:
    options = {"key": "AKIAECHOECHO", "secret": "topsecret"}
    with serving(Echoing) as port:
        url = f"http://127.0.0.1:{port}"
        store = open_store("s3://bucket/lab", {**options, "endpoint_url": url})
        with pytest.raises(Denied, match=r"Credential=\*\*\*") as caught:
            store.get("a")
    assert_silent_about(caught.value, *options.values())


@pytest.mark.parametrize("call", ["get", "put", "create", "probe"])
@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("gs://bucket/lab", {"token": "anon", "project": "p"}),
        ("az://bucket/lab", {"account_name": AZURE_ACCOUNT, "account_key": AZURE_KEY}),
    ],
)
def test_a_refusing_bucket_is_reported_at_once_with_its_reason(
    url: str, options: dict[str, object], call: str, refusing: tuple[int, type[CloudshiftError]]
) -> None:
    port, expected = refusing
    world = Skipping()
    endpoint = {"endpoint_url": f"http://127.0.0.1:{port}"}
    store = open_store(url, {**options, **endpoint}, world=world)
    with pytest.raises(expected, match=url):
        CALLS[call](store)
    assert world.slept_s == 0


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_azure_key_is_denied_and_never_shown(call: str, store_address: Address) -> None:
    url, options = store_address("az")
    options["account_key"] = "dG9wc2VjcmV0dG9wc2VjcmV0"
    with pytest.raises(Denied, match="check the credentials") as caught:
        CALLS[call](open_store(url, options, deadline_s=10))
    assert_silent_about(caught.value, str(options["account_key"]))


def test_a_broken_gcs_key_is_reported_without_the_key() -> None:
    token = {"type": "service_account", "client_email": "a@b", "private_key": "very/private+key"}
    store = open_store("gs://bucket/lab", {"token": token, "project": "p"}, deadline_s=5)
    with pytest.raises(CloudshiftError) as caught:
        store.get("a")
    assert_silent_about(caught.value, "very/private+key")
    assert caught.value.action == "fix"


def assert_silent_about(error: BaseException | None, *secrets: str) -> None:
    """No secret in the message, the facts, or what Python would print as the cause."""
    while error is not None:
        shown = f"{error} {error!r} {getattr(error, 'facts', '')}"
        assert not [secret for secret in secrets if secret in shown]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@pytest.mark.parametrize("kind", REMOTE)
def test_writing_to_a_bucket_that_is_not_there_says_so(kind: str, store_address: Address) -> None:
    _, options = store_address(kind)
    store = open_store(f"{kind}://no-such-bucket/lab", options)
    for call in ("put", "create", "probe"):
        with pytest.raises(NotFound, match="no such bucket; create it"):
            CALLS[call](store)


@pytest.fixture
def closed_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder this process may read but not write; as root, by becoming nobody for a while."""
    folder = tmp_path / "closed"
    (folder / "here").mkdir(parents=True)
    (folder / "here" / "a").write_bytes(b"x")
    tmp_path.parent.parent.chmod(0o755)
    tmp_path.parent.chmod(0o755)
    tmp_path.chmod(0o755)
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    folder.chmod(0o755)


def test_a_read_only_folder_can_be_read_and_its_writes_are_denied(closed_folder: Path) -> None:
    store = open_store(f"file://{closed_folder}")
    assert store.get("here/a") == b"x"
    for call in ("put", "create", "probe"):
        with pytest.raises(Denied, match="make the folder writable") as caught:
            CALLS[call](store)
        assert f"file://{closed_folder}" in caught.value.message


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode != 0:
        pytest.skip(f"needs the right to mount a small disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_exhausted_and_leaves_no_half_object(small_disk: Path) -> None:
    store = open_store(f"file://{small_disk}/lab")
    store.put("kept", b"x" * 100_000)
    with pytest.raises(Exhausted, match="free space or choose another store"):
        store.put("too-large", b"x" * 500_000)
    with pytest.raises(Exhausted):
        store.create("too-large", b"x" * 500_000)
    assert store.list("") == ["kept"]
    assert list((small_disk / "lab" / ".tmp").iterdir()) == []
    store.put("fits", b"x" * 100_000)


def test_a_store_below_a_file_is_a_wrong_url(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    store = open_store(f"file://{tmp_path}/file/lab")
    with pytest.raises(CloudshiftError, match="give the store a folder of its own"):
        store.put("a", b"x")
