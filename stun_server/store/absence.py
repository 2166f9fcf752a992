"""What an absence of the server is, to both stores: no sign of life for longer than the silence.

How it works: `Store.resume` writes the sign of life, and beside it the terms: how long a silence is
an absence, and what time leases get after one. Whatever calls a lease over looks at both first,
within its own atomic step, and gives that time before it judges. The first request after an absence
may come before the next sign of life: it must not end what nobody could renew. Any server's sign of
life counts, so that one of several that stood still is no absence.
"""

from __future__ import annotations

import logging

logger = logging.getLogger("stun_server")


def tell(renewed: int) -> None:
    """Says that an absence was met, and how many leases go on."""
    if renewed:
        logger.info("the server was away: leases go on", extra={"leases": renewed})
