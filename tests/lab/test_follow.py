from cloudshift_lab.core.errors import Unavailable
from cloudshift_lab.lab.follow import Follower


def test_it_shows_every_view_and_ends_with_the_last() -> None:
    views = iter([1, 2, 3, 4])
    seen: list[int] = []
    follower = Follower(lambda: next(views), seen.append, lambda view: view == 3,
                        lost=lambda _: None, interval_s=0.001)  # fmt: skip
    follower.start()
    follower.join()
    assert seen == [1, 2, 3]


def test_an_absent_conductor_is_told_and_asked_again() -> None:
    answers: list[int | None] = [None, None, 7]
    told: list[str] = []
    seen: list[int] = []

    def fetch() -> int:
        answer = answers.pop(0)
        if answer is None:
            raise Unavailable("nobody answers; waiting")
        return answer

    follower = Follower(fetch, seen.append, lambda _: True, lost=told.append, interval_s=0.001)
    follower.start()
    follower.join()
    assert told == ["nobody answers; waiting"] * 2
    assert seen == [7]


def test_it_can_be_stopped() -> None:
    follower = Follower(lambda: 1, lambda _: follower.stop(), lambda _: False,
                        lost=lambda _: None, interval_s=60.0)  # fmt: skip
    follower.start()
    follower.join()
