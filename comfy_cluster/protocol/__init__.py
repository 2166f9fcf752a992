"""The sans-I/O protocol core: connections, messages and buffers of one instance.

No socket, thread, clock or torch in here. Used by `transport/`, through `Endpoint`; the layers
above see the events only. Where to look: `endpoint.py` routes, `dispatch.py` receives;
`handshake.py`, `connections.py` and `liveness.py` are about peers; `outbox.py`, `inbox.py`,
`courier.py` and `messages.py` about messages; `outgoing_*.py`, `incoming_*.py`, `claims.py` and
`budget.py` about buffers; `chains.py`, `relays.py` and `incoming_routes.py` about payloads that
receivers send on.
"""

from comfy_cluster.protocol.endpoint import Endpoint
from comfy_cluster.protocol.engine_port import Address, EnginePort
from comfy_cluster.protocol.events import (
    BufferArrived,
    BufferFailed,
    BufferSent,
    DigestNeeded,
    Event,
    IncomingFailed,
    MessageDelivered,
    MessageFailed,
    MessageReceived,
    PeerConnected,
    PeerLost,
    PeerRefused,
    RelayEnded,
    RelayLate,
    StrangerHeard,
)
from comfy_cluster.protocol.outgoing_buffer import PayloadParts
from comfy_cluster.protocol.settings import ProtocolSettings
from comfy_cluster.protocol.shared_memory_port import (
    NoSharedMemory,
    PeerProof,
    SharedArrived,
    SharedEvent,
    SharedFailed,
    SharedMemoryPort,
)
from comfy_cluster.protocol.stats import PeerInfo, ProtocolStats

__all__ = [
    "Address",
    "BufferArrived",
    "BufferFailed",
    "BufferSent",
    "DigestNeeded",
    "Endpoint",
    "EnginePort",
    "Event",
    "IncomingFailed",
    "MessageDelivered",
    "MessageFailed",
    "MessageReceived",
    "NoSharedMemory",
    "PayloadParts",
    "PeerConnected",
    "PeerInfo",
    "PeerLost",
    "PeerProof",
    "PeerRefused",
    "ProtocolSettings",
    "ProtocolStats",
    "RelayEnded",
    "RelayLate",
    "SharedArrived",
    "SharedEvent",
    "SharedFailed",
    "SharedMemoryPort",
    "StrangerHeard",
]
