"""``%cloudshift`` and ``%%cloudshift``: parse, do, show; never a traceback for our errors."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from IPython.core.completer import (
    CompletionContext,
    SimpleCompletion,
    SimpleMatcherResult,
    context_matcher,
)
from IPython.core.magic import Magics, line_cell_magic, magics_class

from cloudshift_lab import __version__
from cloudshift_lab.conductor.client import Client
from cloudshift_lab.core.errors import CloudshiftError
from cloudshift_lab.core.home import load_clouds
from cloudshift_lab.core.run import FINAL_STATES, RunView
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.lab.completion import Catalogue, complete
from cloudshift_lab.lab.desk import Desk
from cloudshift_lab.lab.doctor import lab_extension_path
from cloudshift_lab.lab.grammar import parse_line
from cloudshift_lab.lab.notebook import NotebookStage, stop_followers
from cloudshift_lab.lab.objects import Shown
from cloudshift_lab.lab.request import Request
from cloudshift_lab.lab.verbs import perform

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

PROMPT = "%cloudshift"
_RUNS_WITH_STEPS = 5
_STEPS_OFFERED = 12


@magics_class
class CloudshiftMagics(Magics):
    """The one magic, for a line or a cell."""

    def __init__(self, shell: InteractiveShell, desk: Desk, memory: Memory) -> None:
        super().__init__(shell)
        self._desk = desk
        self._memory = memory
        self._stage = NotebookStage(desk)

    @line_cell_magic
    def cloudshift(self, line: str, cell: str | None = None) -> Shown | None:
        """Train, watch, move and stop runs; ``%cloudshift help`` lists everything."""
        with self._desk.one_line_errors():
            call = parse_line(line, surface="line" if cell is None else "cell")
            shown = perform(Request(call, self._desk, self._stage, cell))
            self._memory.refresh()
            if shown is not None and getattr(call.args, "json", False):
                print(to_json(shown.as_data()).decode())
                return None
            return shown


class Memory:
    """The names Tab offers, refreshed in the background from a running conductor."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._busy = threading.Lock()
        self.catalogue = Catalogue()

    def refresh(self) -> None:
        """Begin to look the names up again; returns at once."""
        threading.Thread(target=self.look, name="cloudshift-names", daemon=True).start()

    def look(self) -> None:
        """Look the names up; keeps the old ones where nobody answers."""
        if not self._busy.acquire(blocking=False):
            return
        with contextlib.ExitStack() as held:
            held.callback(self._busy.release)
            held.enter_context(contextlib.suppress(CloudshiftError, OSError))
            targets = load_clouds(self._desk.root).targets()
            self.catalogue = replace(self.catalogue, targets=targets)
            client = self._desk.peek()
            runs = client.runs()
            names = (word for run in runs for word in (run.name, run.run_id))
            self.catalogue = replace(
                self.catalogue,
                runs=tuple(dict.fromkeys(names)),
                migrations=tuple(move.migration_id for move in client.migrations()),
                jobs=tuple(job.job_id for job in client.jobs()),
            )
            for run in runs[:_RUNS_WITH_STEPS]:
                self._look_at_steps(client, run)

    def _look_at_steps(self, client: Client, run: RunView) -> None:
        """Note a run's steps, unless nothing was saved since the last look."""
        known = self.catalogue.steps.get(run.run_id, ())
        if run.checkpoint_step is None or run.checkpoint_step in known[:1]:
            return
        lines = client.history(run.run_id, last=_STEPS_OFFERED).lines
        found = tuple(line.step for line in reversed(lines))
        steps = {**self.catalogue.steps, run.run_id: found, run.name: found}
        self.catalogue = replace(self.catalogue, steps=steps)


def load(shell: InteractiveShell) -> None:
    """Register magics and completion, and print where things stand."""
    desk = Desk("notebook", PROMPT)
    memory = Memory(desk)
    shell.register_magics(CloudshiftMagics(shell, desk, memory))
    unload(shell)
    if shell.Completer is not None:
        shell.Completer.custom_matchers.append(_matcher(memory))
    memory.refresh()
    print(greeting(desk))


def unload(shell: InteractiveShell) -> None:
    """Take completion and followers away."""
    stop_followers()
    if shell.Completer is not None:
        kept = [each for each in shell.Completer.custom_matchers if not _is_ours(each)]
        shell.Completer.custom_matchers[:] = kept


def greeting(desk: Desk) -> str:
    """One line: version, conductor, Lab extension, and what to type next."""
    extension = "on" if lab_extension_path() else "off (%cloudshift doctor says why)"
    conductor, runs = _conductor_state(desk)
    active = [run for run in runs if run.state not in FINAL_STATES]
    following = f"{PROMPT} watch" if active else f"{PROMPT} clouds up" if not runs else PROMPT
    return (
        f"CloudShift Lab {__version__} · conductor {conductor} · Lab extension {extension} "
        f"· next: {following}"
    )


def _conductor_state(desk: Desk) -> tuple[str, tuple[RunView, ...]]:
    try:
        client = desk.peek()
        return f"running (pid {client.health().pid})", client.runs()
    except CloudshiftError:
        return "not running (starts when needed)", ()


def _matcher(memory: Memory) -> Any:
    @context_matcher(identifier="cloudshift")  # type: ignore[untyped-decorator]
    def cloudshift_matcher(context: CompletionContext) -> SimpleMatcherResult:
        offer = complete(context.text_until_cursor, memory.catalogue)
        if offer is None:
            return SimpleMatcherResult(completions=[])
        memory.refresh()
        return SimpleMatcherResult(
            completions=[SimpleCompletion(text=word, type="cloudshift") for word in offer.words],
            matched_fragment=offer.fragment,
            suppress=True,
        )

    return cloudshift_matcher


def _is_ours(matcher: object) -> bool:
    return getattr(matcher, "matcher_identifier", None) == "cloudshift"
