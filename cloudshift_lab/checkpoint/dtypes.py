"""The element types of the format: sizes, codec widths and how numpy shows them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cloudshift_lab.core.errors import Unsupported


class ElementType(NamedTuple):
    """``itemsize`` in bytes; ``is_float`` picks the codec, ``width`` is its word in bytes."""

    itemsize: int
    width: int
    is_float: bool
    numpy: np.dtype[np.generic]


def _type(numpy_name: str, *, width: int | None = None, is_float: bool = False) -> ElementType:
    shown = np.dtype(numpy_name)
    return ElementType(shown.itemsize, width or shown.itemsize, is_float, shown)


ELEMENT_TYPES: dict[str, ElementType] = {
    "float16": _type("<f2", is_float=True),
    "bfloat16": _type("<u2", is_float=True),
    "float32": _type("<f4", is_float=True),
    "float64": _type("<f8", is_float=True),
    "complex64": _type("<c8", width=4, is_float=True),
    "complex128": _type("<c16", width=8, is_float=True),
    "int8": _type("<i1"),
    "int16": _type("<i2"),
    "int32": _type("<i4"),
    "int64": _type("<i8"),
    "uint8": _type("<u1"),
    "uint16": _type("<u2"),
    "uint32": _type("<u4"),
    "uint64": _type("<u8"),
    "bool": _type("?"),
    "float8_e4m3fn": _type("<u1"),
    "float8_e5m2": _type("<u1"),
}


def element_type(dtype: str) -> ElementType:
    """The element type called ``dtype``.

    Raises:
        Unsupported: The format has no such type.
    """
    found = ELEMENT_TYPES.get(dtype)
    if found is None:
        raise Unsupported(
            f"dtype '{dtype}' is not in the checkpoint format; convert the tensor to one of: "
            f"{', '.join(ELEMENT_TYPES)}"
        )
    return found
