"""Machines with accelerators that price services name but do not describe."""

from __future__ import annotations

import msgspec

from cloudshift_lab.core.placement import Market
from cloudshift_lab.market.quotes import Confidence, Quote


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """One instance type of a provider."""

    cloud: str
    instance_type: str
    accelerator: str
    num_accelerators: int
    accelerator_memory_gb: float
    vcpus: int
    memory_gb: float

    def quote(
        self, *, region: str, micro_usd_per_h: int, market: Market, priced_at: float,
        seen_at: float, source: str, confidence: Confidence, zone: str = "",
    ) -> Quote:  # fmt: skip
        """A price of this machine."""
        return Quote(
            cloud=self.cloud, region=region, zone=zone, instance_type=self.instance_type,
            accelerator=self.accelerator, num_accelerators=self.num_accelerators,
            accelerator_memory_gb=self.accelerator_memory_gb, vcpus=self.vcpus,
            memory_gb=self.memory_gb, market=market, micro_usd_per_h=micro_usd_per_h,
            priced_at=priced_at, seen_at=seen_at, source=source, confidence=confidence,
        )  # fmt: skip


def _machines(cloud: str, table: str) -> tuple[Machine, ...]:
    found = []
    for line in table.split("\n"):
        if not line.strip():
            continue
        name, accelerator, num, each_gb, vcpus, memory_gb = line.split()
        found.append(
            Machine(
                cloud=cloud,
                instance_type=name,
                accelerator=accelerator,
                num_accelerators=int(num),
                accelerator_memory_gb=float(each_gb),
                vcpus=int(vcpus),
                memory_gb=float(memory_gb),
            )
        )
    return tuple(found)


AZURE_MACHINES = _machines("azure", """
Standard_NC24ads_A100_v4  A100    1  80  24  220
Standard_NC40ads_H100_v5  H100NVL 1  94  40  320
Standard_NC80adis_H100_v5 H100NVL 2  94  80  640
Standard_ND96asr_v4       A100    8  40  96  900
Standard_ND96amsr_A100_v4 A100    8  80  96 1900
Standard_ND96isr_H100_v5  H100    8  80  96 1900
Standard_ND96isr_H200_v5  H200    8 141  96 1850
Standard_ND96isr_MI300X_v5 MI300X 8 192  96 1850
""")  # fmt: skip
AWS_MACHINES = _machines("aws", """
g5.xlarge     A10G  1  24   4   16
g5.12xlarge   A10G  4  24  48  192
g5.48xlarge   A10G  8  24 192  768
g6.xlarge     L4    1  24   4   16
g6.12xlarge   L4    4  24  48  192
g6.48xlarge   L4    8  24 192  768
g6e.xlarge    L40S  1  48   4   32
g6e.12xlarge  L40S  4  48  48  384
g6e.48xlarge  L40S  8  48 192 1536
p3.2xlarge    V100  1  16   8   61
p3.8xlarge    V100  4  16  32  244
p3.16xlarge   V100  8  16  64  488
p4d.24xlarge  A100  8  40  96 1152
p4de.24xlarge A100  8  80  96 1152
p5.4xlarge    H100  1  80  16  256
p5.48xlarge   H100  8  80 192 2048
p5en.48xlarge H200  8 141 192 2048
""")  # fmt: skip
GCP_MACHINES = _machines("gcp", """
a2-highgpu-1g  A100 1  40  12   85
a2-highgpu-8g  A100 8  40  96  680
a2-ultragpu-8g A100 8  80  96 1360
a3-highgpu-8g  H100 8  80 208 1872
a3-megagpu-8g  H100 8  80 208 1872
g2-standard-96 L4   8  24  96  384
""")  # fmt: skip
MACHINES = {
    (each.cloud, each.instance_type): each
    for each in (*AWS_MACHINES, *AZURE_MACHINES, *GCP_MACHINES)
}
