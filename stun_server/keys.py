"""Cluster keys: what is kept of them, and how a given one is compared with that.

Keys are random and long, so one round of SHA-256 suffices: nobody searches 2**128 of them, and a
slow hash would cost each heartbeat 100 ms.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from stun_server.store import ClusterKey

_DOMAIN = b"comfy-cluster/rendezvous-key/1\0"
_NOBODYS_HASH = "0" * 64


def hash_of(key: str) -> str:
    """What the store keeps of a key: 64 hexadecimal digits."""
    return hashlib.sha256(_DOMAIN + key.encode("utf-8", "surrogateescape")).hexdigest()


def fingerprint(key_hash: str) -> str:
    """8 hexadecimal digits for logs: tells keys apart, and tells nothing of the hash."""
    return hashlib.sha256(key_hash.encode("ascii")).hexdigest()[:8]


def is_among(key_hash: str, keys: Iterable[ClusterKey], *, wall: float) -> bool:
    """Whether one of a cluster's valid keys has this hash.

    Takes the same time for each that differs, and for a cluster that has none.
    """
    valid = [key.key_hash for key in keys if key.is_valid(wall)]
    found = False
    for each in valid or [_NOBODYS_HASH]:
        found |= hmac.compare_digest(each, key_hash)
    return found and bool(valid)
