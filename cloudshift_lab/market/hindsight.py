"""The same work in other ways, at the prices that were recorded: what moving was worth.

Perfect foresight is a dynamic programme over the moments at which a price changed: between two of
them nothing speaks for a move. It keeps, for each place and each share of the work, the cheapest
way to have got there, so it is the optimum but for that rounding, and never above the other ways.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from cloudshift_lab.core.costs import Otherwise
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.money import HOUR_S, format_duration

Floats = npt.NDArray[np.float64]
_SHARES = 400
_LISTED = 4


class Track(msgspec.Struct, frozen=True, kw_only=True):
    """A place and its recorded prices.

    Args:
        name: ``gcp-sim:us-central1``, with the machine where a place has several.
        prices: ``(since, micro-USD per hour of all nodes)``, in order; the last one goes on, the
            first one counts for what was before.
        pace: How fast it trains, 1 is the place that the run began at; > 0.
        basis: Where the pace comes from.
    """

    name: str
    prices: tuple[tuple[float, int], ...]
    pace: float = 1.0
    basis: str = ""


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """What a run did, in what of it other ways would have shared.

    Args:
        tracks: Places, the one that the run began at first.
        begin: Of the run, wall-clock seconds.
        work_s: Its kept training, at pace 1, > 0.
        share: Of its time that trains where nothing moves, 0 to 1: starts, saves and failures take
            the rest wherever it is.
        carry_micro_usd: [from][to], egress and requests of a move.
        starts_s: How long a move's target is paid before it trains; the source trains on.
        actual_micro_usd: What the run has cost.
    """

    tracks: tuple[Track, ...]
    begin: float
    work_s: float
    share: float
    carry_micro_usd: tuple[tuple[int, ...], ...]
    starts_s: float
    actual_micro_usd: int


class _Way(msgspec.Struct, frozen=True):
    """A way to do the work: its cost in micro-dollars, its end, and where it was since when."""

    cost: float
    end: float
    stays: tuple[tuple[float, int], ...]


def otherwise(story: Story) -> tuple[Otherwise, ...]:
    """Never moved, always cheapest, and perfect foresight; the last is never above the others.

    Raises:
        UsageError: A figure is out of range.
    """
    _check(story)
    stayed = _follow(story, lambda _at, _here: 0)
    cheapest = _follow(story, lambda at, _here: _cheapest(story, at), first=None)
    foreseen = min((_foresee(story), stayed, cheapest), key=lambda way: way.cost)
    return (
        _told(story, "never moved", stayed, story.actual_micro_usd),
        _told(story, "always cheapest", cheapest, story.actual_micro_usd),
        _told(story, "perfect foresight", foreseen, story.actual_micro_usd),
    )


def _follow(story: Story, choose: Callable[[float, int], int], *, first: int | None = 0) -> _Way:
    """A way that decides at every change of a price where to be."""
    edges = _edges(story)
    here = choose(edges[0], 0) if first is None else first
    cost, done, stays = 0.0, 0.0, [(story.begin, here)]
    for number, at in enumerate(edges):
        there = choose(at, here) if number else here
        if there != here:
            cost += _switch(story, at)[here, there]
            stays.append((at, there))
            here = there
        until = edges[number + 1] if number + 1 < len(edges) else math.inf
        speed = story.tracks[here].pace * story.share
        took_s = min(until - at, (story.work_s - done) / speed)
        cost += _price(story.tracks[here], at) * took_s / HOUR_S
        done += took_s * speed
        if took_s < until - at:
            return _Way(cost, at + took_s, tuple(stays))
    return _Way(cost, edges[-1], tuple(stays))


def _foresee(story: Story) -> _Way:
    """The cheapest way of all, knowing every price beforehand."""
    num, edges = len(story.tracks), _edges(story)
    speed = np.array([track.pace * story.share for track in story.tracks])
    cost = np.full((num, _SHARES), np.inf)
    done = np.zeros((num, _SHARES))
    cost[:, 0] = 0.0
    came: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    best: tuple[float, float, int, int, int] = (math.inf, 0.0, 0, 0, 0)
    for number, at in enumerate(edges):
        cost, done, via = _switched(cost, done, _switch(story, at) if number else None)
        until = edges[number + 1] if number + 1 < len(edges) else math.inf
        price = np.array([_price(track, at) for track in story.tracks]) / HOUR_S
        needed_s = (story.work_s - done) / speed[:, None]
        ends = np.where(needed_s <= until - at, cost + price[:, None] * needed_s, np.inf)
        place, slot = np.unravel_index(int(np.argmin(ends)), ends.shape)
        if ends[place, slot] < best[0]:
            end = at + float(needed_s[place, slot])
            best = (float(ends[place, slot]), end, number, int(place), int(slot))
        if until == math.inf:
            came.append((via, np.zeros_like(via)))
            break
        cost, done, kept = _trained(
            cost + price[:, None] * (until - at), done + speed[:, None] * (until - at), story.work_s
        )
        came.append((via, kept))
    return _Way(best[0], best[1], _traced(edges, came, best[2:], story.begin))


def _switched(
    cost: Floats, done: Floats, switch: Floats | None
) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """The cheapest place to come from, for every place and share."""
    num, _ = cost.shape
    here = np.repeat(np.arange(num)[:, None], cost.shape[1], axis=1)
    if switch is None:
        return cost, done, here
    reached = cost[:, None, :] + switch[:, :, None]
    via = np.argmin(reached, axis=0)
    return (
        np.take_along_axis(reached, via[None], axis=0)[0],
        np.take_along_axis(done, via, axis=0),
        via,
    )


def _trained(
    cost: Floats, done: Floats, work_s: float
) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """Every way in the slot of the work it has done, the cheapest one of a slot; done ones go."""
    new_cost, new_done = np.full_like(cost, np.inf), np.zeros_like(done)
    kept = np.zeros(cost.shape, dtype=np.int64)
    for place in range(len(cost)):
        open_ = np.flatnonzero(np.isfinite(cost[place]) & (done[place] < work_s))
        order = open_[np.argsort(-cost[place, open_], kind="stable")]
        slots = np.minimum(done[place, order] / work_s * _SHARES, _SHARES - 1).astype(np.int64)
        new_cost[place, slots] = cost[place, order]  # of one slot the last, cheapest one stays
        new_done[place, slots] = done[place, order]
        kept[place, slots] = order
    return new_cost, new_done, kept


def _traced(
    edges: Sequence[float],
    came: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]],
    last: tuple[int, int, int],
    begin: float,
) -> tuple[tuple[float, int], ...]:
    """Where the best way was since when, followed back from its end."""
    number, place, slot = last
    places = [place]
    while number:
        place = int(came[number][0][place, slot])
        number -= 1
        slot = int(came[number][1][place, slot])
        places.append(place)
    places.reverse()
    found = [(begin, places[0])]
    for at, (before, after) in zip(edges[1:], itertools.pairwise(places), strict=False):
        if before != after:
            found.append((at, after))
    return tuple(found)


def _switch(story: Story, at: float) -> Floats:
    """[from, to], micro-dollars of a move: what is carried, and the target while it starts."""
    starting = np.array([_price(track, at) for track in story.tracks]) * story.starts_s / HOUR_S
    found = np.array(story.carry_micro_usd, dtype=float) + starting[None, :]
    np.fill_diagonal(found, 0.0)
    return found


def _edges(story: Story) -> list[float]:
    """The beginning, and every later moment at which a price changed."""
    changes = {at for track in story.tracks for at, _ in track.prices if at > story.begin}
    return [story.begin, *sorted(changes)]


def _price(track: Track, at: float) -> int:
    price = track.prices[0][1]
    for since, micro_usd in track.prices:
        if since > at:
            break
        price = micro_usd
    return price


def _cheapest(story: Story, at: float) -> int:
    """The place where an hour of work costs least at a moment."""
    return min(
        range(len(story.tracks)),
        key=lambda place: _price(story.tracks[place], at) / story.tracks[place].pace,
    )


def _told(story: Story, name: str, way: _Way, actual: int) -> Otherwise:
    cost, num_moves = round(way.cost), len(way.stays) - 1
    return Otherwise(
        name=name, micro_usd=cost, regret_micro_usd=actual - cost, end=way.end, moves=num_moves,
        basis=_basis(story, way),
    )  # fmt: skip


def _basis(story: Story, way: _Way) -> str:
    ends = [at for at, _ in way.stays[1:]] + [way.end]
    parts = [
        f"{story.tracks[place].name} for {format_duration(until - since)}"
        for (since, place), until in zip(way.stays, ends, strict=True)
    ]
    if len(parts) > _LISTED:
        parts = [*parts[:_LISTED], f"{len(parts) - _LISTED} more"]
    return ", then ".join(parts)


def _check(story: Story) -> None:
    num = len(story.tracks)
    if not num or any(not track.prices for track in story.tracks):
        raise UsageError("a price is missing for a place; other ways cannot be counted without")
    if len(story.carry_micro_usd) != num or any(len(row) != num for row in story.carry_micro_usd):
        raise UsageError("egress is needed between all places; mend the call")
    if not (story.work_s > 0 and 0 < story.share <= 1 and story.starts_s >= 0):
        raise UsageError("other ways need work above 0 s and a share of training from 0 to 1")
    if any(not track.pace > 0 for track in story.tracks):
        raise UsageError("every place needs a pace above 0; mend the call")
    if any(price < 0 for track in story.tracks for _, price in track.prices):
        raise UsageError("a recorded price is below 0; mend the price list")
