"""The main job without a browser: train, move to another cloud, finish, and compare with a control.

Everything in it is real but the clouds: two object-store servers with two protocols, torchrun
ranks, the conductor and its agents. The control run is the same script with the same seeds, never
moved; the two are compared loss by loss and weight by weight.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TypeVar

import numpy as np

from cloudshift_lab.checkpoint.reader import open_run
from cloudshift_lab.conductor.client import Client
from cloudshift_lab.core.errors import CloudshiftError, Exhausted, Unavailable
from cloudshift_lab.core.home import load_clouds
from cloudshift_lab.core.money import format_bytes, format_duration, format_usd
from cloudshift_lab.core.plan import FINAL_PHASES, Decision, MigrationView
from cloudshift_lab.core.run import FINAL_STATES, RunSpec, RunView
from cloudshift_lab.core.views import Series
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.core.world import REAL_WORLD, World
from cloudshift_lab.sim.bench import surroundings
from cloudshift_lab.sim.clouds import SimClouds
from cloudshift_lab.storage.store import open_cloud_store

T = TypeVar("T")
SOURCE = "aws-sim:us-east-1"
TARGET = "gcp-sim:us-central1"
WAIT_LIMIT_S = 600.0


def main(argv: list[str]) -> int:
    """Run the demo. Returns 0 when the migrated run equals its control in every loss and weight."""
    options = _parse(argv)
    out = Path(options.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    demo = Demo(out, steps=options.steps, say=_say)
    try:
        summary = demo.run()
    except CloudshiftError as error:
        _say(f"demo failed: {error.message}")
        return 1
    finally:
        demo.close()
    equal = bool(summary["final_weights_equal"]) and summary["loss_max_abs_diff"] == 0.0
    return 0 if equal and summary["lost_steps"] == 0 else 1


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cloudshift demo", description=main.__doc__)
    parser.add_argument("--out", default="build/demo", help="where summary.json and loss.png go")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each run")
    return parser.parse_args(argv)


def _say(line: str) -> None:
    print(line, flush=True)


class Demo:
    """One demonstration in its own state directory below ``out``."""

    def __init__(
        self, out: Path, *, steps: int, say: Callable[[str], None], world: World = REAL_WORLD
    ) -> None:
        self._out = out
        self._steps = steps
        self._say = say
        self._world = world
        self._home = out / "home"
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._clouds = SimClouds(self._home)
        self._client: Client | None = None

    def run(self) -> dict[str, object]:
        """Both runs, the move between them, the comparison and the files.

        Raises:
            CloudshiftError: A run failed or did not get anywhere in time.
        """
        began = self._world.monotonic()
        self._say("Starting two SIMULATED clouds on this machine (S3 and GCS servers) ...")
        self._clouds.up(self._say)
        self._client = client = Client.connect(self._home)
        moved = self._start("moved")
        self._say(f"{moved.run_id}: training on {SOURCE} with {moved.placement.world_size} ranks")
        self._wait_for_step(moved.run_id, self._steps // 10)
        move = self._migrate(moved.run_id)
        moved = self._wait_until_finished(moved.run_id)
        control = self._start("control")
        self._say(f"{control.run_id}: the same script and seeds on {SOURCE}, never moved")
        control = self._wait_until_finished(control.run_id)
        view = self._await(lambda: self._with_receipt(move), "the receipt of the move")
        curves = {
            run.name: client.series(run.run_id, points=10 * self._steps) for run in (moved, control)
        }
        summary = {
            **self._summary(view, moved, control, curves),
            **self._origin(self._world.monotonic() - began),
        }
        (self._out / "summary.json").write_bytes(to_json(summary) + b"\n")
        self._plot(curves, view)
        self._report(summary)
        return summary

    def close(self) -> None:
        """Stop what still runs, the conductor and the simulated clouds; the results stay."""
        if self._client is not None:
            try:
                self._stop_runs(self._client)
                self._client.shutdown()
            except (Unavailable, Exhausted) as error:
                self._say(f"could not stop everything: {error.message}")
        self._clouds.down()

    def _stop_runs(self, client: Client) -> None:
        for run in client.runs():
            if run.state not in FINAL_STATES:
                client.stop(run.run_id)

        def none_left() -> bool | None:
            return all(run.state in FINAL_STATES for run in client.runs()) or None

        self._await(none_left, "the runs to stop", limit_s=60)

    def _start(self, name: str) -> RunView:
        script = resources.files("cloudshift_lab.training.examples") / "gpt.py"
        spec = RunSpec(
            name=f"{name}-{self._world.new_id('demo')[-6:]}",
            script=script.read_text(),
            target=SOURCE,
            save_policy="15",
            seed=20261123,
            env={"GPT_STEPS": str(self._steps)},
        )
        return self._connected.train(spec)

    @property
    def _connected(self) -> Client:
        assert self._client is not None, "run() connects first"
        return self._client

    def _wait_for_step(self, run_id: str, step: int) -> None:
        def reached() -> RunView | None:
            view = self._connected.run(run_id)
            self._refuse_ended(view, unless="finished")
            return view if view.step is not None and view.step >= step else None

        self._await(reached, f"{run_id} to reach step {step}")

    def _wait_until_finished(self, run_id: str) -> RunView:
        def finished() -> RunView | None:
            view = self._connected.run(run_id)
            self._refuse_ended(view, unless="finished")
            return view if view.state == "finished" else None

        return self._await(finished, f"{run_id} to finish")

    def _refuse_ended(self, view: RunView, *, unless: str) -> None:
        if view.state in FINAL_STATES and view.state != unless:
            why = view.error or "no reason was recorded"
            raise CloudshiftError(
                f"{view.run_id} ended as {view.state}: {why}\n{view.traceback or ''}"
            )

    def _migrate(self, run_id: str) -> MigrationView:
        client = self._connected
        view = client.migrate(run_id, TARGET)
        self._show_plan(view)
        self._approve(view)
        seen: set[str] = set()

        def ended() -> MigrationView | None:
            now = client.migration(view.migration_id)
            if now.phase == "asking":
                self._say(f"  asked again: {now.timeline[-1].detail}")
                self._approve(now)
            for entry in now.timeline:
                if entry.phase not in seen:
                    seen.add(entry.phase)
                    self._say(f"  {entry.phase:<15} {entry.detail}".rstrip())
            return now if now.phase in FINAL_PHASES else None

        final = self._await(ended, f"{view.migration_id} to end")
        if final.phase != "source_retired":
            raise CloudshiftError(f"{view.migration_id} ended as {final.phase}: {final.error}")
        return final

    def _approve(self, view: MigrationView) -> None:
        decision = Decision(
            decision_id=self._world.new_id("decision"),
            plan_digest=view.plan.digest,
            verdict="approve",
            by="demo",
            at=self._world.now(),
        )
        self._connected.decide(view.migration_id, decision)

    def _with_receipt(self, view: MigrationView) -> MigrationView | None:
        now = self._connected.migration(view.migration_id)
        return now if now.receipt is not None else None

    def _show_plan(self, view: MigrationView) -> None:
        bill = view.plan.bill
        self._say(f"{view.migration_id}: {SOURCE} -> {TARGET}, advice: {view.plan.verdict}")
        for item in bill.items:
            self._say(f"  {format_usd(item.amount_micro_usd):>12}  {item.label}: {item.basis}")
        self._say(f"  {format_usd(bill.total_micro_usd):>12}  total (all prices SIMULATED)")

    def _await(
        self, probe: Callable[[], T | None], what: str, *, limit_s: float = WAIT_LIMIT_S
    ) -> T:
        deadline = self._world.monotonic() + limit_s
        shown = self._world.monotonic()
        while (result := probe()) is None:
            if self._world.monotonic() > deadline:
                raise Exhausted(f"waited {limit_s:.0f} s for {what}; see {self._home}")
            if self._world.monotonic() - shown > 5:
                shown = self._world.monotonic()
                self._say(f"  ... waiting for {what}")
            self._world.sleep(0.25)
        return result

    def _summary(
        self, view: MigrationView, moved: RunView, control: RunView, curves: dict[str, Series]
    ) -> dict[str, object]:
        assert view.sealed_step is not None, "a retired source has sealed its last step"
        return {
            "simulated": True,
            "source": SOURCE,
            "target": TARGET,
            "steps": self._steps,
            "world_size": moved.placement.world_size,
            "migrated_at_step": view.sealed_step,
            "lost_steps": lost_steps(curves[moved.name], view.sealed_step, self._steps),
            "loss_max_abs_diff": loss_max_abs_diff(curves[moved.name], curves[control.name]),
            "final_loss": curves[moved.name].loss[-1],
            "final_weights_equal": self._weights_equal(moved, control),
            "closing": view.plan.closing,
            "rehearsed_steps": view.plan.rehearsal_steps,
            "pause_s": view.pause_s,
            "still_s": view.still_s,
            "bytes_state": view.bytes_state,
            "bytes_moved": view.bytes_moved,
            "receipt": view.receipt,
            "bill_total_micro_usd": view.plan.bill.total_micro_usd,
        }

    def _origin(self, seconds: float) -> dict[str, object]:
        """What was run, where and when."""
        return {
            "command": f"python -m cloudshift_lab demo --steps {self._steps}",
            "date": surroundings.date(),
            "commit": surroundings.commit(),
            "machine": surroundings.machine(),
            "seconds": round(seconds, 1),
        }

    def _weights_equal(self, moved: RunView, control: RunView) -> bool:
        clouds = load_clouds(self._home)
        opened = []
        for run in (moved, control):
            store = open_cloud_store(clouds.find(run.placement.cloud))
            opened.append(open_run(store, run.run_id, "latest"))
        ours, theirs = opened
        if ours.step != self._steps or theirs.step != self._steps or not ours.names():
            raise CloudshiftError(
                f"final checkpoints are of steps {ours.step} and {theirs.step}, not {self._steps}"
            )
        if set(ours.names()) != set(theirs.names()):
            return False
        return all(
            np.array_equal(_bits(ours.tensor(name)), _bits(theirs.tensor(name)))
            for name in ours.names()
        )

    def _plot(self, curves: dict[str, Series], view: MigrationView) -> None:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120)
        for (name, curve), (style, width) in zip(
            curves.items(), (("-", 3.5), ("--", 1.2)), strict=True
        ):
            label = "moved" if name.startswith("moved") else "control, never moved"
            axes.plot(curve.step, np.array(curve.loss, float), style, linewidth=width, label=label)
        assert view.sealed_step is not None, "a retired source has sealed its last step"
        axes.axvline(view.sealed_step, color="0.4", linewidth=1)
        pause = format_duration(view.pause_s or 0.0)
        axes.annotate(
            f" step {view.sealed_step}: {SOURCE} to {TARGET}\n pause {pause} (simulated clouds)",
            (view.sealed_step, max(value for value in curves_losses(curves))),
            va="top", fontsize=8,
        )  # fmt: skip
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("loss, nats per byte")
        axes.set_title("The loss of a moved run and of its control")
        axes.legend(loc="lower left", frameon=False)
        figure.tight_layout()
        figure.savefig(self._out / "loss.png")
        pyplot.close(figure)

    def _report(self, summary: dict[str, object]) -> None:
        self._say(
            f"moved at step {summary['migrated_at_step']} of {self._steps}: "
            f"{summary['lost_steps']} steps lost, pause {summary['pause_s']:.1f} s, "
            f"{format_bytes(int(str(summary['bytes_moved'])))} moved"
        )
        self._say(
            f"against the control: largest difference of loss {summary['loss_max_abs_diff']}, "
            f"final weights equal: {summary['final_weights_equal']}"
        )
        self._say(f"wrote {self._out / 'summary.json'} and {self._out / 'loss.png'}")


def _bits(array: np.ndarray) -> np.ndarray:
    """The bytes of an array, so that NaN equals NaN and -0.0 differs from 0.0."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def curves_losses(curves: dict[str, Series]) -> list[float]:
    """All losses of all curves."""
    return [value for curve in curves.values() for value in curve.loss if value is not None]


