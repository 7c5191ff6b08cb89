"""One random life of a run and its moves: production driver, effects, agents, log and checkpoints.

A director starts the run, proposes a move, decides on it (or not), sometimes takes the run over
from an owner that sleeps, and at the end looks whether exactly one owner trains. Everything
between is the production code on simulated stores, ranks and machines.
"""

from __future__ import annotations

from cloudshift_lab.core.errors import CloudshiftError
from cloudshift_lab.sim.director import Director
from cloudshift_lab.sim.scene import Bug, MoveHistory, Scene


def run_move_history(seed: int, bug: Bug | None = None) -> MoveHistory:
    """Live one history and judge it.

    Args:
        seed: Decides everything.
        bug: A planted bug; None for the production code as it is.
    """
    scene = Scene(seed, bug or Bug())
    scene.scheduler.spawn("director", Director(scene).body)
    history = scene.history
    try:
        scene.scheduler.run()
    except (CloudshiftError, AssertionError, LookupError, TypeError, ValueError) as error:
        scene.report("nothing breaks", f"{type(error).__name__}: {error}")
    for store in scene.stores.values():
        history.injected_faults.update(store.faults)
    history.injected_faults["freeze"] = scene.mischief.freezes
    history.crashes = scene.mischief.crashes
    history.virtual_s = scene.scheduler.clock_s
    history.switches = scene.scheduler.switches
    history.digest = scene.scheduler.digest()
    history.trace = scene.scheduler.lines
    return history
