"""Whatever the provider, a machine hears of its end in the same way; over real HTTP, here."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cloudshift_lab.core.errors import CloudshiftError, Unavailable, UsageError
from cloudshift_lab.core.placement import NoticeDialect, Notices
from cloudshift_lab.core.world import REAL_WORLD, RealWorld
from cloudshift_lab.engines.notices import Dialect, Notice
from cloudshift_lab.engines.notices_gcp import GcpNotices
from cloudshift_lab.engines.notices_watch import LINK_LOCAL, NoticeWatch, dialect_of
from cloudshift_lab.sim.metadata import MetadataServer, Preempt, look, preempt

DIALECTS: tuple[NoticeDialect, ...] = ("aws", "gcp", "azure")
LIMIT_S = 60.0
MACHINE = "run-1.1.0"
USUAL = f"{LINK_LOCAL.removeprefix('http://')}:80"


@pytest.fixture
def server() -> Iterator[MetadataServer]:
    with MetadataServer() as started:
        yield started


def eventually(look: Callable[[], object], what: str) -> None:
    until = time.monotonic() + LIMIT_S
    while not look():
        assert time.monotonic() < until, f"waited for {what}"
        time.sleep(0.01)


@pytest.fixture(params=DIALECTS)
def name(request: pytest.FixtureRequest) -> NoticeDialect:
    found: NoticeDialect = request.param
    return found


def speaking(name: NoticeDialect, url: str, *, waits_s: float = 0.05, **settings: float) -> Dialect:
    notices = Notices(dialect=name, url=url, **settings)  # type: ignore[arg-type]
    found = dialect_of(notices, {}, REAL_WORLD, machine=MACHINE)
    assert found is not None
    if isinstance(found, GcpNotices):
        found.waits_s = waits_s
    return found


@contextmanager
def listening(name: NoticeDialect, url: str, *, waits_s: float = 0.05) -> Iterator[NoticeWatch]:
    watch = NoticeWatch(speaking(name, url, waits_s=waits_s, every_s=0.02), again_s=0.02)
    watch.start()
    try:
        yield watch
    finally:
        watch.close()


class TestEveryDialect:
    """What agents count on, whoever runs the machine."""

    def test_a_machine_that_stays_hears_nothing(
        self, server: MetadataServer, name: NoticeDialect
    ) -> None:
        assert speaking(name, server.url).look() == ()

    def test_a_machine_that_goes_hears_in_how_many_seconds(
        self, server: MetadataServer, name: NoticeDialect
    ) -> None:
        dialect = speaking(name, server.url, lead_s=30.0)
        assert dialect.look() == ()
        preempt(server.port, Preempt(in_s=30.0))
        (notice,) = dialect.look()
        assert not notice.is_hint
        assert notice.left_s is not None and 27.0 <= notice.left_s <= 31.0
        assert notice.within_s(notice.heard_at + 10.0) == pytest.approx(notice.left_s - 10.0)
        assert notice.within_s(notice.heard_at + 100.0) == 0.0
        dialect.close()

    def test_what_an_emulator_says_is_marked_as_simulated(
        self, server: MetadataServer, name: NoticeDialect
    ) -> None:
        dialect = speaking(name, server.url)
        dialect.look()
        preempt(server.port, Preempt(in_s=30.0))
        assert [notice.simulated for notice in dialect.look()] == [True]

    def test_the_same_notice_is_given_out_once(
        self, server: MetadataServer, name: NoticeDialect
    ) -> None:
        with listening(name, server.url) as watch:
            eventually(lambda: look(server.port).machines, "the first question")
            preempt(server.port, Preempt(in_s=30.0))
            heard: list[Notice] = []
            eventually(lambda: heard.extend(watch.heard()) or heard, "the notice")
            again = speaking(name, server.url)
            first, second = again.look(), again.look()
            assert [n.notice_id for n in first] == [n.notice_id for n in second]
            time.sleep(0.3)  # it has looked again and again meanwhile
            heard.extend(watch.heard())
        assert len(heard) == 1

    def test_a_notice_that_is_called_off_and_given_again_is_another_one(
        self, server: MetadataServer, name: NoticeDialect
    ) -> None:
        dialect = speaking(name, server.url)
        dialect.look()
        found = []
        for in_s in (30.0, 20.0):
            preempt(server.port, Preempt(in_s=in_s))
            found += dialect.look()
            server.machines.clear()
            assert dialect.look() == ()
        assert len({notice.notice_id for notice in found}) == 2

    def test_a_machine_hears_of_its_own_end_only(
        self, server: MetadataServer, name: NoticeDialect
    ) -> None:
        mine, other = (speaking(name, server.url_of(each)) for each in ("run-1.1.0", "run-2.1.0"))
        assert (mine.look(), other.look()) == ((), ())
        preempt(server.port, Preempt(in_s=30.0, machine="run-2"))
        assert len(other.look()) == 1
        assert mine.look() == ()

    def test_a_machine_that_was_made_afterwards_is_not_meant(
        self, server: MetadataServer, name: NoticeDialect
    ) -> None:
        speaking(name, server.url_of("run-1.1.0")).look()
        preempt(server.port, Preempt(in_s=30.0))
        assert speaking(name, server.url_of("run-1.2.0")).look() == ()

    def test_a_machine_that_is_still_there_afterwards_was_spared(
        self, server: MetadataServer, name: NoticeDialect
    ) -> None:
        dialect = speaking(name, server.url)
        dialect.look()
        preempt(server.port, Preempt(in_s=0.0))
        assert len(dialect.look()) == 1
        eventually(lambda: dialect.look() == (), "the end of the notice")

    def test_a_service_that_refuses_is_said_once_and_again_after_it_came_back(
        self, server: MetadataServer, name: NoticeDialect
    ) -> None:
        server.machines.mood = "busy"
        said: list[str] = []
        with listening(name, server.url) as watch:
            eventually(lambda: said.extend(watch.complaints()) or said, "the complaint")
            time.sleep(0.2)
            assert watch.complaints() == ()
            server.machines.mood = "well"
            eventually(lambda: look(server.port).machines, "a question that is answered")
            preempt(server.port, Preempt(in_s=30.0))
            eventually(watch.heard, "the notice after the outage")
            server.machines.mood = "busy"
            eventually(lambda: said.extend(watch.complaints()) or len(said) == 2, "the second one")
        assert all("127.0.0.1" in line for line in said)

    def test_a_service_that_keeps_silent_holds_nobody_up(
        self, server: MetadataServer, name: NoticeDialect
    ) -> None:
        server.machines.mood = "silent"
        with listening(name, server.url) as watch:
            for _ in range(100):
                before = time.monotonic()
                assert watch.heard() == ()
                assert time.monotonic() - before < 1.0
            assert eventually(watch.complaints, "the complaint") is None

    def test_a_service_that_is_not_there_is_an_error_that_says_so(
        self, name: NoticeDialect
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        with pytest.raises(Unavailable, match=f"127.0.0.1:{port} does not answer"):
            speaking(name, f"http://127.0.0.1:{port}").look()

    def test_nonsense_is_not_taken_for_a_notice(self, name: NoticeDialect) -> None:
        with saying(b"HTTP/1.0 200 OK\r\n\r\n<html>a proxy's page</html>") as port:
            dialect = speaking(name, f"http://127.0.0.1:{port}")
            with pytest.raises(CloudshiftError, match="asking again"):
                dialect.look()

    def test_closing_ends_a_question_that_waits(
        self, server: MetadataServer, name: NoticeDialect
    ) -> None:
        watch = NoticeWatch(speaking(name, server.url, waits_s=600.0, every_s=0.0))
        watch.start()
        eventually(lambda: look(server.port).machines, "the first question")
        before = time.monotonic()
        watch.close()
        assert time.monotonic() - before < 4.0
        assert watch.complaints() == ()


@contextmanager
def saying(answer: bytes) -> Iterator[int]:
    """A server that says the same to everybody."""
    import threading

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    client.recv(65536)
                    client.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)


class SkewedWorld(RealWorld):
    """A machine whose clock is an hour ahead."""

    def now(self) -> float:
        return super().now() + 3600.0


@pytest.mark.parametrize("name", ["aws", "azure"])
def test_a_machine_with_a_wrong_clock_counts_by_the_services(
    server: MetadataServer, name: NoticeDialect
) -> None:
    notices = Notices(dialect=name, url=server.url)
    dialect = dialect_of(notices, {}, SkewedWorld(), machine=MACHINE)
    assert dialect is not None
    dialect.look()
    preempt(server.port, Preempt(in_s=60.0))
    (notice,) = dialect.look()
    assert notice.left_s == pytest.approx(60.0, abs=3.0)


def test_gcp_tells_at_once_what_a_poll_would_tell_later(server: MetadataServer) -> None:
    with listening("gcp", server.url, waits_s=600.0) as watch:
        eventually(lambda: look(server.port).machines, "the first question")
        preempt(server.port, Preempt(in_s=30.0))
        eventually(watch.heard, "the notice")


def test_aws_recommends_to_rebalance_before_it_says_when(server: MetadataServer) -> None:
    dialect = speaking("aws", server.url)
    dialect.look()
    preempt(server.port, Preempt(in_s=600.0))
    (hint,) = dialect.look()
    assert hint.is_hint and "rebalance" in hint.says
    preempt(server.port, Preempt(in_s=100.0))
    assert [notice.is_hint for notice in dialect.look()] == [False, True]


def test_an_aws_token_that_has_run_out_is_replaced(server: MetadataServer) -> None:
    dialect = speaking("aws", server.url)
    dialect.look()
    server.machines.forget_tokens()
    assert dialect.look() == ()


def test_an_azure_event_is_acknowledged_by_the_machine_that_is_ready(
    server: MetadataServer,
) -> None:
    with listening("azure", server.url_of(MACHINE)) as watch:
        eventually(lambda: look(server.port).machines, "the first question")
        preempt(server.port, Preempt(in_s=60.0))
        heard: list[Notice] = []
        eventually(lambda: heard.extend(watch.heard()) or heard, "the notice")
        assert look(server.port).events[0].started == ()
        watch.acknowledge(heard[0])
        eventually(lambda: look(server.port).events[0].started == (MACHINE,), "the word")


def test_an_acknowledgement_is_repeated_until_it_was_heard(server: MetadataServer) -> None:
    with listening("azure", server.url_of(MACHINE)) as watch:
        eventually(lambda: look(server.port).machines, "the first question")
        preempt(server.port, Preempt(in_s=60.0))
        heard: list[Notice] = []
        eventually(lambda: heard.extend(watch.heard()) or heard, "the notice")
        server.machines.mood = "busy"
        watch.acknowledge(heard[0])
        eventually(watch.complaints, "the complaint")
        server.machines.mood = "well"
        eventually(lambda: look(server.port).events[0].started, "the word")


# -- where the service is --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("notices", "environ", "place"),
    [
        (Notices("aws"), {}, USUAL),
        (Notices("gcp"), {}, USUAL),
        (Notices("azure"), {}, USUAL),
        (Notices("aws"), {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://h:1/x/"}, "h:1"),
        (Notices("gcp"), {"GCE_METADATA_HOST": "h:2"}, "h:2"),
        (Notices("azure"), {"GCE_METADATA_HOST": "h:2"}, USUAL),
        (Notices("gcp", "http://mine:3"), {"GCE_METADATA_HOST": "h:2"}, "mine:3"),
    ],
)  # fmt: skip
def test_the_settings_come_before_the_providers_variables(
    notices: Notices, environ: dict[str, str], place: str
) -> None:
    dialect = dialect_of(notices, environ, REAL_WORLD, machine=MACHINE)
    assert dialect is not None
    assert dialect._client.place == place  # type: ignore[attr-defined]


def test_nobody_is_asked_where_the_cloud_does_not_say_so() -> None:
    assert dialect_of(Notices(), {"GCE_METADATA_HOST": "h"}, REAL_WORLD, machine=MACHINE) is None


def test_aws_metadata_that_is_switched_off_is_left_alone() -> None:
    off = {"AWS_EC2_METADATA_DISABLED": "true"}
    assert dialect_of(Notices("aws"), off, REAL_WORLD, machine=MACHINE) is None


@pytest.mark.parametrize(
    "url", ["https://me:secret@h", "h:80", "http://", "http://me:secret@h:port", "file:///etc"]
)
def test_an_address_that_is_none_is_refused_without_showing_its_credentials(url: str) -> None:
    with pytest.raises(UsageError, match=r"clouds\.json") as caught:
        dialect_of(Notices("aws", url), {}, REAL_WORLD, machine=MACHINE)
    assert "secret" not in str(caught.value)


def test_no_credentials_of_an_address_are_shown() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Unavailable) as caught:
        speaking("aws", f"http://me:secret@127.0.0.1:{port}").look()
    assert "secret" not in str(caught.value)
