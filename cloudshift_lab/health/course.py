"""What a run's time went into: its training and the breaks between, each with its cause."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from cloudshift_lab.health.goodput import Cause, Span

FAILED_ENDS = ("failed", "lost")


class Session(Protocol):
    """Steps that followed each other without a break; wall-clock seconds.

    ``kept_until``: when the last step ended that was not repeated later; None: none is kept.
    """

    @property
    def generation(self) -> int: ...
    @property
    def first_step(self) -> int: ...
    @property
    def last_step(self) -> int: ...
    @property
    def began(self) -> float: ...
    @property
    def ended(self) -> float: ...
    @property
    def kept_until(self) -> float | None: ...
    @property
    def stalled_s(self) -> float: ...


@dataclass(frozen=True)
class Ending:
    """A run was over for the time being: since when, and how."""

    at: float
    state: Literal["stopped", "finished", "failed", "lost"]


@dataclass(frozen=True)
class Happened:
    """What the conductor knows of a run's time; wall-clock seconds.

    Args:
        created_at: When it was asked for.
        endings: Whenever it was over, also where it was resumed later, oldest first.
        starts: Whenever an attempt was begun, oldest first.
        moves: When each move that began took the run, and when it was through.
        heals: Steps after which an attempt began its ranks anew by itself after a failure.
        now: Now.
        is_over: Whether it is over now.
        is_still: Whether it stands still now although it should train.
        saving_s: Training time that all its saves took.
    """

    created_at: float
    endings: tuple[Ending, ...] = ()
    starts: tuple[float, ...] = ()
    moves: tuple[tuple[float, float], ...] = ()
    heals: tuple[int, ...] = ()
    now: float = 0.0
    is_over: bool = False
    is_still: bool = False
    saving_s: float = 0.0


@dataclass(frozen=True)
class Course:
    """A run's time.

    Args:
        spans: In order, without overlap.
        failures: Per failure how long it took to be noticed, and to train again; seconds.
        num_healed: Failures after which the attempt itself went on, without a new one.
        lost_steps: Steps that were done twice.
    """

    spans: tuple[Span, ...]
    failures: tuple[tuple[float, float], ...] = ()
    num_healed: int = 0
    lost_steps: int = 0

    def total_s(self, cause: Cause) -> float:
        """Seconds that went into one thing."""
        return sum(span.end_s - span.begin_s for span in self.spans if span.cause == cause)


def course_of(sessions: Sequence[Session], happened: Happened) -> Course:
    """All of a run's time from when it was asked for until its end, or its newest step.

    Args:
        sessions: Its training, in order.
        happened: What the conductor knows beside it.
    """
    spans: list[Span] = []
    failures: list[tuple[float, float]] = []
    num_healed = lost_steps = 0
    cursor = happened.created_at
    saving = _Saving(happened.saving_s, sum(_kept_s(each) for each in sessions))
    for number, session in enumerate(sessions):
        previous = sessions[number - 1] if number else None
        again = max(0, previous.last_step - session.first_step + 1) if previous else 0
        is_same = previous is not None and previous.generation == session.generation
        begin = max(cursor, session.began)
        if is_same and not again and session.first_step - 1 not in happened.heals:
            pause = _calm(cursor, begin, happened)
        else:
            pause = _pause(previous, cursor, begin, happened)
        spans += pause.spans
        failures += pause.failures
        num_healed += bool(pause.failures) and is_same
        lost_steps += again
        trained = tuple(_training(session, begin, saving))
        spans += trained
        cursor = max(cursor, session.ended)
    last = _last(sessions[-1] if sessions else None, cursor, happened)
    return Course(
        spans=tuple(span for span in (*spans, *last.spans) if span.end_s > span.begin_s),
        failures=(*failures, *last.failures), lost_steps=lost_steps,
        num_healed=num_healed,
    )  # fmt: skip


@dataclass(frozen=True)
class _Pause:
    """A break, and the failure it came from: how long until noticed, how long until training."""

    spans: tuple[Span, ...]
    failures: tuple[tuple[float, float], ...] = ()


class _Saving:
    """Deals the time of all saves out over the training, in proportion."""

    def __init__(self, saving_s: float, training_s: float) -> None:
        self._share = min(saving_s / training_s, 1.0) if training_s > 0 else 0.0

    def part_of(self, training_s: float) -> float:
        return self._share * training_s


def _pause(previous: Session | None, begin: float, end: float, happened: Happened) -> _Pause:
    """What lies between two sessions, or before the first."""
    if end <= begin:
        return _Pause(())
    if previous is None:
        return _Pause((Span("starting", begin, end),))
    if _is_moving(begin, end, happened):
        return _Pause((Span("planned moves", begin, end),))
    ending = _ending_in(begin, end, happened)
    if ending is None:
        return _Pause((Span("restarting", begin, end),), ((0.0, end - begin),))
    over = min(max(begin, ending.at), end)
    if ending.state in FAILED_ENDS:
        noticed, back = Span("detecting", begin, over), Span("restarting", over, end)
        return _Pause((noticed, back), ((over - begin, end - over),))
    again = min((at for at in happened.starts if over <= at <= end), default=end)
    return _Pause(
        (Span("saving", begin, over), Span("idle", over, again), Span("starting", again, end))
    )


def _calm(begin: float, end: float, happened: Happened) -> _Pause:
    """A break of an attempt that lost nothing: it was held for a move, or did something else."""
    cause: Cause = "planned moves" if _is_moving(begin, end, happened) else "idle"
    return _Pause((Span(cause, begin, end),) if end > begin else ())


def _training(session: Session, begin: float, saving: _Saving) -> Iterator[Span]:
    """A session's time: kept training, what its saves and stalls took, and what was repeated."""
    kept_until = min(max(begin, session.kept_until or begin), session.ended)
    whole_s = kept_until - begin
    stalled_s = min(session.stalled_s, whole_s)
    saving_s = min(saving.part_of(whole_s), whole_s - stalled_s)
    trained_until = kept_until - saving_s - stalled_s
    yield Span("training", begin, trained_until)
    yield Span("saving", trained_until, trained_until + saving_s)
    yield Span("idle", trained_until + saving_s, kept_until)
    yield Span("lost work", kept_until, max(kept_until, session.ended))


