"""What the ranks of ``chaos ranks`` train; where its orders say so, a rank kills itself, once.

Its environment: ``KILLS``, a JSON list of step, phase and rank; ``STEPS``; ``DIARY``, a folder for
what each rank did and when. A kill is SIGKILL at the very place: no phase is missed by luck.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cloudshift_lab.training import Session

WIDTH = 256
BATCH = 16
SPARE_LIMIT_S = 90.0
diary = Path(os.environ["DIARY"])
kills = {(kill["step"], kill["phase"], kill["rank"]) for kill in json.loads(os.environ["KILLS"])}
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
seed = int(os.environ["CLOUDSHIFT_SEED"])
torch.manual_seed(seed + rank)
now = 0


def write(kind: str, **facts: object) -> None:
    """One line of this rank's diary, written at once."""
    line = json.dumps({"kind": kind, "at": time.time(), **facts}) + "\n"
    with (diary / f"rank-{rank}.jsonl").open("a") as file:
        file.write(line)


def is_done(step: int, phase: str) -> bool:
    """Whether that kill has happened."""
    return (diary / f"killed-{step}-{phase}").exists()


def die_if_told(phase: str) -> None:
    """End as the kernel would end us, if that was asked for here and has not happened yet."""
    if (now, phase, rank) not in kills:
        return
    if is_done(now, phase):
        return
    (diary / f"killed-{now}-{phase}").touch()
    write("kill", step=now, phase=phase)
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_spare() -> None:
    """Before a step with a kill: until interpreters wait, if any are to; in life they have time."""
    is_next = any(step == now and not is_done(step, phase) for step, phase, _ in kills)
    if os.environ["SPARE"] != "on" or not is_next:
        return
    node_dir, until = Path(os.environ["CLOUDSHIFT_NODE_DIR"]), time.monotonic() + SPARE_LIMIT_S
    while time.monotonic() < until:
        ready = [p.name.partition(".")[0] for p in node_dir.glob("gate-*.ready-*")]
        if any(ready.count(gate) == world and not (node_dir / gate).exists() for gate in ready):
            return
        time.sleep(0.05)


layers = [nn.Linear(64, WIDTH), nn.ReLU(), nn.Dropout(0.1)]
for _ in range(4):
    layers += [nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.1)]
net = nn.Sequential(*layers, nn.Linear(WIDTH, 1))
model = DistributedDataParallel(net, bucket_cap_mb=0.25)
params = list(model.parameters())
optimizer = torch.optim.AdamW([{"params": params[:6]}, {"params": params[6:]}], lr=1e-3)
schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.9)


def batch_loss(step: int) -> torch.Tensor:
    """The loss on this rank's batch of a step."""
    draw = torch.Generator().manual_seed(1000003 * seed + step * world + rank)
    found: torch.Tensor = (model(torch.randn(BATCH, 64, generator=draw)) ** 2).mean()
    return found


session = Session(
    model=model, optimizer=optimizer, warm_up=lambda: batch_loss(0), extra={"schedule": schedule}
)
net[6].register_forward_hook(lambda *_: die_if_told("forward"))
params[6].register_hook(lambda _grad: die_if_told("backward"))  # type: ignore[no-untyped-call]
init_group = optimizer._init_group
groups_begun = 0


def begin_group(*args: object, **more: object) -> object:
    """Called once for each parameter group: at the second, the first has been changed already."""
    global groups_begun
    groups_begun += 1
    if groups_begun % 2 == 0:
        die_if_told("optimizer")
    return init_group(*args, **more)  # type: ignore[no-untyped-call]


optimizer._init_group = begin_group  # type: ignore[method-assign]
imported = os.environ.get("CLOUDSHIFT_IMPORTED", "0 0").split()
write("start", step=session.start_step, imports=[float(at) for at in imported])
for now in session.steps(int(os.environ["STEPS"])):
    wait_for_spare()
    loss = batch_loss(now)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()
    schedule.step()
    die_if_told("step")
    write("step", step=now, loss=float(loss.item()).hex())
    time.sleep(float(os.environ.get("PAUSE_S", "0")))
    session.step(loss=loss, tokens=BATCH)
digest = hashlib.sha256()
for name, value in sorted(net.state_dict().items()):
    digest.update(name.encode() + value.numpy().tobytes())
for param in params:
    for key, value in sorted(optimizer.state[param].items()):
        digest.update(key.encode() + value.numpy().tobytes())
digest.update(torch.get_rng_state().numpy().tobytes())
write("end", digest=digest.hexdigest())
dist.destroy_process_group()
