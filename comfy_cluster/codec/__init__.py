"""Tensors to bytes and back. No network, no ComfyUI; called by `cluster/`.

`encode` makes an `EncodedPayload`, `decode` reads one; large tensors go in parts (`parts_of`,
`Assembly`). What imports torch is loaded when first asked for: `transport/` needs `EncodedPayload`
and `digest_of` only and stays free of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from comfy_cluster.codec.payload import EncodedPayload, digest_of

if TYPE_CHECKING:
    from comfy_cluster.codec.assembly import Assembly, Contents, contents_of
    from comfy_cluster.codec.image_codecs import CODECS, available_codecs
    from comfy_cluster.codec.parts import Part, Place, parts_of
    from comfy_cluster.codec.tensors import PRECISION_CHOICES, check_supported, decode, encode

_MODULES = {
    "Assembly": "assembly",
    "Contents": "assembly",
    "contents_of": "assembly",
    "CODECS": "image_codecs",
    "available_codecs": "image_codecs",
    "Part": "parts",
    "Place": "parts",
    "parts_of": "parts",
    "PRECISION_CHOICES": "tensors",
    "check_supported": "tensors",
    "decode": "tensors",
    "encode": "tensors",
}

__all__ = [
    "CODECS",
    "PRECISION_CHOICES",
    "Assembly",
    "Contents",
    "EncodedPayload",
    "Part",
    "Place",
    "available_codecs",
    "check_supported",
    "contents_of",
    "decode",
    "digest_of",
    "encode",
    "parts_of",
]


def __getattr__(name: str) -> Any:
    """Load what needs torch or image libraries on first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
