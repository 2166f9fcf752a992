"""The JSON of the API, as pydantic models: what is accepted, what is answered, and its texts.

The OpenAPI document is made of these. Unknown members are refused in `/v1`; the older routes ignore
them, as they always did.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from datetime import datetime, timezone
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
)

from stun_server.settings import CLUSTER_ID, CLUSTER_ID_FORM
from stun_server.store import AuditEvent, Lease

LARGEST_WAIT = 30.0  # seconds that a request may wait for a change
LARGEST_AUDIT = 1000  # events
AUDIT_BY_DEFAULT = 100
CANDIDATES_TAKEN = 8
LARGEST_INDEX = 2**53 - 1  # that JSON's numbers hold exactly everywhere
_HOSTNAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")
BOOT_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:\-]{0,127}$"
HOST_ADDRESS = "host-address"  # format of the JSON Schema: no standard one has names and addresses
ID_PATTERN = f"^{CLUSTER_ID.pattern}$"


def _address(text: str) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        is_name = len(text) <= 253 and _HOSTNAME.fullmatch(text)
        # 1.2.3.400 is no name either.
        if not is_name or text.replace(".", "").isdecimal():
            raise ValueError("expected a host name, or an IP address without port") from None
        return text
    if address.is_unspecified or address.is_multicast or "%" in text:
        raise ValueError("expected an address of one instance, which others can reach")
    return text


def _whole(value: Any) -> Any:
    """JSON knows one kind of numbers: 5901.0 is 5901."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _instance_id(value: Any) -> Any:
    """A number is taken for its text."""
    value = _whole(value)
    is_index = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_index and 0 <= value <= LARGEST_INDEX else value


def _role(text: str) -> str:
    if text.upper() not in ("LEADER", "FOLLOWER"):
        raise ValueError("expected LEADER or FOLLOWER")
    return text


