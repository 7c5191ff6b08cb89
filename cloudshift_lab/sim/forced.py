"""A cloud that takes a machine away, after it has said so to the agent and to the conductor."""

from __future__ import annotations

from cloudshift_lab.conductor.inbox import AgentLine
from cloudshift_lab.core.errors import CloudshiftError
from cloudshift_lab.core.orders import Order
from cloudshift_lab.migration import SideName
from cloudshift_lab.sim.people import Notice
from cloudshift_lab.sim.scene import RUN_ID, Move, Scene
from cloudshift_lab.sim.scheduler import SimWorld


class Warner:
    """Gives notice of one side's machines and takes them away.

    Args:
        scene: Where they run.
        move: Whose source or target.
        side: Which.
    """

    def __init__(self, scene: Scene, move: Move, side: SideName) -> None:
        self._scene = scene
        self._move = move
        self._side = side

    def body(self, within_s: float) -> None:
        """Say it to everybody who needs to know, as often as is needed; then do it."""
        scene, generation = self._scene, self._generation()
        is_over = self._move.saga is not None and self._move.saga.is_final
        if is_over or not scene.engine.is_alive(generation):
            return
        deadline_s = scene.scheduler.clock_s + within_s
        scene.scheduler.trace(f"g{generation} goes in {within_s:.0f} s")
        self._move.people.notices.append(Notice(self._side, deadline_s))
        scene.scheduler.call_later(within_s, lambda: self._take(generation))
        self._tell_agent(generation, deadline_s)

    def _generation(self) -> int:
        if self._side == "source":
            return self._move.source.generation
        tries = 0 if self._move.saga is None else self._move.saga.tries
        return self._move.target.generation + tries

    def _tell_agent(self, generation: int, deadline_s: float) -> None:
        scene = self._scene
        job = scene.engine.jobs()[generation]
        world = SimWorld(scene.scheduler, f"cloud-{generation}")
        line = AgentLine(scene.open_store(job.placement.cloud), RUN_ID, generation, world)
        while (left_s := deadline_s - scene.scheduler.clock_s) > 0:
            order = Order(f"notice-{generation}", "notice", world.now(), within_s=left_s)
            try:
                line.send(order)
                return
            except CloudshiftError:
                world.sleep(1.0)

    def _take(self, generation: int) -> None:
        self._scene.scheduler.trace(f"the machines of g{generation} are gone")
        self._scene.engine.take_away(generation)
