"""Starting runs: everything checked first, an id claimed, then the journal's first line."""

from __future__ import annotations

import itertools
import re
import threading

import msgspec

from cloudshift_lab.checkpoint.keep import parse_keep
from cloudshift_lab.conductor.archive import Found
from cloudshift_lab.conductor.claim import Claim, claim_run
from cloudshift_lab.conductor.healing import MOST_IN_VAIN, restart_places
from cloudshift_lab.conductor.journal import Journal
from cloudshift_lab.conductor.moves import Surroundings
from cloudshift_lab.conductor.places import placement_at
from cloudshift_lab.conductor.pricing import price_source
from cloudshift_lab.conductor.records import AttemptStarted, BranchedFrom, RunCreated, RunRecord
from cloudshift_lab.conductor.registry import Registry
from cloudshift_lab.conductor.script import freeze_script, read_script
from cloudshift_lab.conductor.tending import RunTender
from cloudshift_lab.core.approval import parse as parse_approval
from cloudshift_lab.core.errors import Exhausted, UsageError
from cloudshift_lab.core.placement import Cloud, Offer
from cloudshift_lab.core.run import RESTARTS, JobSpec, RunSpec
from cloudshift_lab.core.save_policy import parse_save_policy
from cloudshift_lab.core.steps import BranchAsk
from cloudshift_lab.market.budget import check_budget
from cloudshift_lab.storage.store import Store, probe_store

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MOST_NODES = 64
_ID = re.compile(r"(run|mig)-\d+")


