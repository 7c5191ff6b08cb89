"""How an attempt reaches a store: its own cloud's from inside, another from outside."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest

from cloudshift_lab.agent.stores import open_job_store, open_source_store
from cloudshift_lab.core.errors import NotFound
from cloudshift_lab.core.home import load_clouds, save_clouds
from cloudshift_lab.core.placement import Cloud, Clouds, Placement
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.storage.store import Store, open_cloud_store


@contextmanager
def listening(name: str, seen: list[str]) -> Iterator[str]:
    """A server that has no object and says by which address it was asked."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(name)
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def seen(tmp_path):
    """Two clouds with two addresses each; fills up with those that are asked."""
    found: list[str] = []
    with ExitStack() as stack:
        clouds = []
        for cloud in ("here", "there"):
            inside, outside = (
                {
                    "key": msgspec.Raw(b'"k"'),
                    "secret": msgspec.Raw(b'"s"'),
                    "endpoint_url": msgspec.Raw(
                        msgspec.json.encode(
                            stack.enter_context(listening(f"{cloud} {side}", found))
                        )
                    ),
                }
                for side in ("inside", "outside")
            )
            clouds.append(
                Cloud(
                    name=cloud,
                    title=cloud,
                    store_url=f"s3://{cloud}/lab",
                    store_options=inside,
                    public_store_options=outside,
                )
            )
        save_clouds(tmp_path, Clouds(clouds=tuple(clouds)))
        yield found
    assert found


def job(root, source: str) -> JobSpec:
    return JobSpec(
        run_id="run-1", generation=2, owner="o", placement=Placement("here", "r", "m"), seed=1,
        store_url="s3://here/lab", script="s.py", home=str(root), workdir="",
        source_cloud=source, source_url=f"s3://{source}/lab",
    )  # fmt: skip


def asked(store: Store | None) -> None:
    assert store is not None
    with pytest.raises(NotFound):
        store.get("runs/run-1/nothing")


def test_an_attempt_reaches_its_own_cloud_from_inside_and_another_from_outside(tmp_path, seen):
    asked(open_job_store(job(tmp_path, "there")))
    asked(open_source_store(job(tmp_path, "there")))
    asked(open_source_store(job(tmp_path, "here")))
    assert list(dict.fromkeys(seen)) == ["here inside", "there outside"]


def test_who_runs_in_no_cloud_reaches_all_from_outside(tmp_path, seen):
    here, there = (load_clouds(tmp_path).find(name) for name in ("here", "there"))
    asked(open_cloud_store(here))
    asked(open_cloud_store(there))
    asked(open_cloud_store(here, inside=True))
    assert list(dict.fromkeys(seen)) == ["here outside", "there outside", "here inside"]
