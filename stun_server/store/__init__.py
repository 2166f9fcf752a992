"""Where registrations, keys and the audit log are kept: SQLite for one machine, Redis for several.

Nothing outside of this folder knows which of them it is.
"""

from __future__ import annotations

from stun_server.store.base import (
    AuditEvent,
    ClusterKey,
    ClusterView,
    Founding,
    FoundingLimits,
    Lease,
    Listing,
    Renewal,
    Store,
    StoreUnavailable,
    Totals,
)
from stun_server.store.opening import open_store

__all__ = [
    "AuditEvent",
    "ClusterKey",
    "ClusterView",
    "Founding",
    "FoundingLimits",
    "Lease",
    "Listing",
    "Renewal",
    "Store",
    "StoreUnavailable",
    "Totals",
    "open_store",
]
