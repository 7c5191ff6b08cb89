"""The agent's process: what it says of its own parts."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from cloudshift_lab.agent.main import AgentProcess, compare
from cloudshift_lab.checkpoint import open_checkpoint
from cloudshift_lab.checkpoint.share import stage_arrays
from cloudshift_lab.core.home import save_clouds
from cloudshift_lab.core.orders import AgentStatus, status_key
from cloudshift_lab.core.placement import Cloud, Clouds, Notices
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.storage.memory import MemoryStore
from cloudshift_lab.storage.store import open_store
from cloudshift_lab.telemetry.spool import Sender

from .conftest import make_job, save_step


def ignore(_sender: Sender, _number: int) -> None:
    """A counter that stays where the test has put it."""


def test_dropped_telemetry_is_a_warning_in_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/store"
    save_clouds(tmp_path, Clouds((Cloud("local", "local", store_url=url),)))
    (tmp_path / "script.py").write_text("print('no step at all')")
    job = make_job(
        store_url=url, home=str(tmp_path), workdir=str(tmp_path), script=f"{tmp_path}/script.py"
    )
    (tmp_path / "job.json").write_bytes(to_json(job))
    monkeypatch.setattr(Sender, "num_dropped", property(lambda _: 7, ignore), raising=False)
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        assert AgentProcess(tmp_path / "job.json").run() == 0
    finally:
        signal.signal(signal.SIGTERM, terminate)
    status = from_json(open_store(url).get(status_key(job.run_id, 1)), AgentStatus)
    assert "7 telemetry rows were dropped; training is not affected" in status.warnings


def test_comparing_what_was_staged_lets_the_agent_speak_meanwhile() -> None:
    store = MemoryStore("memory://sealed")
    saved = save_step(store, "run-a", 16, generation=1)
    sealed = open_checkpoint(store, "run-a", saved.manifest_key, digest=saved.manifest_digest)
    arrays = {"w": np.full((4, 3), 16.5, dtype=np.float32)}
    spoken: list[str] = []
    found = compare([stage_arrays(arrays, step=16)], sealed, talk=lambda: spoken.append("beat"))
    assert found == ("w",)
    assert spoken == ["beat"]


def test_settings_of_notices_that_make_no_sense_are_a_warning_and_the_run_runs(
    tmp_path: Path,
) -> None:
    url = f"file://{tmp_path}/store"
    notices = Notices(signals={"SIGNONE": 30.0})
    save_clouds(tmp_path, Clouds((Cloud("local", "local", store_url=url, notices=notices),)))
    (tmp_path / "script.py").write_text("print('no step at all')")
    job = make_job(
        store_url=url, home=str(tmp_path), workdir=str(tmp_path), script=f"{tmp_path}/script.py"
    )
    (tmp_path / "job.json").write_bytes(to_json(job))
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        assert AgentProcess(tmp_path / "job.json").run() == 0
    finally:
        signal.signal(signal.SIGTERM, terminate)
    status = from_json(open_store(url).get(status_key(job.run_id, 1)), AgentStatus)
    assert any("SIGNONE" in warning for warning in status.warnings)
