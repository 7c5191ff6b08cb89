"""Simulated futures of a plan, asked of a process of their own: no plan ever waits for them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cloudshift_lab.core.asks import FuturesAsk
from cloudshift_lab.core.errors import CloudshiftError, Exhausted, Unavailable
from cloudshift_lab.core.plan import Futures
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.engines.process import environment

DEADLINE_S = 60.0
_COMMAND = ("nice", "-n", "15", sys.executable, "-m", "cloudshift_lab.sim.futures")


class Fortune:
    """Has futures drawn, one plan after the other, in processes that yield to training.

    Args:
        deadline_s: A process that takes longer is killed.
        command: What draws them; reads a ``FuturesAsk`` and answers with ``Futures``.
    """

    def __init__(
        self, *, deadline_s: float = DEADLINE_S, command: tuple[str, ...] = _COMMAND
    ) -> None:
        self._deadline_s = deadline_s
        self._command = command
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fortune")
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    def close(self) -> None:
        """Draw no more; what is being drawn is ended."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._is_closed = True
            if self._process is not None:
                self._process.kill()

    def tell(self, ask: FuturesAsk, told: Callable[[Futures], None]) -> None:
        """Have ``told`` called with the futures once they are drawn; never, if they cannot be."""
        self._pool.submit(self._tell, ask, told)

    def _tell(self, ask: FuturesAsk, told: Callable[[Futures], None]) -> None:
        try:
            told(self._draw(ask))
        except CloudshiftError as error:
            name = ask.plan.migration_id
            print(f"no futures of {name}: {error.message}", file=sys.stderr, flush=True)

    def _draw(self, ask: FuturesAsk) -> Futures:
        """Run the process.

        Raises:
            Exhausted: It took too long.
            Unavailable: It could not be run, or failed.
            Corrupt: Its answer cannot be read.
        """
        process = self._begin()
        try:
            answer, said = process.communicate(to_json(ask), timeout=self._deadline_s)
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.communicate()
            told = f"drawing them took longer than {self._deadline_s:.0f} s; decide without them"
            raise Exhausted(told) from error
        finally:
            self._process = None
        if process.returncode != 0:
            why = said.decode(errors="replace").strip()[-300:] or f"code {process.returncode}"
            raise Unavailable(f"drawing them failed ({why}); decide without them")
        return from_json(answer, Futures, what="the futures")

    def _begin(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._is_closed:
                raise Unavailable("the conductor ends; ask the next one")
            try:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=environment(),
                )
            except OSError as error:
                raise Unavailable(f"they cannot be drawn here ({error}); decide without") from error
            return self._process
