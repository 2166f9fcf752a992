"""Route: over which instances one payload goes, each of which sends it on to the next."""

from __future__ import annotations

from dataclasses import dataclass

from comfy_cluster.errors import LocalProtocolError
from comfy_cluster.wire import bounds
from comfy_cluster.wire import messages_pb2 as pb

# Instances after the receiver: with the longest key the announcement still fits one packet.
LARGEST_RELAY = 128


@dataclass(frozen=True, slots=True)
class Route:
    """What an announcement says of the way that its payload goes."""

    payload_id: int
    """u64; what the origin calls the payload, the same on all its routes."""
    number: int
    """1, and larger each time that the origin sends by another route."""
    relay_to: tuple[int, ...] = ()
    """Who comes after the receiver, the next one first."""

    def __post_init__(self) -> None:
        bounds.check_range("payload_id", self.payload_id, 1, bounds.LARGEST_U64)
        bounds.check_range("number of the route", self.number, 1, bounds.LARGEST_U32)
        bounds.check_range("length of the route", len(self.relay_to), 0, LARGEST_RELAY)
        for instance in self.relay_to:
            bounds.check_range("instance", instance, 0, bounds.LARGEST_INSTANCE_INDEX)
        if len(set(self.relay_to)) != len(self.relay_to):
            raise LocalProtocolError("a route names an instance twice")

    def onward(self) -> Route:
        """What the next instance is told."""
        return Route(self.payload_id, self.number, self.relay_to[1:])


def to_protobuf(route: Route) -> pb.Route:
    return pb.Route(payload_id=route.payload_id, number=route.number, relay_to=route.relay_to)


def from_protobuf(message: pb.Route) -> Route:
    return Route(message.payload_id, message.number, tuple(message.relay_to))
