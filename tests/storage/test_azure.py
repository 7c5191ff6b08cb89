"""What Azure's client is told, what its errors mean, and that no credential is shown; no server."""

import asyncio
import gc
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from cloudshift_lab.core.errors import CloudshiftError, Denied, UsageError
from cloudshift_lab.storage.dialect import Verdict
from cloudshift_lab.storage.store import open_store

pytest.importorskip("adlfs", reason="needs adlfs; run: pip install 'cloudshift-lab[azure]'")

from azure.core import exceptions as azure

from cloudshift_lab.storage.azure import AzureDialect

KEY = "dG9wL3NlY3JldCtrZXk9PQ=="
SIGNATURE = "top%2Fsecret%2Bsignature%3D"
SAS = f"sv=2025-01-05&sp=rwdl&sig={SIGNATURE}"
ACCOUNT = {"account_name": "lab", "account_key": KEY}


@pytest.fixture(autouse=True)
def no_account_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCOUNT_NAME", "ACCOUNT_KEY", "CONNECTION_STRING", "SAS_TOKEN", "CLIENT_ID"):
        monkeypatch.delenv(f"AZURE_STORAGE_{name}", raising=False)


def built(options: dict[str, object]) -> AzureDialect:
    dialect = AzureDialect("box", "lab/", options)
    dialect.build()
    return dialect


def address(options: dict[str, object]) -> str:
    return str(built(options)._blob("a/b").url)


def test_an_account_is_at_azure_unless_an_endpoint_is_given() -> None:
    assert address({**ACCOUNT}) == "https://lab.blob.core.windows.net/box/lab/a/b"
    near = {**ACCOUNT, "endpoint_url": "http://127.0.0.1:10000/"}
    assert address(near) == "http://127.0.0.1:10000/lab/box/lab/a/b"


@pytest.mark.parametrize("sas", [SAS, f"?{SAS}"])
def test_a_signed_address_goes_to_the_endpoint_too(sas: str) -> None:
    near = {"account_name": "lab", "sas_token": sas, "endpoint_url": "http://127.0.0.1:10000"}
    url = address(near)
    assert url.startswith("http://127.0.0.1:10000/lab/box/lab/a/b?")
    assert f"sig={SIGNATURE}" in url


def test_a_connection_string_is_taken_as_it_is() -> None:
    given = f"BlobEndpoint=http://127.0.0.1:7/other;AccountName=other;AccountKey={KEY};"
    assert address({"connection_string": given}) == "http://127.0.0.1:7/other/box/lab/a/b"


def test_the_options_given_are_not_changed() -> None:
    options = {**ACCOUNT, "endpoint_url": "http://127.0.0.1:10000"}
    before = dict(options)
    built(options)
    assert options == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"endpoint_url": "http://127.0.0.1:9"}, "endpoint_url needs account_name"),
        ({"connection_string": f"AccountKey={KEY}"}, "mend the store's URL or options"),
        ({"connection_string": KEY}, "mend the store's URL or options"),
        ({"anon": True}, "connection_string or account_name"),
    ],
)
def test_options_that_name_no_account_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        open_store("az://box/lab", options, deadline_s=5).get("a")
    assert KEY not in str(caught.value)


def test_the_client_does_not_try_again_by_itself() -> None:
    policies = built({**ACCOUNT})._fs.service_client._pipeline._impl_policies
    assert [p.total_retries for p in policies if hasattr(p, "total_retries")] == [0]


def test_a_client_without_the_retry_attributes_is_left_as_it_is() -> None:
    from cloudshift_lab.storage.azure import _try_once

    _try_once(object())


class Answer:
    """As much of an HTTP answer as an error looks at."""

    reason = "because"

    def __init__(self, status: int) -> None:
        self.status_code = status
        self.headers: dict[str, str] = {}

    def text(self, encoding: str = "utf-8") -> str:
        return ""


