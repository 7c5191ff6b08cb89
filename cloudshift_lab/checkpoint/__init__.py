"""The checkpoint format: hashed chunks in packs, records, manifests; readable without torch."""

from cloudshift_lab.checkpoint.boxes import TensorBox, TensorSpec
from cloudshift_lab.checkpoint.copy import CopyPlan, copy_plan, static_chunks, static_packs
from cloudshift_lab.checkpoint.known import KnownChunks
from cloudshift_lab.checkpoint.reader import BoxRequest, Checkpoint, open_checkpoint, open_run
from cloudshift_lab.checkpoint.seal import Sealed, seal
from cloudshift_lab.checkpoint.verify import VerifyReport, verify
from cloudshift_lab.checkpoint.write import Staged, WrittenRank, stage_arrays, write_rank

__all__ = [
    "BoxRequest",
    "Checkpoint",
    "CopyPlan",
    "KnownChunks",
    "Sealed",
    "Staged",
    "TensorBox",
    "TensorSpec",
    "VerifyReport",
    "WrittenRank",
    "copy_plan",
    "open_checkpoint",
    "open_run",
    "seal",
    "stage_arrays",
    "static_chunks",
    "static_packs",
    "verify",
    "write_rank",
]
