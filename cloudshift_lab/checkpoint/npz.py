"""Write a stored step as a NumPy archive that ``numpy.load`` opens, in bounded memory."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from cloudshift_lab.checkpoint.boxes import Region, TensorSpec, cut, grid_cell, whole
from cloudshift_lab.checkpoint.change import as_numbers
from cloudshift_lab.checkpoint.dtypes import element_type
from cloudshift_lab.checkpoint.step import BoxRequest, Checkpoint
from cloudshift_lab.core.errors import Denied, Exhausted

BATCH_BYTES = 16 * 2**20
_WIDENED = frozenset({"bfloat16", "float8_e4m3fn", "float8_e5m2"})
Progress = Callable[[int, int], None]


def write_npz(step: Checkpoint, path: Path, progress: Progress | None = None) -> int:
    """Write every tensor of a step under its name; the file appears when it is whole.

    bfloat16 and float8, which NumPy does not know, become float32: every value exactly.

    Args:
        step: An opened step.
        path: The file; its folder must exist.
        progress: Called with tensor bytes written and in all; may raise to stop.

    Returns:
        Bytes of the file.

    Raises:
        Corrupt: Stored bytes differ from their hash.
        NotFound: The step does not hold all of a tensor.
        Exhausted, Denied: The disk is full, or the folder cannot be written to.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with part.open("xb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            _write_all(step, archive, progress or (lambda _done, _total: None))
        size = part.stat().st_size
        part.replace(path)
    except PermissionError as error:
        raise Denied(f"cannot write {path} ({error.strerror}); choose another place") from error
    except OSError as error:
        raise Exhausted(f"cannot write {path} ({error.strerror}); free space or choose another "
                        "place") from error  # fmt: skip
    finally:
        part.unlink(missing_ok=True)
    return size


def _write_all(step: Checkpoint, archive: zipfile.ZipFile, progress: Progress) -> None:
    specs = [step.spec(name) for name in step.names()]
    total = sum(_num_bytes(spec, spec.global_shape) for spec in specs)
    done = 0
    progress(0, total)
    for spec in specs:
        with archive.open(f"{spec.name}.npy", "w", force_zip64=True) as member:
            _write_header(member, spec)
            for regions in _batches(spec):
                done += _write_regions(step, spec, regions, member)
                progress(done, total)


def _write_header(member: IO[bytes], spec: TensorSpec) -> None:
    shown = np.dtype("<f4") if spec.dtype in _WIDENED else element_type(spec.dtype).numpy
    header = {
        "descr": np.lib.format.dtype_to_descr(shown),
        "fortran_order": False,
        "shape": spec.global_shape,
    }
    np.lib.format.write_array_header_2_0(member, header)


def _batches(spec: TensorSpec) -> Iterator[list[Region]]:
    """The tensor's grid cells, which follow each other in C order, in groups of bounded bytes."""
    if math.prod(spec.global_shape) == 0:
        return
    batch: list[Region] = []
    held = 0
    cell = grid_cell(spec.global_shape, element_type(spec.dtype).itemsize)
    for region in cut(whole(spec.global_shape), cell).regions():
        batch.append(region)
        held += _num_bytes(spec, region.shape)
        if held >= BATCH_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _write_regions(
    step: Checkpoint, spec: TensorSpec, regions: list[Region], member: IO[bytes]
) -> int:
    requests = [BoxRequest(spec.name, region.offset, region.shape) for region in regions]
    for array in step.read_many(requests):
        member.write(np.ascontiguousarray(_shown(array, spec.dtype)).data)
    return sum(_num_bytes(spec, region.shape) for region in regions)


def _shown(array: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    return as_numbers(array, dtype).astype("<f4") if dtype in _WIDENED else array


def _num_bytes(spec: TensorSpec, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * element_type(spec.dtype).itemsize
