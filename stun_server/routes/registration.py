"""The five routes of the specification (section 9), whose JSON is a contract.

They tell nothing of runs: an address is taken for one. `GET /instances` has an ETag beside it, and
waits for a change when it is asked with one.
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, request

from stun_server.operations import (
    WAIT,
    admit,
    asker,
    json_answer,
    key,
    operation,
    query_number,
    read_body,
    service,
)
from stun_server.registry import Registration
from stun_server.routes.waiting import changed_listing, etag_of, not_modified
from stun_server.schemas import (
    LARGEST_WAIT,
    OldListing,
    OldRegistered,
    OldRegistration,
    OldRemoved,
    OldUpdated,
    Status,
    old_instance,
)

blueprint = Blueprint("registration", __name__)


@blueprint.post("/register-instance")
@operation(
    "Register an instance, or renew that",
    body=OldRegistration,
    answers={200: OldRegistered},
    refusals=(400, 403, 409),
)
def register_instance() -> Response:
    """The first registration of a cluster id sets its key, where the server is open for that."""
    body = read_body(OldRegistration)
    asked_by = service().gate.admit_new(body.cluster_id, key(), asker())
    registration = Registration(
        body.instance_id, f"{body.address}:{body.port}", body.address, body.port, body.role
    )
    _, listing = service().registry.register(body.cluster_id, registration, asked_by)
    admit(body.cluster_id)
    answer: dict[str, Any] = {"status": "registered", "instance_id": body.instance_id}
    answer["instances"] = [old_instance(lease) for lease in listing.leases]
    return json_answer(answer)


@blueprint.get("/instances/<cluster_id>")
@operation(
    "The registered instances of a cluster",
    answers={200: OldListing, 304: "Not changed since the ETag in If-None-Match"},
    query={"wait": WAIT},
    refusals=(400,),
)
def instances(cluster_id: str) -> Response:
    """With If-None-Match it answers 304 unless they have changed, and can wait for that."""
    admit(cluster_id)
    wait = query_number("wait", highest=LARGEST_WAIT)
    listing, is_changed = changed_listing(
        cluster_id, wait, lambda found: request.if_none_match.contains_weak(etag_of(found)[3:-1])
    )
    if not is_changed:
        return not_modified(listing)
    listed = [old_instance(lease) for lease in listing.leases]
    return json_answer({"cluster_id": cluster_id, "instances": listed}, etag=etag_of(listing))


@blueprint.post("/heartbeat/<cluster_id>/<instance_id>")
@operation("An instance lives", answers={200: OldUpdated}, refusals=(404,))
def heartbeat(cluster_id: str, instance_id: str) -> Response:
    """404: it is not registered, or was silent for too long; it must register again."""
    admit(cluster_id)
    service().registry.heartbeat(cluster_id, instance_id)
    return json_answer({"status": "updated", "instance_id": instance_id})


@blueprint.delete("/instance/<cluster_id>/<instance_id>")
@operation("An instance leaves", answers={200: OldRemoved}, refusals=(404,))
def remove_instance(cluster_id: str, instance_id: str) -> Response:
    """404: it was not registered."""
    service().registry.remove(cluster_id, instance_id, admit(cluster_id))
    return json_answer({"status": "removed", "instance_id": instance_id})


@blueprint.get("/health")
@operation("The process answers", answers={200: Status}, needs_key=False)
def health() -> Response:
    """For load balancers and container probes; looks at nothing else."""
    return json_answer({"status": "healthy"})
