"""Sockets, threads and the clock: moves payloads and messages, and hands out handles for them.

Called by `cluster/`. It imports no torch and knows no tensors; the rules of what is sent when are
`protocol/`'s.
"""

from __future__ import annotations

from comfy_cluster.transport.handle import Handle, all_of
from comfy_cluster.transport.memory import ReceivedBuffer
from comfy_cluster.transport.peer_info import PeerInfo
from comfy_cluster.transport.transport import Transport

__all__ = ["Handle", "PeerInfo", "ReceivedBuffer", "Transport", "all_of"]
