"""How fast a run would train elsewhere: measured, else by a table, else an honest estimate.

Peak numbers mislead: H100 over A100 is 3.2 on paper and 2.3 in training. Sources: tokens per second
of 7B and 8B models in bf16 from llm-foundry's benchmarking tables (GPUs), torchtitan and the
Neuron SDK (Trainium1); matmul and peak TFLOPS from stas00/ml-engineering.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from cloudshift_lab.core.errors import UsageError

Known = Literal["measured", "table", "estimate", "unknown"]
_REFERENCE = "H100"
_MATMUL_REFERENCE = 794.5
_MATMUL_WITHIN, _PEAK_WITHIN, _BLIND_WITHIN = 0.30, 0.45, 0.5
_FEWEST_HOURS = 3
_TABLE: dict[str, tuple[float, float, float]] = {
    "H100": (1.0, 1.0, 1.0),
    "A100-80": (0.42, 0.436, 0.52),
    "A100-40": (0.33, 0.346, 0.42),
    "Trainium1": (0.10, 0.123, 0.15),
}
"""Of an H100's tokens per second: lowest, at the sequence length most often trained, highest."""
_MATMUL_TFLOPS = {
    "H200": 794.5, "GH200": 828.6, "B200": 1745.0, "B300": 1769.0, "GB200": 1822.0,
    "MI300X": 668.4, "MI325X": 784.9, "MI355X": 1565.0, "Gaudi2": 418.7, "Gaudi3": 1243.0,
}  # fmt: skip
_PEAK_TFLOPS = {
    "H100NVL": 756.0, "L40S": 362.0, "L4": 121.0, "A10G": 70.0, "TPU-v4": 275.0, "TPU-v5e": 197.0,
    "TPU-v5p": 459.0, "TPU-v6e": 918.0, "TPU-v7x": 2307.0, "Trainium2": 667.0,
}  # fmt: skip
_PEAK_REFERENCE = 989.0


class Speed(msgspec.Struct, frozen=True):
    """A speed or a ratio of two, between ``low`` and ``high``, and how it is known."""

    low: float
    mid: float
    high: float
    known: Known
    basis: str

    def over(self, other: Speed) -> Speed:
        """How much faster this is: the interval counts that both may be off."""
        weakest = max(self.known, other.known, key=_TRUST.index)
        basis = self.basis if self.basis == other.basis else f"{self.basis}; {other.basis}"
        return Speed(
            self.low / other.high, self.mid / other.mid, self.high / other.low, weakest, basis
        )

    def times(self, factor: float) -> Speed:
        """The same of ``factor`` as many."""
        return Speed(
            self.low * factor, self.mid * factor, self.high * factor, self.known, self.basis
        )


_TRUST: tuple[Known, ...] = ("measured", "table", "estimate", "unknown")


class Accelerator(msgspec.Struct, frozen=True):
    """One node's: ``memory_gb`` tells apart what only has the same name."""

    name: str
    num: int = 1
    memory_gb: float = 0.0

    @property
    def key(self) -> str:
        """As the tables call it."""
        if self.name == "A100":
            return "A100-40" if 0 < self.memory_gb < 60 else "A100-80"
        return self.name


def from_hours(tokens_per_s: Sequence[float], what: str) -> Speed:
    """A measured speed: the median hour, and what nine of ten hours lie between.

    Args:
        tokens_per_s: Mean of each hour, newest last.
        what: Where that was measured, for a person.

    Raises:
        UsageError: There is no hour, or one without progress.
    """
    if not tokens_per_s or min(tokens_per_s) <= 0:
        raise UsageError(f"the speed of {what} needs hours above 0 tokens/s; measure it again")
    mid = statistics.median(tokens_per_s)
    if len(tokens_per_s) < _FEWEST_HOURS:
        return Speed(0.95 * mid, mid, 1.05 * mid, "measured", f"measured on {what}")
    cuts = statistics.quantiles(tokens_per_s, n=20, method="inclusive")
    return Speed(cuts[0], mid, cuts[-1], "measured", f"measured on {what}, hour by hour")


def node_ratio(
    source: Accelerator, target: Accelerator, measured: Mapping[Accelerator, Speed] | None = None
) -> Speed:
    """The target node's tokens per second over the source node's.

    In the order of trust: both measured with this run, the table, an estimate with its interval.
    Where nothing is known the count of accelerators decides, and the interval is wide.
    """
    if source.key == target.key and source.name:
        ratio = target.num / source.num
        return Speed(ratio, ratio, ratio, "measured", f"the same accelerator ({source.name})")
    found = measured or {}
    if source in found and target in found:
        return found[target].over(found[source])
    here, there = _relative(source), _relative(target)
    if here is None or there is None:
        ratio = target.num / source.num if source.num and target.num else 1.0
        unknown = " and ".join(sorted({a.name or "?" for a, s in ((source, here), (target, there))
                                       if s is None}))  # fmt: skip
        return Speed(
            ratio * (1 - _BLIND_WITHIN), ratio, ratio / (1 - _BLIND_WITHIN), "unknown",
            f"nothing is known about {unknown}; as many accelerators, assumed equal",
        )  # fmt: skip
    return there.times(target.num).over(here.times(source.num))


def tokens_per_usd(speed: Speed, micro_usd_per_h: int) -> Speed:
    """Tokens for a dollar, of a speed in tokens per second; how unlike machines are compared.

    Raises:
        UsageError: The price is not above 0.
    """
    if micro_usd_per_h <= 0:
        raise UsageError("tokens per dollar need a price above 0; mend the offer")
    return speed.times(3600 * 1e6 / micro_usd_per_h)


def _relative(each: Accelerator) -> Speed | None:
    """Of one accelerator, in H100s."""
    if each.key in _TABLE:
        basis = "training of 7B models in bf16 (llm-foundry, torchtitan, Neuron SDK)"
        return Speed(*_TABLE[each.key], "table", basis)
    if each.key in _MATMUL_TFLOPS:
        mid = _MATMUL_TFLOPS[each.key] / _MATMUL_REFERENCE
        return _estimate(mid, _MATMUL_WITHIN, f"{each.name} by its best measured matmul")
    if each.key in _PEAK_TFLOPS:
        mid = _PEAK_TFLOPS[each.key] / _PEAK_REFERENCE
        return _estimate(mid, _PEAK_WITHIN, f"{each.name} by its peak on paper")
    return None


def _estimate(mid: float, within: float, basis: str) -> Speed:
    words = f"estimate: {basis}, +-{within:.0%}"
    return Speed(mid * (1 - within), mid, mid * (1 + within), "estimate", words)
