"""How instances find each other's addresses. Called by the composition root and `cluster/`."""

from __future__ import annotations

from comfy_cluster.discovery.base import (
    Address,
    Discovery,
    FailureListener,
    MemberListener,
    address_text,
)
from comfy_cluster.discovery.static import StaticDiscovery

__all__ = [
    "Address",
    "Discovery",
    "FailureListener",
    "MemberListener",
    "StaticDiscovery",
    "address_text",
]
