"""What the migration benchmark and the migration chaos train, and how the rivals stop and restart.

As a run it is moved by us. With ``MOVING_SAVE`` it stands for what people do without: it stops
when ``MOVING_STOP`` appears, saves to ``MOVING_URL``, and begins with what lies in ``MOVING_LOAD``.
``MOVING_REST_S`` is slept after each step. Every optimizer step of every rank is traced as it
happens, published or not.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from cloudshift_lab.sim.bench.gpt import Shape, batch, build, corpus
from cloudshift_lab.sim.bench.trace import Traced, append
from cloudshift_lab.training import Session
from cloudshift_lab.training.trusted import read_item

CORPUS_BYTES = 400_000
STATE_FILE = "state.pt"


def plain_steps(state: dict[str, Any], total: int) -> Iterator[int]:
    """As a script without us does it: load, train until somebody wants it to stop, save."""
    done, stop = load(state), Path(os.environ["MOVING_STOP"])
    for step in range(done + 1, total + 1):
        yield step
        if stop.exists():
            save({**state, "step": step})
            return


def load(state: dict[str, Any]) -> int:
    """The step that is continued; 0 without anything to load."""
    if not (folder := os.environ.get("MOVING_LOAD")):
        return 0
    if os.environ["MOVING_SAVE"] == "dcp":
        return load_dcp(state, folder)
    with (Path(folder) / STATE_FILE).open("rb") as file:
        found = read_item(file, STATE_FILE)
    state["model"].load_state_dict(found["model"])
    state["optimizer"].load_state_dict(found["optimizer"])
    return int(found["step"])


def load_dcp(state: dict[str, Any], folder: str) -> int:
    """Load as its documentation says: the optimizer's state is made first, then filled in place."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

    model, optimizer = get_state_dict(state["model"], state["optimizer"])
    found: dict[str, Any] = {"model": model, "optimizer": optimizer, "step": 0}
    dcp_load(found, storage_reader=FileSystemReader(folder))
    set_state_dict(
        state["model"], state["optimizer"], model_state_dict=found["model"],
        optim_state_dict=found["optimizer"],
    )  # fmt: skip
    return int(found["step"])


def save(state: dict[str, Any]) -> None:
    """Write the state to the bucket of the cloud that it is in."""
    url, options = os.environ["MOVING_URL"], json.loads(os.environ["MOVING_OPTIONS"])
    if os.environ["MOVING_SAVE"] == "dcp":
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter
        from torch.distributed.checkpoint.state_dict import get_state_dict
        from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

        model, optimizer = get_state_dict(state["model"], state["optimizer"])
        found = {"model": model, "optimizer": optimizer, "step": state["step"]}
        dcp_save(found, storage_writer=FsspecWriter(url, **options))
        return
    import fsspec

    parts = {key: state[key].state_dict() for key in ("model", "optimizer")}
    with fsspec.open(f"{url}/{STATE_FILE}", "wb", **options) as file:
        torch.save({**parts, "step": state["step"]}, file)


def main() -> None:
    """Train to step ``MOVING_STEPS``, or until somebody stops it."""
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    shape, trace = Shape(*json.loads(os.environ["MOVING_SHAPE"])), Path(os.environ["MOVING_TRACE"])
    raw = build(shape)
    model = DistributedDataParallel(raw) if world > 1 else raw
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    data, total = corpus(shape.vocab, CORPUS_BYTES), int(os.environ["MOVING_STEPS"])
    session = None
    if "MOVING_SAVE" in os.environ:
        steps = plain_steps({"model": raw, "optimizer": optimizer}, total)
    else:
        warm_up = lambda: model(*batch(data, shape, 0))  # noqa: E731
        session = Session(model=model, optimizer=optimizer, warm_up=warm_up)
        steps = session.steps(total)
    for step in steps:
        began = time.time()
        loss = model(*batch(data, shape, step * world + rank))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        value = loss.item()
        append(trace, Traced(rank, step, began, time.time(), value, os.getpid()))
        time.sleep(float(os.environ.get("MOVING_REST_S", "0")))
        if session is not None:
            session.step(loss=value, tokens=shape.batch * shape.block)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
