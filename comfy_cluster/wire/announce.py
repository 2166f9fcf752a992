"""ANNOUNCE: who an instance is, and the session ids of the handshake."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from comfy_cluster.wire import bounds
from comfy_cluster.wire import messages_pb2 as pb

PROTOCOL_VERSION = 1
LONGEST_CLUSTER_ID = 512  # bytes: the setting's 128 characters of at most 4 bytes
LONGEST_VERSION = 64
LONGEST_ENGINE_NAME = 64
LONGEST_CODEC_NAME = 16
LARGEST_CODEC_COUNT = 16  # all of them take a third of the smallest packet


class InstanceRole(IntEnum):
    LEADER = 1
    FOLLOWER = 2


class Introduction(Protocol):
    """What an instance says of itself, in HELLOs and in beacons."""

    @property
    def protocol_version(self) -> int: ...
    @property
    def cluster_id(self) -> str: ...
    @property
    def instance_index(self) -> int: ...
    @property
    def instance_count(self) -> int: ...
    @property
    def boot_id(self) -> int: ...
    @property
    def software_version(self) -> str: ...


def check_introduction(told: Introduction) -> None:
    """LocalProtocolError: a field is out of bounds."""
    bounds.check_range("protocol_version", told.protocol_version, 1, bounds.LARGEST_U32)
    bounds.check_text("cluster_id", told.cluster_id, LONGEST_CLUSTER_ID)
    count = told.instance_count
    bounds.check_range("instance_count", count, 1, bounds.LARGEST_INSTANCE_INDEX + 1)
    bounds.check_range("instance_index", told.instance_index, 0, count - 1)
    bounds.check_range("boot_id", told.boot_id, 1, bounds.LARGEST_U64)
    bounds.check_text("software_version", told.software_version, LONGEST_VERSION)


@dataclass(frozen=True, slots=True)
class Announce:
    """What HELLO packets carry until both sides hold each other's session id."""

    cluster_id: str
    instance_index: int
    instance_count: int
    role: InstanceRole
    boot_id: int
    """u64, not 0; another one means that the instance was restarted."""
    session_id: int
    """u32, not 0; to be put into packets to the sender."""
    echo_session_id: int = 0
    """The last session id that the sender heard from the receiver; 0: none yet."""
    is_connected: bool = False
    """The sender holds both ids: no answer is needed."""
    packet_size: int = bounds.SMALLEST_PACKET
    """Largest UDP payload, in bytes, that the sender can receive."""
    software_version: str = ""
    engine: str = ""
    codecs: tuple[str, ...] = ()
    """What the sender can decode, and that it takes tensors in parts; none: the sender is older."""
    is_observer: bool = False
    """The sender only looks: it is no member of the cluster, and gets no work."""
    protocol_version: int = PROTOCOL_VERSION

    def __post_init__(self) -> None:
        check_introduction(self)
        bounds.check_range("session_id", self.session_id, 1, bounds.LARGEST_U32)
        bounds.check_range("echo_session_id", self.echo_session_id, 0, bounds.LARGEST_U32)
        size = self.packet_size
        bounds.check_range("packet_size", size, bounds.SMALLEST_PACKET, bounds.LARGEST_PACKET)
        bounds.check_text("engine", self.engine, LONGEST_ENGINE_NAME)
        bounds.check_range("codecs", len(self.codecs), 0, LARGEST_CODEC_COUNT)
        for name in self.codecs:
            bounds.check_text("codecs", name, LONGEST_CODEC_NAME)

    def pack(self) -> bytes:
        return pb.Announce(
            protocol_version=self.protocol_version,
            cluster_id=self.cluster_id,
            instance_index=self.instance_index,
            instance_count=self.instance_count,
            role=self.role.name,
            boot_id=self.boot_id,
            session_id=self.session_id,
            echo_session_id=self.echo_session_id,
            is_connected=self.is_connected,
            packet_size=self.packet_size,
            software_version=self.software_version,
            engine=self.engine,
            codecs=self.codecs,
            is_observer=self.is_observer,
        ).SerializeToString()

    @classmethod
    def parse(cls, data: bytes) -> Announce:
        """Any protocol version passes: the receiver says why it refuses one."""
        message = bounds.decode(pb.Announce, data)
        with bounds.parsing_of("announce"):
            return cls(
                protocol_version=message.protocol_version,
                cluster_id=message.cluster_id,
                instance_index=message.instance_index,
                instance_count=message.instance_count,
                role=bounds.as_enum(InstanceRole, message.role),
                boot_id=message.boot_id,
                session_id=message.session_id,
                echo_session_id=message.echo_session_id,
                is_connected=message.is_connected,
                packet_size=message.packet_size,
                software_version=message.software_version,
                engine=message.engine,
                codecs=tuple(message.codecs),
                is_observer=message.is_observer,
            )