@pytest.mark.parametrize(
    ("kind", "status", "verdict"),
    [
        (azure.HttpResponseError, 401, "denied"),
        (azure.ClientAuthenticationError, 403, "denied"),
        (azure.ClientAuthenticationError, 400, "denied"),
        (azure.ClientAuthenticationError, 503, "again"),
        (azure.ResourceNotFoundError, 404, "absent"),
        (azure.HttpResponseError, 416, "beyond"),
        (azure.HttpResponseError, 507, "full"),
        (azure.HttpResponseError, 400, "refused"),
        (azure.HttpResponseError, 503, "busy"),
        (azure.HttpResponseError, 429, "busy"),
        (azure.ResourceModifiedError, 412, "again"),
        (azure.ResourceExistsError, 409, "again"),
        (azure.IncompleteReadError, 200, "again"),
    ],
)
def test_an_answer_means_what_its_status_says(
    kind: type[azure.HttpResponseError], status: int, verdict: Verdict
) -> None:
    assert AzureDialect("box", "", {}).judge(kind(response=Answer(status))) == verdict


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (FileNotFoundError("a"), "absent"),
        (FileExistsError("a"), "exists"),
        (TimeoutError(), "again"),
        (ConnectionResetError(), "again"),
        (azure.ServiceRequestError("no route"), "again"),
        (azure.ServiceResponseError("cut off"), "again"),
        (azure.ClientAuthenticationError("no token"), "denied"),
        (ValueError("bad name"), "refused"),
    ],
)
def test_an_error_without_an_answer_means_what_its_kind_says(
    error: Exception, verdict: Verdict
) -> None:
    dialect = AzureDialect("box", "", {})
    assert isinstance(error, dialect.errors)
    assert dialect.judge(error) == verdict


class Telltale(http.server.BaseHTTPRequestHandler):
    """Refuses everything and repeats all that was asked, and the account's key."""

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        words = f"{KEY} AccountKey={KEY}; {self.path}"
        body = f"<Error><Code>AuthFailed</Code><Message>{words}</Message></Error>".encode()
        self.send_response(403, words)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = answer

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def telltale() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Telltale)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("form", ["key", "sas", "connection"])
def test_a_refusal_that_repeats_the_credentials_does_not_reach_the_message(
    form: str, telltale: str
) -> None:
    options: dict[str, object] = {
        "key": {**ACCOUNT, "endpoint_url": telltale},
        "sas": {"account_name": "lab", "sas_token": SAS, "account_key": KEY}
        | {"endpoint_url": telltale},
        "connection": {
            "connection_string": f"BlobEndpoint={telltale}/lab;AccountName=lab;AccountKey={KEY}"
        },
    }[form]
    for call in ("get", "put"):
        store = open_store("az://box/lab", options, deadline_s=5)
        with pytest.raises(Denied) as caught:
            store.get("a") if call == "get" else store.put("a", b"x")
        assert "***" in str(caught.value)
        assert_silent(caught.value)


def assert_silent(error: BaseException | None) -> None:
    while error is not None:
        shown = f"{error} {error!r} {getattr(error, 'facts', '')}"
        assert not [s for s in (KEY, SIGNATURE, "top/secret") if s in shown], shown
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_a_key_that_cannot_sign_is_denied_without_a_pause() -> None:
    options = {"account_name": "lab", "account_key": "x", "endpoint_url": "http://127.0.0.1:9"}
    with pytest.raises(CloudshiftError) as caught:
        open_store("az://box/lab", options, deadline_s=5).get("a")
    assert caught.value.action == "fix"


def test_a_client_is_closed_when_nobody_holds_it_any_more() -> None:
    dialect = built({**ACCOUNT, "endpoint_url": "http://127.0.0.1:9"})
    transport = dialect._fs.service_client._pipeline._transport
    loop = dialect.loop
    asyncio.run_coroutine_threadsafe(transport.open(), loop).result(10)
    assert transport.session is not None
    del dialect
    gc.collect()
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), loop).result(10)
    assert transport.session is None


FORKED = """
import os, signal, sys
from cloudshift_lab.core.errors import Unavailable
from cloudshift_lab.storage.store import open_store
options = {"account_name": "lab", "account_key": "eA==", "endpoint_url": "http://127.0.0.1:9"}
store = open_store("az://box/lab", options, deadline_s=0.5)
def ask():
    try:
        store.get("a")
    except Unavailable:
        return
    raise AssertionError("it answered")
ask()
child = os.fork()
signal.alarm(30)
ask()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_process_that_forked_has_its_own_client_and_ends() -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