Id = Annotated[StrictStr, Field(pattern=ID_PATTERN, description=CLUSTER_ID_FORM)]
InstanceId = Annotated[
    StrictStr,
    Field(pattern=ID_PATTERN, description="The instance's index, such as 0, or another id of it"),
]
LooseInstanceId = Annotated[
    InstanceId,
    BeforeValidator(
        _instance_id,
        json_schema_input_type=InstanceId | Annotated[int, Field(ge=0, le=LARGEST_INDEX)],
    ),
]
BootId = Annotated[
    StrictStr,
    Field(
        pattern=BOOT_ID_PATTERN,
        description="Names one run of the instance: another one each time that it starts",
    ),
]
HostAddress = Annotated[
    StrictStr,
    Field(
        min_length=1,
        max_length=253,
        description="Host name or IP address, without port; no multicast, and not 0.0.0.0 or ::",
        json_schema_extra={"format": HOST_ADDRESS},
    ),
    AfterValidator(_address),
]
Port = Annotated[StrictInt, Field(ge=1, le=65_535), BeforeValidator(_whole)]
Role = Annotated[StrictStr, Field(pattern="^(?i:leader|follower)$"), AfterValidator(_role)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Candidate(_Strict):
    """An address at which an instance may be reached."""

    type: Literal["host", "srflx", "relay"] = Field(
        description="host: of an interface; srflx: as a STUN server sees it; relay: of a relay"
    )
    address: HostAddress
    port: Port
    priority: Annotated[StrictInt, Field(ge=0, le=2**31 - 1), BeforeValidator(_whole)] = Field(
        0, description="RFC 8445, 5.1.2: the highest is tried first"
    )


class OldRegistration(BaseModel):
    """Body of `POST /register-instance`."""

    model_config = ConfigDict(extra="ignore")

    cluster_id: Id
    instance_id: LooseInstanceId
    address: HostAddress
    port: Port
    role: Role


class NewRegistration(_Strict):
    """Body of `PUT /v1/clusters/{cluster_id}/instances/{instance_id}`."""

    boot_id: BootId
    address: HostAddress
    port: Port
    role: Role
    candidates: list[Candidate] = Field(default=[], max_length=CANDIDATES_TAKEN)
    take_over: StrictBool = Field(
        True,
        description="false: 409 `instance_held` while another run, at another address, may live",
    )


class OldInstance(BaseModel):
    instance_id: str
    address: str
    port: int
    role: str
    last_ping: datetime = Field(description="ISO 8601, UTC")


class OldRegistered(BaseModel):
    status: Literal["registered"]
    instance_id: str
    instances: list[OldInstance]


class OldListing(BaseModel):
    cluster_id: str
    instances: list[OldInstance]


class OldUpdated(BaseModel):
    status: Literal["updated"]
    instance_id: str


class OldRemoved(BaseModel):
    status: Literal["removed"]
    instance_id: str


class Instance(BaseModel):
    instance_id: str
    boot_id: str
    address: str
    port: int
    role: str
    candidates: list[Candidate]
    generation: int = Field(description="Higher than that of every earlier lease of the cluster")
    state: Literal["live", "late"] = Field(description="late: a heartbeat did not come")
    registered_at: datetime
    last_ping: datetime
    expires_in_s: float = Field(description="Seconds until it is forgotten if no heartbeat comes")


class Cluster(BaseModel):
    """A cluster at one moment. Expired instances are never in it."""

    cluster_id: str
    epoch: str = Field(description="Another one: the server lost its store, revisions start anew")
    revision: int = Field(description="Rises with each change but heartbeats")
    instances: list[Instance]


class ClusterSummary(BaseModel):
    cluster_id: str
    revision: int
    instances: int


class Clusters(BaseModel):
    """The clusters that the key opens."""

    clusters: list[ClusterSummary]


class StunService(BaseModel):
    """The UDP responder of RFC 8489 beside this server, at this server's name."""

    port: int


class GrantedLease(BaseModel):
    status: Literal["registered"]
    instance_id: str
    boot_id: str
    generation: int
    lease_ttl_s: float = Field(description="Seconds after which a silent instance is forgotten")
    heartbeat_interval_s: float = Field(description="Seconds between heartbeats")
    observed_address: str = Field(description="Where this request came from, for diagnosis")
    stun: StunService | None
    cluster: Cluster


class Renewed(BaseModel):
    status: Literal["updated"]
    instance_id: str
    lease_ttl_s: float
    heartbeat_interval_s: float
    revision: int


class Removed(BaseModel):
    status: Literal["removed"]
    instance_id: str


class AuditEntry(BaseModel):
    at: datetime
    event: str
    instance_id: str
    source: str
    key_fingerprint: str
    request_id: str
    detail: str


class Audit(BaseModel):
    cluster_id: str
    events: list[AuditEntry] = Field(description="The newest first")


class Status(BaseModel):
    status: str


class Fault(BaseModel):
    where: str = Field(description="Member of the body, or name in path or query")
    what: str


class Holder(BaseModel):
    """Of `instance_held`: the run that has the registration."""

    address: str
    port: int
    last_ping: datetime = Field(description="Another one the next time: it lives")


class Refusal(BaseModel):
    """Every answer that is not a success."""

    status: Literal["error"]
    code: str = Field(description="For programs; it does not change")
    error: str = Field(description="What was wrong, where, and what to do")
    faults: list[Fault] = []
    holder: Holder | None = Field(None, description="Of `instance_held` alone")
    request_id: str


@functools.lru_cache(maxsize=8192)  # lists are asked for more often than heartbeats come
def moment(at: float) -> str:
    """Unix time as ISO 8601 in UTC."""
    return datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds")


def old_instance(lease: Lease) -> dict[str, Any]:
    """JSON of an OldInstance."""
    return {
        "instance_id": lease.instance_id,
        "address": lease.address,
        "port": lease.port,
        "role": lease.role,
        "last_ping": moment(lease.last_ping_at),
    }


def instance(lease: Lease, *, now: float, is_late: bool) -> dict[str, Any]:
    """JSON of an Instance; `now` is on the store's clock."""
    return {
        "instance_id": lease.instance_id,
        "boot_id": lease.boot_id,
        "address": lease.address,
        "port": lease.port,
        "role": lease.role,
        "candidates": list(lease.candidates),
        "generation": lease.generation,
        "state": "late" if is_late else "live",
        "registered_at": moment(lease.registered_at),
        "last_ping": moment(lease.last_ping_at),
        "expires_in_s": round(lease.expires_at - now, 3),
    }


def audit_entry(event: AuditEvent) -> dict[str, Any]:
    """JSON of an AuditEntry."""
    return {
        "at": moment(event.at),
        "event": event.event,
        "instance_id": event.instance_id,
        "source": event.source,
        "key_fingerprint": event.key_fingerprint,
        "request_id": event.request_id,
        "detail": event.detail,
    }
