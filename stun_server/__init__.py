"""The rendezvous server: an HTTP registry where the instances of a cluster find each other.

It is not a STUN server of RFC 8489; the name is the product's. It imports nothing of
`comfy_cluster`, so that it can be installed and run alone. Today it answers `GET /health` only;
registration comes with its own change.
"""

from __future__ import annotations

from stun_server.app import create_app
from stun_server.settings import RegistrySettings

__all__ = ["RegistrySettings", "create_app"]
