"""One person's connection to the conductor: what was shown, what is meant, who decides."""

from __future__ import annotations

import contextlib
import difflib
import getpass
import itertools
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cloudshift_lab.conductor.client import Client
from cloudshift_lab.core.errors import CloudshiftError, Conflict, NotFound, UsageError
from cloudshift_lab.core.home import home
from cloudshift_lab.core.plan import Decision, MigrationView, Verdict
from cloudshift_lab.core.run import FINAL_STATES, RunView
from cloudshift_lab.core.world import REAL_WORLD, World
from cloudshift_lab.lab.render.standing import awaits_decision


class Desk:
    """What one notebook, terminal or program knows between two requests.

    Args:
        surface: Where the person sits (``notebook``, ``terminal``, ``Python``); part of ``by``.
        prompt: How this person starts a request, for advice that can be typed.
        root: State directory; ``core.home.home()`` when None.
    """

    def __init__(
        self, surface: str, prompt: str, *, root: Path | None = None, world: World = REAL_WORLD
    ) -> None:
        self.surface = surface
        self.prompt = prompt
        self.world = world
        self._root = root
        self._client: Client | None = None
        self._shown_digests: dict[str, str] = {}
        self._decision_ids: dict[tuple[str, str, Verdict], str] = {}

    @property
    def root(self) -> Path:
        """The state directory. Raises UsageError when it cannot be made."""
        return (self._root or home()).absolute()

    @contextlib.contextmanager
    def one_line_errors(self) -> Iterator[None]:
        """Turn our own bugs into one line too, with the traceback in a file to report.

        Raises:
            CloudshiftError: Always, instead of any other ``Exception``.
        """
        try:
            yield
        except (CloudshiftError, BrokenPipeError):
            raise
        except Exception as error:
            raise self._record_bug(error) from error

    def _record_bug(self, error: Exception) -> CloudshiftError:
        path = self.root / "lab-errors.log"
        with path.open("a", encoding="utf-8") as file:
            file.writelines(traceback.format_exception(error))
        what = f"{type(error).__name__}: {error}"
        return CloudshiftError(f"this is a bug of ours ({what}); please report it with {path}")

    def client(self) -> Client:
        """The conductor, started when there is none.

        Raises:
            Unavailable: It does not come up.
        """
        if self._client is None:
            self._client = Client.connect(self.root)
        return self._client

    def peek(self) -> Client:
        """The conductor if one runs; for the background, which must never start one.

        Raises:
            Unavailable: None runs.
        """
        return Client.connect(self.root, start=False)

    def forget_client(self) -> None:
        """Look the conductor up again at the next request."""
        self._client = None

    def by(self, way: str | None = None) -> str:
        """Who decides here, for the record: ``ada (notebook)``, or another ``way``."""
        return f"{user_name()} ({way or self.surface})"

    def find_run(self, name: str | None, *, active: bool = False) -> RunView:
        """The run that is meant; left out, the only active one (else the newest, if allowed).

        Args:
            name: Id, name, or the unique beginning of an id.
            active: Without a name, refuse to guess a run that has ended.

        Raises:
            NotFound: No such run.
            UsageError: Several could be meant.
        """
        runs = self.client().runs()
        if name is not None:
            return match_run(runs, name)
        running = [run for run in runs if run.state not in FINAL_STATES]
        if len(running) > 1:
            names = ", ".join(run.name for run in running)
            raise UsageError(f"several runs are active ({names}); name the one you mean")
        if running:
            return running[0]
        if runs and not active:
            return max(runs, key=lambda run: run.created_at)
        what = "no run is active" if runs else "there is no run yet"
        raise NotFound(f"{what}; start one with a %%cloudshift train cell or 'train script.py'")

    def free_name(self, stem: str) -> str:
        """``stem``, or ``stem-2`` and so on when runs have these names already."""
        taken = {run.name for run in self.client().runs()}
        names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
        return next(name for name in names if name not in taken)

    def find_migration(self, name: str | None) -> MigrationView:
        """The move that is meant: by id, by its run, or the only one that waits.

        Raises:
            NotFound: No such move, or none waits.
            UsageError: Several wait.
        """
        moves = self.client().migrations()
        if name is not None:
            return _match_migration(moves, name)
        waiting = [move for move in moves if awaits_decision(move)]
        if len(waiting) == 1:
            return waiting[0]
        if waiting:
            names = ", ".join(move.migration_id for move in waiting)
            raise UsageError(f"several moves wait for a decision ({names}); name the one you mean")
        raise NotFound(f"no move waits for a decision; plan one with: {self.prompt} migrate --to T")

    def remember_plan(self, view: MigrationView) -> None:
        """Note which plan the person saw last: only that one can be decided from here."""
        self._shown_digests[view.migration_id] = view.plan.digest

    def decision(self, view: MigrationView, verdict: Verdict) -> Decision:
        """The answer to the plan that was shown; the same answer again has the same id."""
        digest = self._shown_digests.get(view.migration_id, view.plan.digest)
        key = (view.migration_id, digest, verdict)
        decision_id = self._decision_ids.setdefault(key, self.world.new_id("decision"))
        return Decision(decision_id, digest, verdict, self.by(), self.world.now())

    def decide(self, view: MigrationView, verdict: Verdict) -> MigrationView:
        """Approve or reject.

        Raises:
            StaleDecision: Expired, decided otherwise, or no longer the plan that was shown.
        """
        return self.client().decide(view.migration_id, self.decision(view, verdict))

    def wait(
        self,
        fetch: Callable[[], RunView | MigrationView],
        ended: Callable[[RunView | MigrationView], bool],
        show: Callable[[RunView | MigrationView], None],
    ) -> bool:
        """Stay until ``ended``, showing twice a second at most. Ctrl-C leaves; False then."""
        try:
            while True:
                view = fetch()
                show(view)
                if ended(view):
                    return True
                self.world.sleep(0.5)
        except KeyboardInterrupt:
            return False


def open_move(client: Client, view: RunView) -> MigrationView | None:
    """The move that is proposed or under way for a run."""
    return None if view.migration_id is None else client.migration(view.migration_id)


def match_run(runs: Sequence[RunView], name: str) -> RunView:
    """The run with that id or name (the newest of that name), or id beginning.

    Raises:
        NotFound: None fits; lists what there is.
        Conflict: The beginning fits several ids.
    """
    exact = [run for run in runs if name in (run.run_id, run.name)]
    if exact:
        return max(exact, key=lambda run: run.created_at)
    begun = [run for run in runs if run.run_id.startswith(name)]
    if len(begun) == 1:
        return begun[0]
    if begun:
        raise Conflict(f"'{name}' begins several run ids; type more of it")
    known = [word for run in runs for word in (run.name, run.run_id)]
    raise NotFound(f"no run called '{name}'{_advice(name, known, 'runs')}")


def _match_migration(moves: Sequence[MigrationView], name: str) -> MigrationView:
    fitting = [move for move in moves if name in (move.migration_id, move.run_id, move.run_name)]
    if not fitting:
        known = [move.migration_id for move in moves]
        raise NotFound(f"no move called '{name}'{_advice(name, known, 'moves')}")
    return max(fitting, key=lambda move: (awaits_decision(move), move.plan.created_at))


def _advice(name: str, known: list[str], what: str) -> str:
    if not known:
        return f"; there are no {what} yet"
    close = difflib.get_close_matches(name, known, n=1)
    return f": did you mean '{close[0]}'?" if close else f"; choose one of: {', '.join(known[:8])}"


def user_name() -> str:
    """Whose process this is."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "someone"
