from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudshift_lab.conductor import discovery
from cloudshift_lab.conductor.client import Client
from cloudshift_lab.conductor.daemon import ALREADY_RUNS
from cloudshift_lab.core.errors import Unavailable
from cloudshift_lab.core.home import write_private
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.engines.process import has_ended, process_start_time

PATIENCE_S = 60.0


def wait_until(happened: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "home"
    root.mkdir(mode=0o700)
    yield root
    owner = discovery.lock_owner(root)
    if owner is not None:
        os.kill(owner.pid, signal.SIGKILL)
        wait_until(lambda: has_ended(owner.pid, owner.start_time), "the conductor's end")


def daemon_of(root: Path) -> discovery.DaemonFile:
    found = discovery.find_daemon(root)
    assert found is not None
    return found


def test_the_first_client_starts_it_silently_and_the_second_finds_it(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = Client.connect(home)
    second = Client.connect(home)
    assert first.health() == second.health()
    assert first.health().home == str(home)
    assert capfd.readouterr() == ("", "")
    assert (home / discovery.DAEMON_FILE).stat().st_mode & 0o777 == 0o600
    assert (home / discovery.LOG_FILE).stat().st_mode & 0o777 == 0o600
    assert os.getsid(first.health().pid) != os.getsid(0)


def test_without_leave_to_start_one_it_says_how(home: Path) -> None:
    with pytest.raises(Unavailable, match=r"no conductor runs for .*start one with"):
        Client.connect(home, start=False)
    assert not (home / discovery.DAEMON_FILE).exists()


def test_a_client_that_may_not_start_one_does_not_do_so_later(home: Path) -> None:
    Client.connect(home).health()
    onlooker = Client.connect(home, start=False)
    daemon = daemon_of(home)
    os.kill(daemon.pid, signal.SIGKILL)
    wait_until(lambda: has_ended(daemon.pid, daemon.start_time), "the conductor's end")
    with pytest.raises(Unavailable, match=r"the conductor (is not running|stopped)"):
        onlooker.runs()
    assert discovery.find_daemon(home) is None
    pid = Client.connect(home).health().pid
    assert onlooker.health().pid == pid


def test_many_clients_at_once_start_one_conductor(home: Path) -> None:
    pids: list[int] = []
    threads = [
        threading.Thread(target=lambda: pids.append(Client.connect(home).health().pid))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) == 6
    assert len(set(pids)) == 1


def test_a_second_daemon_for_the_same_home_refuses_to_start(home: Path) -> None:
    pid = Client.connect(home).health().pid
    second = subprocess.run(
        [sys.executable, "-m", "cloudshift_lab.conductor", "--home", str(home)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert second.returncode == ALREADY_RUNS
    assert f"already (pid {pid})" in second.stderr
    assert Client.connect(home, start=False).health().pid == pid


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_after_its_end_the_next_client_starts_another(home: Path, number: signal.Signals) -> None:
    client = Client.connect(home)
    before = daemon_of(home)
    os.kill(before.pid, number)
    wait_until(lambda: has_ended(before.pid, before.start_time), "its end")
    assert (home / discovery.DAEMON_FILE).exists() == (number == signal.SIGKILL)
    after = Client.connect(home).health()
    assert after.pid != before.pid
    assert client.runs() == ()
    assert client.health().pid == after.pid


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("stale", ["dead pid", "reused pid", "garbage", "empty", "a folder's name"])
def test_a_stale_file_never_bites(home: Path, stale: str) -> None:
    path = home / discovery.DAEMON_FILE
    entry = discovery.DaemonFile(
        pid=dead_pid(), start_time="ticks:1", url="http://127.0.0.1:9", token="t", version="0"
    )
    mine = discovery.DaemonFile(
        pid=os.getpid(), start_time="ticks:1", url="http://127.0.0.1:9", token="t", version="0"
    )
    data = {
        "dead pid": to_json(entry),
        "reused pid": to_json(mine),
        "garbage": b"\xff{]",
        "empty": b"",
        "a folder's name": b'{"pid": "x"}',
    }[stale]
    write_private(path, data)
    client = Client.connect(home)
    assert client.health().pid not in (entry.pid, os.getpid())
    assert process_start_time(os.getpid()) is not None


def test_a_damaged_file_of_a_living_conductor_is_mended_by_it(home: Path) -> None:
    pid = Client.connect(home).health().pid
    write_private(home / discovery.DAEMON_FILE, b"garbage")
    assert Client.connect(home).health().pid == pid
    (home / discovery.DAEMON_FILE).unlink()
    assert Client.connect(home).health().pid == pid


def rewrite(root: Path, **changes: str) -> discovery.DaemonFile:
    import msgspec

    changed = msgspec.structs.replace(daemon_of(root), **changes)
    write_private(root / discovery.DAEMON_FILE, to_json(changed))
    return changed


def test_a_wrong_token_in_the_file_is_mended_by_the_living_conductor(home: Path) -> None:
    pid = Client.connect(home).health().pid
    rewrite(home, token="wrong")
    assert Client.connect(home).health().pid == pid


def test_a_conductor_that_hangs_is_replaced(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloudshift_lab.conductor.client._HEALTH_S", 1.0)
    before = Client.connect(home).health().pid
    os.kill(before, signal.SIGSTOP)
    monkeypatch.setattr("cloudshift_lab.conductor.launching._DISMISS_PATIENCE_S", (0.5, 20.0))
    assert Client.connect(home).health().pid != before


def test_a_conductor_of_another_version_is_replaced(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Client.connect(home).health()
    monkeypatch.setattr("cloudshift_lab.conductor.client.__version__", "0.0.0-test")
    with pytest.raises(Unavailable):
        monkeypatch.setattr("cloudshift_lab.conductor.launching._START_DEADLINE_S", 5.0)
        Client.connect(home)
    assert process_start_time(before.pid) is None
    monkeypatch.undo()
    assert Client.connect(home).health().pid != before.pid


def test_shutdown_ends_it_and_removes_its_file(home: Path) -> None:
    client = Client.connect(home)
    daemon = daemon_of(home)
    client.shutdown()
    wait_until(lambda: has_ended(daemon.pid, daemon.start_time), "its end")
    assert not (home / discovery.DAEMON_FILE).exists()


def test_one_that_cannot_start_shows_why(home: Path) -> None:
    (home / "telemetry.duckdb").mkdir()
    with pytest.raises(Unavailable, match=r"did not start .*telemetry"):
        Client.connect(home)


def test_two_spellings_of_one_home_share_one_conductor(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Client.connect(home).health()
    link = home.parent / "link"
    link.symlink_to(home)
    monkeypatch.chdir(home.parent)
    monkeypatch.setenv("HOME", str(home.parent))
    for spelling in (link, Path("home"), Path("~/home"), home / ".." / "home"):
        assert Client.connect(spelling).health() == first, spelling


def test_what_the_conductor_writes_is_its_owners_alone(home: Path) -> None:
    previous = os.umask(0o022)
    try:
        pid = Client.connect(home).health().pid
    finally:
        os.umask(previous)
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    assert "Umask:\t0077" in status
    assert (home / "telemetry.duckdb").stat().st_mode & 0o077 == 0


def test_the_clients_module_is_light() -> None:
    code = (
        "import sys, cloudshift_lab.conductor.client;"
        "heavy = {'tornado', 'duckdb', 'pyarrow', 'torch', 'fsspec', 'numpy', 'asyncio'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_the_daemon_imports_neither_torch_nor_notebook_libraries() -> None:
    code = (
        "import sys, cloudshift_lab.conductor.daemon;"
        "heavy = {'torch', 'panel', 'IPython', 'plotly', 's3fs', 'gcsfs'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_the_lock_file_names_its_holder(home: Path) -> None:
    pid = Client.connect(home).health().pid
    data = (home / discovery.LIFE_LOCK).read_bytes()
    assert from_json(data, discovery.LockOwner).pid == pid