class RunStarter:
    """Makes new runs; submitting their first attempt is the caller's next line.

    Args:
        around: What all runs share.
        registry: All runs; names are used once.
    """

    def __init__(self, around: Surroundings, registry: Registry) -> None:
        self._around = around
        self._registry = registry
        self._creating = threading.Lock()

    def start(self, spec: RunSpec) -> RunTender:
        """A run from its beginning.

        Raises:
            UsageError: Script, name or target is wrong; nothing was made.
            Denied, Unavailable, Unsupported, Exhausted: The target's store cannot carry a run.
        """
        source = read_script(spec)
        self._check_spec(spec)
        cloud, offer = self._around.places.resolve(spec.target)
        restart_places(spec, self._around.places, cloud.store_url)
        return self._make(spec, source, cloud, offer=offer)

    def branch(self, found: Found, ask: BranchAsk) -> RunTender:
        """A run that goes on from a stored step of another one, with that one's script and terms.

        The step itself is taken over when the first attempt is submitted, as often as that is
        tried: it is the first thing in the new run's log.

        Raises:
            UsageError: The name is wrong or taken, or the target keeps its state elsewhere.
            Denied, Unavailable, Unsupported, Exhausted: The store cannot carry a run.
        """
        parent = found.tender.record.spec
        cloud, offer = self._place_of(found, ask.target)
        source = read_script(parent)
        spec = msgspec.structs.replace(
            parent,
            name=self._free_name(f"{parent.name}-{found.step}") if ask.name is None else ask.name,
            script=f"{source}\n",
            target=f"{offer.cloud}:{offer.region}",
            seed=parent.seed if ask.seed is None else ask.seed,
            restart_on=() if ask.target is not None else parent.restart_on,
        )
        self._check_spec(spec)
        origin = BranchedFrom(run_id=found.tender.run_id, name=parent.name, step=found.step)
        return self._make(spec, f"{source}\n", cloud, offer=offer, origin=origin)

    def _place_of(self, found: Found, target: str | None) -> tuple[Cloud, Offer]:
        """Where a branch runs: where the step is, or another place on the same store."""
        job = found.attempt.job
        cloud, offer = self._around.places.resolve(target or job.placement.target)
        here = self._around.places.store(job.placement.cloud, job.store_url).url
        if target is None:
            return msgspec.structs.replace(cloud, store_url=job.store_url), offer
        if self._around.places.store(cloud.name, cloud.store_url).url != here:
            raise UsageError(
                f"{found.ref} is stored at {job.placement.target}, not at {target}; branch it "
                f"there (leave out --on), then move the branch: cloudshift migrate --to {target}"
            )
        return cloud, offer

    def _make(
        self, spec: RunSpec, source: str, cloud: Cloud, *, offer: Offer,
        origin: BranchedFrom | None = None,
    ) -> RunTender:  # fmt: skip
        store = self._around.places.store(cloud.name, cloud.store_url)
        probe_store(store, world=self._around.world)
        try:
            with self._creating:
                self._check_name(spec.name)
                claim = self._claim(store)
                folder = self._around.run_folder(claim.run_id)
                folder.mkdir(mode=0o700, parents=True)
                spec = freeze_script(spec, source, folder)
                first = self._first_attempt(claim, spec, cloud, offer=offer, origin=origin)
                created = RunCreated(
                    run_id=claim.run_id, spec=spec, at=first.at, first=first, origin=origin
                )
                journal = Journal(folder / "journal.jsonl")
                return self._registry.add(RunRecord.create(journal, created))
        except OSError as error:
            raise Exhausted(
                f"cannot write below {self._around.root} ({error.strerror}); "
                "free disk space, then try again"
            ) from error

    def _claim(self, store: Store) -> Claim:
        """The next run id that nobody else has in this bucket."""
        owner_id = self._around.world.new_id("owner")
        for number in itertools.count(self._registry.next_number()):
            run_id = f"run-{number}"
            claim = Claim(run_id=run_id, owner=f"{run_id}:start:{owner_id}")
            if claim_run(store, claim):
                return claim
        raise AssertionError("there is always another number")

    def _first_attempt(
        self, claim: Claim, spec: RunSpec, cloud: Cloud, *, offer: Offer,
        origin: BranchedFrom | None,
    ) -> AttemptStarted:  # fmt: skip
        placement = placement_at(offer, ranks_per_node=spec.ranks_per_node, nodes=spec.nodes)
        root = self._around.root
        job = JobSpec(
            run_id=claim.run_id,
            generation=1,
            owner=claim.owner,
            placement=placement,
            store_url=cloud.store_url,
            script=spec.script,
            home=str(root),
            workdir=str(self._around.run_folder(claim.run_id) / "attempts" / "1"),
            seed=spec.seed,
            save_policy=spec.save_policy,
            keep=spec.keep,
            args=spec.args,
            env=spec.env,
            python=spec.python,
            restore_step=None if origin is None else origin.step,
            conductor_home=str(root),
            restarts=MOST_IN_VAIN if spec.restart == "auto" else 0,
            spare=spec.spare,
            exclude=self._around.cordoned(),
        )
        return AttemptStarted(
            job=job,
            at=self._around.world.now(),
            price_micro_usd_per_h=offer.price_micro_usd_per_h * placement.nodes,
            price_source=price_source(offer),
            simulated=cloud.simulated or offer.simulated,
        )

    def _check_spec(self, spec: RunSpec) -> None:
        if _NAME.fullmatch(spec.name) is None:
            raise UsageError(
                f"'{spec.name}' cannot name a run; use up to 64 letters, digits and ._-"
            )
        if _ID.fullmatch(spec.name):
            raise UsageError(f"'{spec.name}' looks like an id; choose a name of your own")
        if not 1 <= spec.ranks_per_node <= 64:
            raise UsageError(f"a run has 1 to 64 ranks, not {spec.ranks_per_node}; mend the call")
        if not 1 <= spec.nodes <= _MOST_NODES:
            raise UsageError(f"a run has 1 to {_MOST_NODES} nodes, not {spec.nodes}; mend the call")
        if spec.restart not in RESTARTS:
            raise UsageError(f"restart is one of {', '.join(RESTARTS)}, not '{spec.restart}'")
        if spec.budget_micro_usd is not None:
            check_budget(spec.budget_micro_usd, 0)
        parse_save_policy(spec.save_policy)
        parse_keep(spec.keep)
        parse_approval(spec.approve)
        self._check_name(spec.name)

    def _free_name(self, stem: str) -> str:
        taken = {tender.record.spec.name for tender in self._registry.all()}
        names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
        return next(name for name in names if name not in taken)

    def _check_name(self, name: str) -> None:
        for tender in self._registry.all():
            if tender.record.spec.name == name:
                raise UsageError(
                    f"a run called '{name}' exists already ({tender.run_id}); choose another name"
                )
