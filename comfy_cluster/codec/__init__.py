"""Tensors to bytes and back. No network, no ComfyUI; called by `cluster/`.

`encode` makes an `EncodedPayload`, `decode` reads one. Both import torch, so they are loaded when
first asked for: `transport/` needs `EncodedPayload` and `digest_of` only and stays free of torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_cluster.codec.payload import EncodedPayload, digest_of

if TYPE_CHECKING:
    from comfy_cluster.codec.tensors import CODEC_CHOICES, PRECISION_CHOICES, decode, encode

__all__ = [
    "CODEC_CHOICES",
    "PRECISION_CHOICES",
    "EncodedPayload",
    "decode",
    "digest_of",
    "encode",
]


def __getattr__(name: str) -> Any:
    """Load what needs torch on first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from comfy_cluster.codec import tensors

    return getattr(tensors, name)
