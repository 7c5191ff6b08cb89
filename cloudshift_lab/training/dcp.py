"""``torch.distributed.checkpoint`` on our store: save, load and async_save work unchanged.

::

    import torch.distributed.checkpoint as dcp
    from cloudshift_lab.training.dcp import CasStorageReader, CasStorageWriter

    dcp.save(state_dict, storage_writer=CasStorageWriter("s3://bucket/lab", "my-run", step=100))
    dcp.load(state_dict, storage_reader=CasStorageReader("s3://bucket/lab", "my-run"))

With DCP's own planners or with ours; nothing in the store is a pickle either way. ``ArenaStager``
keeps one copy of the state for ``async_save`` instead of allocating one for each save.
"""

from cloudshift_lab.training.dcp_reader import CasStorageReader
from cloudshift_lab.training.dcp_writer import CasStorageWriter
from cloudshift_lab.training.planners import LoadReport, SafeLoadPlanner, SafeSavePlanner
from cloudshift_lab.training.stager import ArenaStager

__all__ = [
    "ArenaStager",
    "CasStorageReader",
    "CasStorageWriter",
    "LoadReport",
    "SafeLoadPlanner",
    "SafeSavePlanner",
]