def lost_steps(moved: Series, sealed_step: int, steps: int) -> int:
    """Steps whose work was thrown away or never seen.

    Counts the steps missing from 1..``steps`` and the steps that the source ran beyond the step
    it handed over (their work would have been repeated).
    """
    missing = set(range(1, steps + 1)) - set(moved.step)
    first_generation = min(moved.generation, default=1)
    beyond = [
        step
        for step, generation in zip(moved.step, moved.generation, strict=True)
        if generation == first_generation and step > sealed_step
    ]
    return len(missing) + len(beyond)


def loss_max_abs_diff(ours: Series, theirs: Series) -> float:
    """Largest difference of loss over the steps of both curves.

    Raises:
        CloudshiftError: The curves do not hold the same steps, so they cannot be compared.
    """
    ours_by_step = dict(zip(ours.step, ours.loss, strict=True))
    theirs_by_step = dict(zip(theirs.step, theirs.loss, strict=True))
    if not ours_by_step or ours_by_step.keys() != theirs_by_step.keys():
        raise CloudshiftError(
            f"the curves hold {len(ours_by_step)} and {len(theirs_by_step)} different steps; "
            "telemetry is incomplete, run the demo again and report it"
        )
    differences = []
    for step, loss in ours_by_step.items():
        other = theirs_by_step[step]
        if loss is None or other is None:
            raise CloudshiftError(f"step {step} has no loss in one of the runs; report it")
        differences.append(abs(loss - other))
    return max(differences)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
