import msgspec
import pytest

from cloudshift_lab.health.nvml import GpuSnapshot, judge_snapshot

FINE = GpuSnapshot(
    gpu="n1/PCI:0000:3b:00", at=9.0, ecc_uncorrected=0, remap_pending=False, remap_failed=False,
    throttle_bits=0x4, recovery_action=0, temp_c=60, slowdown_c=90, pcie_width=16,
    pcie_width_max=16,
)  # fmt: skip


def with_(**values: object) -> GpuSnapshot:
    return msgspec.structs.replace(FINE, **values)


def test_a_gpu_that_is_fine_or_says_nothing_has_no_findings() -> None:
    assert judge_snapshot(FINE) == ()
    assert judge_snapshot(GpuSnapshot(gpu="g", at=0.0)) == ()


@pytest.mark.parametrize(
    ("values", "rule", "action", "proof"),
    [
        ({"recovery_action": 1}, "nvml.recovery", "reset the GPU", True),
        ({"recovery_action": 2}, "nvml.recovery", "reboot the node", True),
        ({"recovery_action": 3}, "nvml.recovery", "drain the node", True),
        ({"recovery_action": 4}, "nvml.recovery", "drain and reset the GPU", True),
        ({"recovery_action": 77}, "nvml.recovery", "contact support", False),
        ({"ecc_uncorrected": 1}, "nvml.ecc", "drain and reset the GPU", True),
        ({"remap_failed": True}, "nvml.remap_failed", "replace the node", True),
        ({"remap_pending": True}, "nvml.remap_pending", "reset the GPU", True),
        ({"throttle_bits": 0x40}, "nvml.slowdown", "drain the node", False),
        ({"throttle_bits": 0x80}, "nvml.slowdown", "drain the node", False),
        ({"throttle_bits": 0x20}, "nvml.warm", "watch", False),
        ({"temp_c": 88}, "nvml.hot", "drain the node", False),
        ({"pcie_width": 8}, "nvml.pcie_width", "drain the node", False),
    ],
)
def test_each_rule_says_what_it_saw_and_asks_for_one_thing(
    values: dict[str, object], rule: str, action: str, *, proof: bool
) -> None:
    (found,) = judge_snapshot(with_(**values))
    assert (found.rule_id, found.action, found.deterministic) == (rule, action, proof)
    assert found.evidence
    assert FINE.gpu in found.words


def test_errors_that_were_counted_before_say_nothing_new() -> None:
    old = with_(ecc_uncorrected=3)
    assert judge_snapshot(old, before=old) == ()
    (found,) = judge_snapshot(with_(ecc_uncorrected=5), before=old)
    assert found.evidence[0].value == 2


def test_power_capping_by_software_is_normal() -> None:
    assert judge_snapshot(with_(throttle_bits=0x1 | 0x2 | 0x4)) == ()
