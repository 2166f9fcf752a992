"""The richer API: leases that belong to one run of an instance, candidates, waiting by revision."""

from __future__ import annotations

import re
from typing import Any

from flask import Blueprint, Response, request

from stun_server.operations import (
    WAIT,
    admit,
    asker,
    check_id,
    json_answer,
    key,
    operation,
    query_number,
    query_whole,
    read_body,
    service,
    whole_number,
)
from stun_server.problems import InvalidRequest
from stun_server.registry import Registration
from stun_server.routes.waiting import changed_listing, etag_of, not_modified
from stun_server.schemas import (
    AUDIT_BY_DEFAULT,
    BOOT_ID_PATTERN,
    LARGEST_AUDIT,
    LARGEST_INDEX,
    LARGEST_WAIT,
    Audit,
    Cluster,
    Clusters,
    GrantedLease,
    NewRegistration,
    Removed,
    Renewed,
    audit_entry,
    instance,
)
from stun_server.store import Listing

blueprint = Blueprint("v1", __name__, url_prefix="/v1")

_RUN = (
    {"type": "string", "pattern": BOOT_ID_PATTERN},
    "The run that it is about; left out: whichever has the lease",
)
_INSTANCE = "/clusters/<cluster_id>/instances/<instance_id>"


@blueprint.get("/clusters")
@operation("The clusters that the key opens", answers={200: Clusters})
def clusters() -> Response:
    """A key may open several; each sees its own only."""
    found = []
    for cluster_id in service().gate.clusters_of(key(), asker()):
        listing = service().registry.listing(cluster_id)
        count = len(listing.leases)
        found.append({"cluster_id": cluster_id, "revision": listing.revision, "instances": count})
    return json_answer({"clusters": found})


@blueprint.get("/clusters/<cluster_id>")
@operation(
    "A cluster and its instances",
    answers={200: Cluster, 304: "Not changed since `since`, or since the ETag in If-None-Match"},
    query={
        "wait": WAIT,
        "since": (
            whole_number(0),
            "The revision that is known: the answer waits until there is another one",
        ),
    },
    refusals=(400,),
)
def cluster(cluster_id: str) -> Response:
    """Long-poll: `?since=<revision>&wait=25`, or If-None-Match with an ETag and `?wait=25`."""
    admit(cluster_id)
    wait = query_number("wait", highest=LARGEST_WAIT)
    since = query_whole("since", highest=LARGEST_INDEX)

    def is_known(listing: Listing) -> bool:
        if since is not None:
            return listing.revision == since
        return request.if_none_match.contains_weak(etag_of(listing)[3:-1])

    listing, is_changed = changed_listing(cluster_id, wait, is_known)
    if not is_changed:
        return not_modified(listing)
    return json_answer(_cluster(cluster_id, listing), etag=etag_of(listing))


@blueprint.put(_INSTANCE)
@operation(
    "Register an instance, or renew that",
    body=NewRegistration,
    answers={200: GrantedLease},
    refusals=(400, 403, 409),
)
def register(cluster_id: str, instance_id: str) -> Response:
    """Idempotent for a `boot_id`. A new one takes the index over; 409: it was taken over from."""
    check_id("cluster_id", cluster_id)
    check_id("instance_id", instance_id)
    body = read_body(NewRegistration)
    asked_by = service().gate.admit_new(cluster_id, key(), asker())
    registration = Registration(
        instance_id,
        body.boot_id,
        body.address,
        body.port,
        body.role,
        tuple(each.model_dump() for each in body.candidates),
        body.take_over,
    )
    lease, listing = service().registry.register(cluster_id, registration, asked_by)
    admit(cluster_id)
    stun_port = service().stun_port
    return json_answer(
        {
            "status": "registered",
            "instance_id": instance_id,
            "boot_id": lease.boot_id,
            "generation": lease.generation,
            **_lease_times(),
            "observed_address": asked_by.source,
            "stun": None if stun_port is None else {"port": stun_port},
            "cluster": _cluster(cluster_id, listing),
        },
        etag=etag_of(listing),
    )


@blueprint.post(_INSTANCE + "/heartbeat")
@operation(
    "An instance lives",
    answers={200: Renewed},
    query={"boot_id": _RUN},
    refusals=(400, 404, 409),
)
def heartbeat(cluster_id: str, instance_id: str) -> Response:
    """404: register again. 409: another run of the instance has registered since.

    It has no body, so that a proxy may repeat it at another server.
    """
    admit(cluster_id)
    service().registry.heartbeat(cluster_id, instance_id, _asked_run())
    revision = service().store.revisions([cluster_id])[cluster_id]
    return json_answer(
        {
            "status": "updated",
            "instance_id": instance_id,
            **_lease_times(),
            "revision": revision,
        }
    )


@blueprint.delete(_INSTANCE)
@operation(
    "An instance leaves",
    answers={200: Removed},
    query={"boot_id": _RUN},
    refusals=(400, 404, 409),
)
def remove(cluster_id: str, instance_id: str) -> Response:
    """With `boot_id`, the late goodbye of an earlier run does not end the present one's lease."""
    asked_by = admit(cluster_id)
    service().registry.remove(cluster_id, instance_id, asked_by, _asked_run())
    return json_answer({"status": "removed", "instance_id": instance_id})


@blueprint.get("/clusters/<cluster_id>/audit")
@operation(
    "What happened to a cluster, the newest first",
    answers={200: Audit},
    query={
        "limit": (
            {**whole_number(1), "default": AUDIT_BY_DEFAULT},
            f"Events, at most {LARGEST_AUDIT}",
        )
    },
    refusals=(400,),
)
def audit(cluster_id: str) -> Response:
    """Registrations, replacements, removals, expiries, conflicts, changes of keys."""
    admit(cluster_id)
    limit = query_whole("limit", lowest=1, highest=LARGEST_AUDIT) or AUDIT_BY_DEFAULT
    events = service().store.audit(cluster_id, limit=limit)
    admit(cluster_id)
    return json_answer({"cluster_id": cluster_id, "events": [audit_entry(each) for each in events]})


def _cluster(cluster_id: str, listing: Listing) -> dict[str, Any]:
    registry = service().registry
    return {
        "cluster_id": cluster_id,
        "epoch": listing.epoch,
        "revision": listing.revision,
        "instances": [
            instance(lease, now=listing.now, is_late=registry.is_late(lease, listing.now))
            for lease in listing.leases
        ],
    }


def _lease_times() -> dict[str, float]:
    registry = service().registry
    return {
        "lease_ttl_s": registry.ttl,
        "heartbeat_interval_s": round(registry.heartbeat_interval, 3),
    }


def _asked_run() -> str | None:
    boot_id = request.args.get("boot_id")
    if boot_id is not None and not re.fullmatch(BOOT_ID_PATTERN, boot_id):
        fault = {"where": "boot_id", "what": f"expected text like {BOOT_ID_PATTERN}"}
        raise InvalidRequest(f"Invalid boot_id: {fault['what']}", [fault])
    return boot_id
