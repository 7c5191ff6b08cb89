"""Stop, save, copy, restart: what people do without a live migration, over the same link."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cloudshift_lab.core.errors import CloudshiftError, Exhausted
from cloudshift_lab.core.home import load_clouds, store_options
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.sim.bench.trace import Pause, Traced, pause_after, read

How = Literal["torch", "dcp"]
TITLES: dict[How, str] = {"torch": "torch.save", "dcp": "DCP save"}
SCRIPT = Path(__file__).with_name("moving_script.py")
LIMIT_S = 900.0
_POLL_S = 0.02
_FIRST_PORT, _NUM_PORTS = 30_000, 2_000
NEW_STEPS = 3


class Restarted(NamedTuple):
    """How one rival's move went; parts in seconds."""

    pause: Pause
    save_s: float
    copy_s: float
    start_s: float
    trace: tuple[Traced, ...]


class Rival:
    """Trains without us in the source's cloud, and begins again at the target.

    Args:
        folder: For traces, logs and the copied state.
        home: State directory with the joined clouds.
        source: Name of the cloud in which the run is and saves.
        env: Of the script, without what this class adds.
        ranks: Processes.
    """

    def __init__(
        self, folder: Path, home: Path, source: str, env: Mapping[str, str], *, ranks: int
    ) -> None:
        self._folder = folder
        self._cloud = load_clouds(home).find(source)
        self._env = env
        self._ranks = ranks

    def restart(self, how: How, *, steps: int) -> Restarted:
        """Train ``steps`` steps and a little, stop, move, and train a few more.

        Raises:
            CloudshiftError: A process failed; names its log.
        """
        name = REAL_WORLD.new_id(how)
        files = self._folder / name
        files.mkdir(parents=True)
        trace, copied = files / "trace", files / "copied"
        away, url = self._away(name)
        source = self._launch(how, files, url=url, load=None)
        self._await(source, lambda: _last_step(trace) >= steps, files)
        (files / "stop").touch()
        asked_at = REAL_WORLD.now()
        self._end(source, files)
        last = _last_step(trace)
        saved_at = REAL_WORLD.now()
        away.get(url, str(copied), recursive=True)
        copied_at = REAL_WORLD.now()
        (files / "stop").unlink()
        target = self._launch(how, files, url=url, load=copied)
        self._await(target, lambda: _last_step(trace) >= last + NEW_STEPS, files)
        (files / "stop").touch()
        self._end(target, files)
        away.rm(url, recursive=True)
        shutil.rmtree(copied)
        found = read(trace)
        new = next(each for each in found if each.step == last + 1)
        return Restarted(
            pause_after(found, last), saved_at - asked_at, copied_at - saved_at,
            new.ended - copied_at, found,
        )  # fmt: skip

    def train(self, steps: int) -> tuple[Traced, ...]:
        """The uninterrupted control: the first ``steps`` steps, in one go."""
        files = self._folder / REAL_WORLD.new_id("control")
        files.mkdir(parents=True)
        process = self._launch("torch", files, url="", load=None, steps=steps)
        self._await(process, lambda: _last_step(files / "trace") >= steps, files)
        self._end(process, files)
        return read(files / "trace")

    def _away(self, name: str) -> tuple[Any, str]:
        """The source's bucket as the target sees it, connected, and a folder in it."""
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        import fsspec

        scheme, _, rest = self._cloud.store_url.partition("://")
        files = fsspec.filesystem(scheme, **store_options(self._cloud, inside=False))
        bucket = rest.partition("/")[0]
        files.ls(bucket)
        return files, f"{scheme}://{bucket}/{name}"

    def _launch(
        self, how: How, files: Path, *, url: str, load: Path | None, steps: int = 1 << 30
    ) -> subprocess.Popen[bytes]:
        port = _FIRST_PORT + int(REAL_WORLD.random() * _NUM_PORTS)
        env = {
            **os.environ, **self._env, "OMP_NUM_THREADS": "1",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "GLOO_SOCKET_IFNAME": "lo",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "MOVING_TRACE": str(files / "trace"), "MOVING_STEPS": str(steps),
            "MOVING_STOP": str(files / "stop"), "MOVING_SAVE": how, "MOVING_URL": url,
            "MOVING_OPTIONS": json.dumps(store_options(self._cloud)),
            "MOVING_LOAD": "" if load is None else str(load),
        }  # fmt: skip
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes=1",
            f"--nproc-per-node={self._ranks}", "--max-restarts=0", "--monitor-interval=0.1",
            "--rdzv-backend=static", "--node-rank=0", "--master-addr=127.0.0.1",
            f"--master-port={port}", "--local-addr=127.0.0.1", str(SCRIPT),
        ]  # fmt: skip
        with (files / "log").open("ab") as log:
            return subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def _await(
        self, process: subprocess.Popen[bytes], is_there: Callable[[], bool], files: Path
    ) -> None:
        until = REAL_WORLD.monotonic() + LIMIT_S
        while not is_there():
            if process.poll() not in (None, 0):
                raise CloudshiftError(f"a rival's training failed; read {files / 'log'}")
            if REAL_WORLD.monotonic() > until:
                process.kill()
                raise Exhausted(f"a rival took longer than {LIMIT_S:.0f} s; read {files / 'log'}")
            REAL_WORLD.sleep(_POLL_S)

    def _end(self, process: subprocess.Popen[bytes], files: Path) -> None:
        self._await(process, lambda: process.poll() == 0, files)


def _last_step(trace: Path) -> int:
    """The newest step of rank 0; 0 before the first."""
    return max((each.step for each in read(trace) if each.rank == 0), default=0)
