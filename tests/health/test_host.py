from dataclasses import replace

import numpy as np
import pytest

from cloudshift_lab.health.host import find_clock_skew, find_disk, find_link
from cloudshift_lab.health.windows import ClockWindow, DiskWindow, LinkWindow

TIMES_S = np.arange(60) * 60.0
DISK = DiskWindow("n1:/scratch", TIMES_S, np.full(60, 5e11), 1e12, np.full(60, 0.002))
LINK = LinkWindow("n1:eth0", TIMES_S, np.zeros(60), np.full(60, 1e6), np.zeros(60), gbps=100.0,
                  rated_gbps=100.0)  # fmt: skip


def disk_rules(disk: DiskWindow) -> list[str]:
    return [each.rule_id for each in find_disk(disk)]


def link_rules(link: LinkWindow) -> list[str]:
    return [each.rule_id for each in find_link(link)]


def test_a_disk_and_a_link_that_are_fine_have_no_findings() -> None:
    assert disk_rules(DISK) == []
    assert link_rules(LINK) == []
    assert disk_rules(DiskWindow("d", np.zeros(0), np.zeros(0), 1e12, np.zeros(0))) == []


def test_a_disk_that_takes_no_writes_is_proof() -> None:
    (found,) = find_disk(replace(DISK, is_writable=False))
    assert (found.rule_id, found.deterministic) == ("disk.read_only", True)


def test_a_disk_that_fills_steadily_is_announced_and_one_that_breathes_is_not() -> None:
    filling = np.linspace(5e11, 2e11, 60)
    assert disk_rules(replace(DISK, free_bytes=filling)) == ["disk.filling"]
    assert disk_rules(replace(DISK, free_bytes=np.linspace(5e11, 4.99e11, 60))) == []
    breathing = np.tile([5e11, 2e11], 30)
    assert disk_rules(replace(DISK, free_bytes=breathing)) == []
    assert disk_rules(replace(DISK, free_bytes=np.linspace(2e11, 5e11, 60))) == []


def test_a_full_disk_is_critical() -> None:
    (found,) = find_disk(replace(DISK, free_bytes=np.full(60, 1e10)))
    assert (found.rule_id, found.severity) == ("disk.full", "critical")


def test_a_disk_that_became_slow_is_watched() -> None:
    slow = DISK.latency_s.copy()
    slow[-5:] = 0.2
    assert disk_rules(replace(DISK, latency_s=slow)) == ["disk.slow"]
    assert disk_rules(replace(DISK, latency_s=np.full(60, 0.2))) == []


def test_a_link_that_is_down_is_proof() -> None:
    (found,) = find_link(replace(LINK, is_up=False))
    assert (found.rule_id, found.deterministic) == ("link.down", True)


def test_a_link_that_flaps_breaks_packets_or_is_slow_is_told() -> None:
    flaps = np.zeros(60)
    flaps[[20, 40]] = 1
    assert link_rules(replace(LINK, downs=flaps)) == ["link.flapping"]
    assert link_rules(replace(LINK, errors=np.full(60, 100.0))) == ["link.errors"]
    assert link_rules(replace(LINK, gbps=25.0)) == ["link.slow"]
    assert link_rules(replace(LINK, gbps=None)) == []


def test_losses_of_long_ago_are_forgotten() -> None:
    long_s = np.arange(60) * 600.0
    flaps = np.zeros(60)
    flaps[[2, 50]] = 1
    assert link_rules(replace(LINK, times_s=long_s, downs=flaps)) == []


@pytest.mark.parametrize(
    ("offset_s", "error_s", "severity"),
    [(0.4, 0.0, None), (-2.0, 0.1, "watch"), (0.9, 0.5, None), (60.0, 0.1, "warning")],
)
def test_a_clock_is_off_only_if_the_measurement_cannot_explain_it(
    offset_s: float, error_s: float, severity: str | None
) -> None:
    found = find_clock_skew(ClockWindow(0.0, {"n1": offset_s, "n2": 0.0}, {"n1": error_s}))
    assert [each.severity for each in found] == ([] if severity is None else [severity])
