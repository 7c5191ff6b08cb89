"""What each verb does. Every surface calls :func:`perform`; none has verbs of its own."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from cloudshift_lab.conductor.client import Client
from cloudshift_lab.core.errors import CloudshiftError, Conflict, Unavailable, UsageError
from cloudshift_lab.core.home import load_clouds
from cloudshift_lab.core.money import format_duration, to_micro_usd
from cloudshift_lab.core.plan import FINAL_PHASES, Verdict
from cloudshift_lab.core.run import FINAL_STATES, RunSpec
from cloudshift_lab.core.views import Target
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.lab import machines, stored
from cloudshift_lab.lab.charges import check_export, write_charges
from cloudshift_lab.lab.desk import Desk
from cloudshift_lab.lab.doctor import examine
from cloudshift_lab.lab.grammar import help_text
from cloudshift_lab.lab.objects import (
    Report,
    Run,
    Shown,
    note,
    printed,
    run_report,
)
from cloudshift_lab.lab.render import card, move, reports
from cloudshift_lab.lab.render.records import preempted_sheet
from cloudshift_lab.lab.render.sheet import sheet_html, sheet_text
from cloudshift_lab.lab.render.standing import awaits_decision
from cloudshift_lab.lab.request import Request
from cloudshift_lab.lab.source import (
    name_of,
    script_of_cell,
    script_of_file,
    with_modules_here,
)


def perform(request: Request) -> Shown | None:
    """Do what was asked and return what to show.

    Raises:
        CloudshiftError: One line about what is wrong and what to do.
    """
    if request.call.is_for_others:
        return _pass_on(request.call.verb.name, request.call.rest)
    return _ACTIONS[request.call.verb.name](request)


def _train(request: Request) -> Shown:
    args = request.args
    script = _script(args.script, request.cell)
    stem = "train" if args.script is None else name_of(args.script)
    env = dict(args.env)
    spec = RunSpec(
        name=args.name or request.desk.free_name(stem),
        script=script,
        target=args.on,
        ranks_per_node=args.ranks,
        save_policy=args.checkpoint_every,
        keep=args.keep,
        seed=args.seed,
        env=env if request.cell is None else with_modules_here(env),
        budget_micro_usd=None if args.budget is None else to_micro_usd(args.budget),
        approve=args.approve,
        python=sys.executable,
        nodes=args.nodes,
        restart=args.restart,
        restart_on=args.restart_on,
    )
    return _start(request, spec)


def _start(request: Request, spec: RunSpec) -> Shown:
    desk = request.desk
    with request.stage.waiting(f"checking the store of {spec.target} and starting there"):
        run = Run(desk, desk.client().train(spec))
    if not request.args.wait:
        return run
    if run.wait(request.stage.follow_run()):
        return run
    return note(f"detached; {run.name} goes on: {desk.prompt} watch {run.name}")


def _script(path: str | None, cell: str | None) -> str:
    if cell is None and path is None:
        raise UsageError("train needs a script: '%%cloudshift train' with a cell, or a file's path")
    if cell is not None and path is not None:
        raise UsageError(f"the cell is the script; take '{path}' out of the first line")
    return script_of_file(path) if path is not None else script_of_cell(cell or "")


def _status(request: Request) -> Shown:
    args, desk = request.args, request.desk
    if args.run is not None:
        return Run(desk, desk.find_run(args.run)).report()
    client = desk.client()
    runs = client.runs()
    waiting = [each for each in client.migrations() if awaits_decision(each)]
    return Report(
        {"runs": runs, "waiting": waiting},
        card.runs_text(runs, waiting, desk.prompt),
        card.runs_html(runs, waiting),
    )


def _watch(request: Request) -> Shown | None:
    args, desk = request.args, request.desk
    return request.stage.watch_run(Run(desk, desk.find_run(args.run)))


def _migrate(request: Request) -> Shown | None:
    args, desk = request.args, request.desk
    run = Run(desk, desk.find_run(args.run, active=True))
    to, *elsewhere = args.to
    with request.stage.waiting(f"pricing the move to {to}"):
        migration = run.migrate(
            to,
            elsewhere=elsewhere,
            closing=args.closing,
            rehearse=args.rehearse,
            missing_nodes=args.missing_nodes,
            min_nodes=args.min_nodes,
            approvals=args.approvals,
            limit_usd=args.limit,
            tolerance=args.tolerance,
            carrier=args.carrier,
            expires_s=args.expires,
        )
    if args.yes:
        migration.approve()
    if args.json or not args.wait or migration.wait(request.stage.follow_move(migration)):
        return migration
    return note(f"detached; the move goes on by itself: {desk.prompt} watch {run.name}")


def _decide(request: Request, verdict: Verdict) -> Shown:
    args, desk = request.args, request.desk
    view = desk.decide(desk.find_migration(args.migration), verdict)
    return Report(view, move.decided_text(view, desk.prompt), move.move_html(view))


def _approve(request: Request) -> Shown:
    return _decide(request, "approve")


def _reject(request: Request) -> Shown:
    return _decide(request, "reject")


def _receipt(request: Request) -> Shown:
    args, desk = request.args, request.desk
    run = Run(desk, desk.find_run(args.run))
    report = run.receipts()
    if args.export is None:
        return report
    path = Path(args.export).expanduser()
    try:
        with path.open("xb") as file:
            file.write(to_json(report.data))
    except OSError as error:
        why = "exists already" if path.exists() else str(error.strerror)
        raise UsageError(f"{path} {why}; give --export another path") from error
    return note(f"the receipts of {run.name} were written to {path}; their chain is whole")


def _notice(request: Request) -> Shown:
    args, desk = request.args, request.desk
    name, seconds = (args.run, args.seconds) if args.seconds else (None, args.run)
    run = Run(desk, desk.find_run(name, active=name is None))
    return run.notice(_seconds(seconds, desk.prompt), side=args.side)


def _seconds(word: str | None, prompt: str) -> float:
    """A span of time as people type it: ``30``, ``30s``, ``2m``."""
    match = _SPAN.fullmatch(word or "")
    if match is None:
        raise UsageError(f"say in how many seconds the machine goes: {prompt} notice RUN 30")
    return float(match[1]) * (60.0 if match[2] == "m" else 1.0)


def _cost(request: Request) -> Shown:
    args, desk = request.args, request.desk
    path = None if args.export is None else Path(args.export).expanduser()
    if path is not None:
        check_export(path)
    run = Run(desk, desk.find_run(args.run))
    if args.budget is not None:
        desk.client().set_budget(run.run_id, to_micro_usd(args.budget))
    if path is None:
        return run.cost(args.until)
    charges = desk.client().charges(run.run_id)
    return note(write_charges(path, charges, run_id=run.run_id, name=run.name))


def _health(request: Request) -> Shown:
    args, desk = request.args, request.desk
    return Run(desk, desk.find_run(args.run)).health()


def _goodput(request: Request) -> Shown:
    args, desk = request.args, request.desk
    return Run(desk, desk.find_run(args.run)).goodput()


def _logs(request: Request) -> Shown:
    args, desk = request.args, request.desk
    run = desk.find_run(args.run)
    text = desk.client().logs(run.run_id, rank=args.rank, tail=args.tail)
    whose = "" if args.rank is None else f" of rank {args.rank}"
    return printed(text.rstrip() or f"no output{whose} yet", f"logs of {run.name}{whose}")


def _stop(request: Request) -> Shown:
    args, desk = request.args, request.desk
    run = desk.find_run(args.run, active=args.run is None)
    with request.stage.waiting(f"asking {run.name} to checkpoint and stop"):
        return run_report(desk.client().stop(run.run_id), desk.prompt)


def _resume(request: Request) -> Shown:
    args, desk = request.args, request.desk
    run = desk.find_run(args.run)
    with request.stage.waiting(f"checking the store of {run.name} and starting there"):
        return run_report(desk.client().resume(run.run_id), desk.prompt)


def _dashboard(request: Request) -> Shown | None:
    args, desk = request.args, request.desk
    return request.stage.open_dashboard(
        None if args.run is None else desk.find_run(args.run).run_id
    )


def _doctor(request: Request) -> Shown:
    with request.stage.waiting("checking the installation and every store"):
        checks = examine(request.desk)
    return Report(checks, reports.checks_text(checks), reports.checks_html(checks))


def _clouds(request: Request) -> Shown:
    args, desk = request.args, request.desk
    from cloudshift_lab.sim.clouds import SimClouds

    if args.action == "preempt":
        return _preempt(request)
    clouds = SimClouds(desk.root)
    if args.action == "up":
        clouds.up(request.stage.say)
    elif args.action == "down":
        if not args.force:
            _refuse_downing(desk, frozenset(each.name for each in clouds.status()))
        clouds.down(request.stage.say)
    targets = list_targets(desk.root)
    return Report(targets, reports.targets_text(targets), reports.targets_html(targets))


def _preempt(request: Request) -> Shown:
    """Play that a provider takes machines away."""
    args, desk = request.args, request.desk
    from cloudshift_lab.sim.clouds import SimClouds

    if args.cloud is None:
        raise UsageError(f"say whose machines go: {desk.prompt} clouds preempt aws-sim --in 30")
    in_s = _seconds(getattr(args, "in"), desk.prompt)
    run_id = "" if args.run is None else desk.find_run(args.run).run_id
    events = SimClouds(desk.root).preempt(args.cloud, in_s, run_id=run_id, kills=args.kill)
    sheet = preempted_sheet(args.cloud, events, desk.prompt)
    return Report(events, sheet_text(sheet), sheet_html(sheet))


@contextmanager
def _conductor_for_a_moment(desk: Desk) -> Iterator[Client]:
    """The conductor; one that had to be started, since agents live without it, ends again."""
    try:
        client, is_ours = desk.peek(), False
    except Unavailable:
        client, is_ours = desk.client(), True
    try:
        yield client
    finally:
        if is_ours:
            desk.forget_client()
            client.shutdown()


def _refuse_downing(desk: Desk, names: frozenset[str]) -> None:
    """Raise Conflict while a run that has not ended needs one of these clouds."""
    if not (desk.root / "runs").is_dir():  # no run was ever started: no conductor is, either
        return
    with _conductor_for_a_moment(desk) as client:
        runs, moves = client.runs(), client.migrations()
    at = {
        view.name: view.placement.cloud
        for view in runs
        if view.state not in FINAL_STATES and view.placement.cloud in names
    }
    for move_ in moves:
        is_under_way = move_.phase not in FINAL_PHASES and move_.phase != "proposed"
        if is_under_way and move_.plan.target.cloud in names:
            at.setdefault(move_.run_name, move_.plan.target.cloud)
    if at:
        where = ", ".join(f"{run} on {cloud}" for run, cloud in at.items())
        raise Conflict(
            f"still active: {where}; stop first ({desk.prompt} stop {next(iter(at))}), "
            f"or lose what is there with: {desk.prompt} clouds down --force"
        )


def list_targets(root: Path) -> tuple[Target, ...]:
    """The places in the cloud list, each with its cheapest price."""
    clouds = load_clouds(root)
    return tuple(
        Target(
            target=target,
            title=cloud.title,
            price_micro_usd_per_h=offer.price_micro_usd_per_h,
            simulated=cloud.simulated,
            note=cloud.note,
        )
        for target in clouds.targets()
        for cloud, offer in [clouds.resolve(target)]
    )


def _conductor(request: Request) -> Shown:
    args, desk = request.args, request.desk
    if args.action == "stop":
        try:
            desk.peek().shutdown()
        except CloudshiftError as error:
            return note(f"nothing to stop: {error.message}")
        desk.forget_client()
        return note("the conductor has been asked to stop; runs and their agents go on")
    client = desk.client() if args.action == "start" else desk.peek()
    health = client.health()
    up = format_duration(max(0.0, desk.world.now() - health.started_at))
    line = f"conductor {health.version}, pid {health.pid}, up {up}, home {health.home}"
    return Report(health, line, note(line).html)


def _help(request: Request) -> Shown:
    args, desk = request.args, request.desk
    return printed(help_text(args.topic, desk.prompt), "help")


def _pass_on(name: str, words: Sequence[str]) -> Shown | None:
    """Hand over to the room that does it; its exit status is its answer."""
    module = import_module(_ELSEWHERE[name])
    try:
        status = module.main(list(words))
    except SystemExit as end:  # argparse of that room
        status = end.code
    if status:
        raise CloudshiftError(f"{name} ended with status {status}; see its output above")
    return None


_SPAN = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(s|m)?")
_ELSEWHERE = {
    "demo": "cloudshift_lab.sim.demo",
    "sim": "cloudshift_lab.sim.dst",
    "bench": "cloudshift_lab.sim.bench.main",
    "chaos": "cloudshift_lab.sim.chaos.main",
    "health": "cloudshift_lab.sim.health.main",
    "market": "cloudshift_lab.lab.advice.main",
}
_ACTIONS: dict[str, Callable[[Request], Shown | None]] = {
    "status": _status,
    "train": _train,
    "watch": _watch,
    "migrate": _migrate,
    "approve": _approve,
    "reject": _reject,
    "receipt": _receipt,
    "notice": _notice,
    "cost": _cost,
    "health": _health,
    "goodput": _goodput,
    "logs": _logs,
    "stop": _stop,
    "resume": _resume,
    "maintenance": machines.perform,
    "dashboard": _dashboard,
    "doctor": _doctor,
    "clouds": _clouds,
    "conductor": _conductor,
    "help": _help,
    **stored.ACTIONS,
}
