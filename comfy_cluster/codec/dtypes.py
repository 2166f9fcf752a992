"""The dtypes that travel, by their name on the wire. A name from the wire is only looked up."""

from __future__ import annotations

import torch

_NAMES = (
    *("float32", "float64", "float16", "bfloat16"),
    *("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "bool"),
)

# torch before 2.3 has no uint16 to uint64.
DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name) for name in _NAMES if hasattr(torch, name)
}
DTYPE_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
