"""What can be done before a machine is taken away, known before anything is begun."""

from __future__ import annotations

from dataclasses import dataclass

from cloudshift_lab.core.money import format_duration

OUTLIVED_S = 30.0
"""As long after its time an agent takes its machine for spared."""


@dataclass(frozen=True)
class GraceFacts:
    """What is known of the run when the notice comes; seconds.

    ``step_s``: a step's duration. ``save_s``: from a boundary until that step is committed in the
    source's store. ``last_commit_age_steps``: steps since the newest commit, the running one too.
    ``staged_age_steps``: the same since the newest complete staged state, None without one, and
    ``staged_left_s`` until that one is committed. ``provision_s``: until a target is ready, 0 when
    it is, None when no move is wanted. ``copy_s``: until the target has the sealed step and has
    proved it. ``restore_s``: from there to its first step. ``assumed``: what nobody has measured.
    """

    step_s: float
    save_s: float
    last_commit_age_steps: int
    staged_age_steps: int | None = None
    staged_left_s: float = 0.0
    provision_s: float | None = None
    copy_s: float | None = None
    restore_s: float = 0.0
    assumed: tuple[str, ...] = ()


@dataclass(frozen=True)
class GracePlan:
    """What will be done in the time, in order, and what cannot be.

    ``does``: of ``drain`` (the newest step is sealed), ``stage`` (an older staged state is
    committed), ``move`` (the target owns the run before the machine goes). ``finishes``: no step
    is lost. ``lost_steps``: how many are, at most. ``later_s``: how long after the machine is gone
    the target's first step ends; None without a move. ``words`` say all that.
    """

    does: tuple[str, ...]
    finishes: bool
    lost_steps: int
    later_s: float | None
    words: str


def plan_grace(within_s: float, facts: GraceFacts) -> GracePlan:
    """What a notice of ``within_s`` seconds allows.

    Only the seal needs the machine: what follows reads the source's store, which outlives it.

    Args:
        within_s: Seconds until the machine goes, >= 0.
        facts: What is known of the run.
    """
    drain_s = facts.step_s + facts.save_s
    finishes = drain_s <= within_s
    can_stage = facts.staged_age_steps is not None and facts.staged_left_s <= within_s
    lost_steps = 0
    does: tuple[str, ...] = ("drain",)
    if not finishes:
        lost_steps = facts.last_commit_age_steps
        does = ()
        if can_stage and facts.staged_age_steps is not None:
            lost_steps = min(lost_steps, facts.staged_age_steps)
            does = ("stage",)
    resumes_s = _resumes_s(drain_s if finishes else within_s, facts)
    later_s = None if resumes_s is None else max(0.0, resumes_s - within_s)
    if later_s == 0.0:
        does = (*does, "move")
    said = (_seal_words(within_s, drain_s, lost_steps), _move_words(later_s), *facts.assumed)
    words = "; ".join(said)
    return GracePlan(does, finishes, lost_steps, later_s, words)


def assumed_words(*, step_s: float | None = None, save_s: float | None = None) -> tuple[str, ...]:
    """What is said of durations that nobody has measured; None: it was."""
    step = () if step_s is None else (f"a step's time is unknown, {step_s:g} s assumed",)
    save = () if save_s is None else (f"a save's time is unknown, {save_s:.3g} s assumed",)
    return (*step, *save)


def _resumes_s(sealed_s: float, facts: GraceFacts) -> float | None:
    """When the target's first step begins, seconds from the notice; None without a move."""
    if facts.provision_s is None or facts.copy_s is None:
        return None
    return max(sealed_s, facts.provision_s) + facts.copy_s + facts.restore_s


def _seal_words(within_s: float, drain_s: float, lost_steps: int) -> str:
    given, needed = format_duration(within_s), format_duration(drain_s)
    if drain_s <= within_s:
        return f"{given} are enough to save the newest step ({needed})"
    steps = "1 step" if lost_steps == 1 else f"{lost_steps} steps"
    return f"{given} are too short to save the newest step ({needed}): {steps} will be lost"


def _move_words(later_s: float | None) -> str:
    if later_s is None:
        return "the run stays saved in its store until it is resumed or moved"
    if later_s == 0.0:
        return "the run trains at its target before the machine goes"
    return f"the run trains again at its target {format_duration(later_s)} after the machine went"
