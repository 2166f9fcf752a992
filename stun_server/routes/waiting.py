"""How the lists of both APIs wait for a change."""

from __future__ import annotations

import time
from collections.abc import Callable

from flask import Response

from stun_server.operations import admit, service
from stun_server.store import Listing

_GRACE = 0.01  # seconds after an expiry, so that it is over when it is looked at


def etag_of(listing: Listing) -> str:
    """Weak: heartbeats change an answer's bytes, and not what it says of who is there."""
    return f'W/"{listing.epoch}-{listing.revision}"'


def changed_listing(
    cluster_id: str, wait: float, is_known: Callable[[Listing], bool]
) -> tuple[Listing, bool]:
    """The instances as soon as the asker does not know them, and True; False: it does, after `wait`
    seconds, or sooner when the process ends, or when too many wait.
    """
    served = service()
    deadline = time.monotonic() + wait
    while True:
        listing = served.registry.listing(cluster_id)
        if not is_known(listing):
            admit(cluster_id)
            return listing, True
        left = deadline - time.monotonic()
        if left <= 0 or served.watch.is_closing:
            return listing, False
        until_expiry = served.registry.next_expiry(listing) + _GRACE
        is_held = served.watch.wait(cluster_id, listing.revision, min(left, until_expiry))
        if not is_held:
            return listing, False
        admit(cluster_id)  # the key may have been taken away in the meantime


def not_modified(listing: Listing) -> Response:
    """304 with the ETag of what was compared: by a later one the asker would seem to have that."""
    answer = Response(status=304)
    answer.headers["ETag"] = etag_of(listing)
    return answer