def _last(session: Session | None, begin: float, happened: Happened) -> _Pause:
    """What came after the newest step."""
    ending = _ending_in(begin, happened.now, happened) if session is not None else None
    if happened.is_over:
        return _after_the_end(session, begin, happened)
    if ending is not None or session is None:
        return _pause(session, begin, happened.now, happened)
    if _is_moving(begin, happened.now, happened):
        return _Pause((Span("planned moves", begin, happened.now),))
    if session.last_step in happened.heals:
        down_s = happened.now - begin
        return _Pause((Span("restarting", begin, happened.now),), ((0.0, down_s),))
    if happened.is_still:
        still_s = happened.now - begin
        return _Pause((Span("detecting", begin, happened.now),), ((still_s, 0.0),))
    return _Pause(())


def _after_the_end(session: Session | None, begin: float, happened: Happened) -> _Pause:
    ending = happened.endings[-1] if happened.endings else None
    if ending is None or ending.at <= begin:
        is_failure = ending is not None and ending.state in FAILED_ENDS
        return _Pause((), ((0.0, 0.0),) if is_failure else ())
    if session is None:
        is_failure = ending.state in FAILED_ENDS
        return _Pause((Span("starting", begin, ending.at),), ((0.0, 0.0),) if is_failure else ())
    if ending.state in FAILED_ENDS:
        return _Pause((Span("detecting", begin, ending.at),), ((ending.at - begin, 0.0),))
    return _Pause((Span("saving", begin, ending.at),))


def _kept_s(session: Session) -> float:
    return max(0.0, (session.kept_until or session.began) - session.began)


def _is_moving(begin: float, end: float, happened: Happened) -> bool:
    return any(since < end and until > begin for since, until in happened.moves)


def _ending_in(begin: float, end: float, happened: Happened) -> Ending | None:
    """The ending that a break has in it: a clock that is a little off does not hide it."""
    inside = [each for each in happened.endings if begin - 1.0 <= each.at <= end]
    return inside[0] if inside else None
