"""A conductor's service whose clock, agents and ticks are moved by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudshift_lab.conductor.service import ConductorService
from cloudshift_lab.core.asks import MoveAsk
from cloudshift_lab.core.home import save_clouds
from cloudshift_lab.core.placement import Cloud, Clouds, EgressTier, Offer
from cloudshift_lab.core.plan import Decision, MigrationView
from cloudshift_lab.core.run import RunSpec
from cloudshift_lab.storage.store import Store

SCRIPT = "print('train')\nprint('more')\n"
AWS, GCP = "aws-sim:us-east-1", "gcp-sim:us-central1"


def cloud(name: str, region: str, price: int, *, url: str) -> Cloud:
    return Cloud(
        name=name,
        title=f"{name} (simulated)",
        store_url=url,
        offers=(
            Offer(
                cloud=name, region=region, instance_type="m", price_micro_usd_per_h=price,
                simulated=True, source="list price", as_of="2026-07-01",
            ),
        ),
        egress=(EgressTier(up_to_gb=None, micro_usd_per_gb=90_000),),
        put_micro_usd_per_1000=5000,
        get_micro_usd_per_1000=400,
        simulated=True,
    )  # fmt: skip


class Bench:
    """A service whose clock, agents and ticks are moved by hand."""

    def __init__(self, root: Path, world: Any, engine: Any) -> None:
        self.root, self.world, self.engine = root, world, engine
        self.service = ConductorService(root, engine, world)
        engine._open_store = self.service.places.store

    def step(self, seconds: float = 1.0) -> None:
        self.world.clock_s += seconds
        self.engine.tick()
        for tender in self.service._registry.all():
            tender.tick()

    def restart(self) -> None:
        """Another conductor on the same state directory, as after kill -9."""
        self.service.telemetry.close()
        self.service = ConductorService(self.root, self.engine, self.world)

    def store(self, name: str) -> Store:
        """The store of a cloud as it is configured now."""
        return self.service.places.store(name, self.service.places.clouds().find(name).store_url)

    def train(self, name: str = "gpt", **named: Any) -> str:
        spec = RunSpec(**{"name": name, "script": SCRIPT, "target": AWS, **named})
        run_id = self.service.train(spec).run_id
        self.step()
        self.step()
        return run_id

    def approve(self, view: MigrationView, verdict: Any = "approve") -> MigrationView:
        return self.service.decide(view.migration_id, self.decision(view, verdict))

    def approve_again(self, view: MigrationView) -> MigrationView:
        """Approve the worse bill of a move that is under way."""
        again = Decision(f"again-{view.migration_id}", view.plan.digest, "approve", "ada")
        return self.service.decide(view.migration_id, again)

    def decision(self, view: MigrationView, verdict: Any = "approve") -> Decision:
        return Decision(
            decision_id=f"dec-{view.migration_id}", plan_digest=view.plan.digest,
            verdict=verdict, by="ada",
        )  # fmt: skip

    def settle(self, migration_id: str, until: str = "") -> MigrationView:
        for _ in range(400):
            view = self.service.migration(migration_id)
            if view.phase in (until, "source_retired", "rolled_back", "rejected", "expired"):
                return view
            self.step()
        raise AssertionError(f"stuck in {view.phase}: {view.error}")

    def move(self, run_id: str, to: str = GCP) -> MigrationView:
        view = self.approve(self.service.migrate(run_id, MoveAsk(to=to, expires_s=600)))
        return self.settle(view.migration_id)


@pytest.fixture
def bench(tmp_path: Path, two_clouds: Any) -> Iterator[Bench]:
    name = tmp_path.name
    save_clouds(
        tmp_path,
        Clouds(
            clouds=(
                cloud("aws-sim", "us-east-1", 3_600_000, url=f"memory://aws-{name}"),
                cloud("gcp-sim", "us-central1", 1_800_000, url=f"memory://gcp-{name}"),
            )
        ),
    )
    made = Bench(tmp_path, two_clouds.world, two_clouds.engine)
    yield made
    made.service.telemetry.close()
