"""The session in this very process: gate, saves, drain, restore, and life without an agent."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cloudshift_lab.core.errors import Unavailable, UsageError
from cloudshift_lab.core.staging import Go
from cloudshift_lab.training import Drained, Session
from cloudshift_lab.training.session import patiently

from .conftest import AroundUs


class Job:
    """A tiny script: dropout uses torch's randomness, the data numpy's and Python's."""

    def __init__(self, seed: int = 0, width: int = 8) -> None:
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        self.model = nn.Sequential(
            nn.Linear(4, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, 1)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=4)
        self.losses: dict[int, float] = {}

    def loss(self) -> torch.Tensor:
        noise = float(np.random.rand()) + random.random()
        x = torch.randn(6, 4) + noise
        return (self.model(x) ** 2).mean()

    def session(self) -> Session:
        return Session(
            model=self.model, optimizer=self.optimizer, warm_up=self.loss,
            extra={"scheduler": self.scheduler},
        )  # fmt: skip

    def train(self, total: int, session: Session | None = None) -> None:
        session = session or self.session()
        for step in session.steps(total):
            self.step(session, step)

    def step(self, session: Session, step: int) -> None:
        loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.losses[step] = loss.item()
        session.step(loss=loss, tokens=6)

    def weights(self) -> dict[str, Any]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}


def equal(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.fixture(autouse=True)
def _same_randomness_afterwards() -> Iterator[None]:
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    yield
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    np.random.set_state(state[2])


def test_without_an_agent_the_loop_runs_and_says_once_that_nothing_is_saved(
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = Job()
    job.train(3)
    assert sorted(job.losses) == [1, 2, 3]
    assert capsys.readouterr().err.count("nothing is saved") == 1


def test_each_step_is_reported_with_its_loss_and_tokens(around: AroundUs) -> None:
    job = Job()
    job.train(4)
    rows = around.rows()
    assert [row.step for row in rows] == [1, 2, 3, 4]
    assert [row.loss for row in rows] == pytest.approx(list(job.losses.values()))
    assert all(row.tokens == 6 and row.step_s and row.step_s > 0 for row in rows)


def test_a_finished_run_leaves_its_last_state_staged(around: AroundUs) -> None:
    job = Job()
    job.train(4)
    assert around.state().state == "finished"
    go = around.save(4)
    assert go.step == 4


def test_a_restored_run_equals_an_uninterrupted_one_bit_by_bit(around: AroundUs) -> None:
    whole = Job()
    whole.train(9)
    first = Job()
    first.train(5)
    around.say(go=around.save(5))
    second = Job(seed=99)
    session = second.session()
    assert session.start_step == 5
    second.train(9, session)
    assert sorted(second.losses) == [6, 7, 8, 9]
    assert {**first.losses, **second.losses} == whole.losses
    assert equal(second.weights(), whole.weights())


def test_warming_up_leaves_no_trace(around: AroundUs) -> None:
    with_it, without = Job(), Job()
    around.say(go=Go())
    Job.train(with_it, 3)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    without = Job()
    session = Session(
        model=without.model, optimizer=without.optimizer, extra={"scheduler": without.scheduler}
    )
    without.train(3, session)
    assert with_it.losses == without.losses
    assert equal(with_it.weights(), without.weights())


def test_a_drain_stages_the_step_at_which_it_stops_and_ends_with_code_zero(
    around: AroundUs,
) -> None:
    job = Job()
    session = job.session()
    with pytest.raises(Drained) as end:
        for step in session.steps(100):
            if step == 4:
                around.say(drain=True)
            job.step(session, step)
    assert end.value.code == 0
    assert end.value.step == 5  # heard at the end of 4, agreed upon at the end of 5
    assert (around.state().state, around.state().step) == ("drained", 5)
    assert around.save(5).step == 5


def test_a_save_that_is_not_committed_yet_is_never_overwritten(around: AroundUs) -> None:
    job = Job()
    job.train(10)
    staged = {path.name for path in around.node_dir.glob("*.slot-?.json")}
    assert len(staged) == 2
    around.save(3)
    around.save(10)


def test_a_released_save_makes_room_for_the_next(around: AroundUs) -> None:
    job = Job()
    session = job.session()
    for step in session.steps(10):
        if step == 4:
            around.say(released_step=3)
        if step == 5:
            assert session._boundary is not None
            session._boundary._capture.finish()  # a step here takes less than an announcement
        job.step(session, step)
    around.save(6)


def test_a_standby_waits_at_the_gate_until_it_is_told_to_go(around: AroundUs) -> None:
    first = Job()
    first.train(5)
    saved = around.save(5)
    around.say(go=None)
    job = Job(seed=3)
    made: list[Session] = []
    waiter = threading.Thread(target=lambda: made.append(job.session()))
    waiter.start()
    while around.state().state != "gate":
        waiter.join(0.01)
    assert made == []
    around.say(go=saved)
    waiter.join(30)
    assert made[0].start_step == 5
    assert equal(job.weights(), first.weights())
    assert around.state().state == "running"


def test_another_model_than_the_saved_one_is_refused_by_name(around: AroundUs) -> None:
    first = Job()
    first.train(3)
    around.say(go=around.save(3))
    with pytest.raises(UsageError, match=r"model/0\.bias.*run the script that wrote"):
        Job(width=9).session()


def test_a_missing_extra_is_refused_by_name(around: AroundUs) -> None:
    first = Job()
    first.train(3)
    around.say(go=around.save(3))
    other = Job()
    with pytest.raises(UsageError, match="scheduler"):
        Session(model=other.model, optimizer=other.optimizer)


def test_an_extra_that_a_checkpoint_cannot_hold_is_refused_with_its_path(
    around: AroundUs,
) -> None:
    class Odd:
        def state_dict(self) -> dict[str, Any]:
            return {"callback": print}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            raise AssertionError("never saved")

    job = Job()
    session = Session(model=job.model, optimizer=job.optimizer, extra={"odd": Odd()})
    with pytest.raises(UsageError, match=r"extra\.odd\.callback"):
        job.train(3, session)


def test_marking_a_step_twice_is_refused(around: AroundUs) -> None:
    session = Job().session()
    with pytest.raises(UsageError, match="belongs once"):
        for _ in session.steps(3):
            session.step()
            session.step()


def test_a_loop_that_forgets_to_mark_its_steps_is_still_saved(around: AroundUs) -> None:
    job = Job()
    for _ in job.session().steps(3):
        pass
    assert [row.step for row in around.rows()] == [1, 2, 3]


def test_reports_never_stop_training_when_nobody_takes_them(around: AroundUs) -> None:
    around.close()
    (around.node_dir / "rows.sock").unlink()
    Job().train(50)
    left = around.node_dir / "rank-0.rows.json"
    assert left.read_bytes().count(b'"step"') == 50


def test_a_restore_waits_for_a_store_that_is_away_and_gives_up_in_the_end() -> None:
    answers = [Unavailable("away"), Unavailable("still away"), None]

    def restore() -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    patiently(restore, again_s=0.0)
    assert answers == []
    answers = [Unavailable("away"), None]
    with pytest.raises(Unavailable):
        patiently(restore, patience_s=-1.0, again_s=0.0)
    assert answers == [None]
