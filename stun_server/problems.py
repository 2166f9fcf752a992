"""Everything that a request may be refused for: its HTTP status, its code and its text.

The answer to each is `{"status": "error", "code": ..., "error": ...}`, made in `app.py`.
"""

from __future__ import annotations

from http import HTTPStatus


class Problem(Exception):
    """A request is refused. `str()` says what was wrong and what to do."""

    status = HTTPStatus.BAD_REQUEST
    code = "bad_request"
    retry_after: float | None = None
    """Seconds after which it is worth asking again; None: not said."""


class InvalidRequest(Problem):
    """Body, path or query are not what the API takes."""

    code = "invalid_request"

    def __init__(self, text: str, faults: list[dict[str, str]] | None = None) -> None:
        super().__init__(text)
        self.faults = faults or []


class KeyRefused(Problem):
    """The same for a cluster that is not there and for a wrong key."""

    status = HTTPStatus.UNAUTHORIZED
    code = "key_refused"

    def __init__(self) -> None:
        super().__init__(
            "No such cluster, or the header X-Cluster-Key is missing or wrong: it must be the key "
            "that the cluster was first registered with, or the one that the operator set"
        )


class TooManyFailures(Problem):
    """This source has sent too many wrong keys, or made too many clusters."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    code = "too_many_failures"

    def __init__(self, text: str, retry_after: float) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class NotRegistered(Problem):
    """The instance has no lease, or it ran out."""

    status = HTTPStatus.NOT_FOUND
    code = "not_registered"

    def __init__(self, instance_id: str) -> None:
        super().__init__(
            f"Instance {instance_id!r} is not registered, or was silent for too long: it must "
            "register again"
        )


class InstanceConflict(Problem):
    """Another run of an instance has this id now."""

    status = HTTPStatus.CONFLICT
    code = "instance_conflict"

    def __init__(self, instance_id: str, address: str, port: int) -> None:
        super().__init__(
            f"Instance {instance_id!r} is registered by a later start, at {address} port {port}: "
            "give each instance an index of its own, or end one of the two"
        )


class InstanceHeld(Problem):
    """Another run of the instance, elsewhere, may be alive; who asked takes over from none such."""

    status = HTTPStatus.CONFLICT
    code = "instance_held"

    def __init__(self, instance_id: str, address: str, port: int, last_ping_at: float) -> None:
        super().__init__(
            f"Instance {instance_id!r} is registered at {address} port {port}, "
            "where a heartbeat is not late: give each instance an index of its own. If that one "
            "has ended, this is granted as soon as its next heartbeat is missing"
        )
        self.address, self.port, self.last_ping_at = address, port, last_ping_at


class ClusterFull(Problem):
    """No more instances in this cluster, or no more clusters."""

    status = HTTPStatus.FORBIDDEN
    code = "full"


class TooSlow(Problem):
    """The body does not come."""

    status = HTTPStatus.REQUEST_TIMEOUT
    code = "too_slow"

    def __init__(self) -> None:
        super().__init__("The body of the request did not come in time: send it again")


class Overloaded(Problem):
    """As many requests with a body are on their way as may be."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "overloaded"
    retry_after = 1.0

    def __init__(self) -> None:
        super().__init__("The server takes no more requests with a body at this moment: try again")
