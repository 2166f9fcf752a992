from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MessageType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MESSAGE_TYPE_UNSPECIFIED: _ClassVar[MessageType]
    ANNOUNCE: _ClassVar[MessageType]
    ACK: _ClassVar[MessageType]
    HEARTBEAT: _ClassVar[MessageType]
    GOODBYE: _ClassVar[MessageType]
    BUFFER_ACCEPT: _ClassVar[MessageType]
    BUFFER_DONE: _ClassVar[MessageType]
    BUFFER_FAILED: _ClassVar[MessageType]
    BUFFER_CANCEL: _ClassVar[MessageType]
    MESSAGE_BUFFER: _ClassVar[MessageType]
    DISTRIBUTE_BUFFER_BROADCAST: _ClassVar[MessageType]
    DISTRIBUTE_BUFFER_FANOUT: _ClassVar[MessageType]
    DISTRIBUTE_BUFFER_FANIN: _ClassVar[MessageType]
    DISTRIBUTE_BUFFER_GATHER: _ClassVar[MessageType]
    DISTRIBUTE_PROMPT: _ClassVar[MessageType]
    EXECUTE_WORKFLOW: _ClassVar[MessageType]
    EXECUTION_RESULT: _ClassVar[MessageType]
    EXECUTION_ERROR: _ClassVar[MessageType]
    EXECUTION_PROGRESS: _ClassVar[MessageType]
    EXECUTION_CANCEL: _ClassVar[MessageType]
    FREE_MEMORY: _ClassVar[MessageType]
    RELOAD_NODES: _ClassVar[MessageType]

class InstanceRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INSTANCE_ROLE_UNSPECIFIED: _ClassVar[InstanceRole]
    LEADER: _ClassVar[InstanceRole]
    FOLLOWER: _ClassVar[InstanceRole]

class FailureCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FAILURE_CODE_UNSPECIFIED: _ClassVar[FailureCode]
    CORRUPT: _ClassVar[FailureCode]
    TOO_MANY: _ClassVar[FailureCode]
    NO_MEMORY: _ClassVar[FailureCode]
    NOT_RELAYED: _ClassVar[FailureCode]
    ROUTE_LOST: _ClassVar[FailureCode]
    NO_SHARED_MEMORY: _ClassVar[FailureCode]
MESSAGE_TYPE_UNSPECIFIED: MessageType
ANNOUNCE: MessageType
ACK: MessageType
HEARTBEAT: MessageType
GOODBYE: MessageType
BUFFER_ACCEPT: MessageType
BUFFER_DONE: MessageType
BUFFER_FAILED: MessageType
BUFFER_CANCEL: MessageType
MESSAGE_BUFFER: MessageType
DISTRIBUTE_BUFFER_BROADCAST: MessageType
DISTRIBUTE_BUFFER_FANOUT: MessageType
DISTRIBUTE_BUFFER_FANIN: MessageType
DISTRIBUTE_BUFFER_GATHER: MessageType
DISTRIBUTE_PROMPT: MessageType
EXECUTE_WORKFLOW: MessageType
EXECUTION_RESULT: MessageType
EXECUTION_ERROR: MessageType
EXECUTION_PROGRESS: MessageType
EXECUTION_CANCEL: MessageType
FREE_MEMORY: MessageType
RELOAD_NODES: MessageType
INSTANCE_ROLE_UNSPECIFIED: InstanceRole
LEADER: InstanceRole
FOLLOWER: InstanceRole
FAILURE_CODE_UNSPECIFIED: FailureCode
CORRUPT: FailureCode
TOO_MANY: FailureCode
NO_MEMORY: FailureCode
NOT_RELAYED: FailureCode
ROUTE_LOST: FailureCode
NO_SHARED_MEMORY: FailureCode

class ClusterMessage(_message.Message):
    __slots__ = ("message_id", "message_type", "sender_instance", "target_instance", "require_ack", "payload")
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_TYPE_FIELD_NUMBER: _ClassVar[int]
    SENDER_INSTANCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_INSTANCE_FIELD_NUMBER: _ClassVar[int]
    REQUIRE_ACK_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    message_id: int
    message_type: MessageType
    sender_instance: int
    target_instance: int
    require_ack: bool
    payload: bytes
    def __init__(self, message_id: _Optional[int] = ..., message_type: _Optional[_Union[MessageType, str]] = ..., sender_instance: _Optional[int] = ..., target_instance: _Optional[int] = ..., require_ack: bool = ..., payload: _Optional[bytes] = ...) -> None: ...

class Announce(_message.Message):
    __slots__ = ("protocol_version", "cluster_id", "instance_index", "instance_count", "role", "boot_id", "session_id", "echo_session_id", "is_connected", "packet_size", "software_version", "engine", "codecs", "is_observer")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_INDEX_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_COUNT_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    ECHO_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    IS_CONNECTED_FIELD_NUMBER: _ClassVar[int]
    PACKET_SIZE_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    IS_OBSERVER_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    cluster_id: str
    instance_index: int
    instance_count: int
    role: InstanceRole
    boot_id: int
    session_id: int
    echo_session_id: int
    is_connected: bool
    packet_size: int
    software_version: str
    engine: str
    codecs: _containers.RepeatedScalarFieldContainer[str]
    is_observer: bool
    def __init__(self, protocol_version: _Optional[int] = ..., cluster_id: _Optional[str] = ..., instance_index: _Optional[int] = ..., instance_count: _Optional[int] = ..., role: _Optional[_Union[InstanceRole, str]] = ..., boot_id: _Optional[int] = ..., session_id: _Optional[int] = ..., echo_session_id: _Optional[int] = ..., is_connected: bool = ..., packet_size: _Optional[int] = ..., software_version: _Optional[str] = ..., engine: _Optional[str] = ..., codecs: _Optional[_Iterable[str]] = ..., is_observer: bool = ...) -> None: ...

class Beacon(_message.Message):
    __slots__ = ("protocol_version", "cluster_id", "instance_index", "instance_count", "boot_id", "port", "hostname", "age", "software_version", "stops", "is_observer")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_INDEX_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_COUNT_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    STOPS_FIELD_NUMBER: _ClassVar[int]
    IS_OBSERVER_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    cluster_id: str
    instance_index: int
    instance_count: int
    boot_id: int
    port: int
    hostname: str
    age: int
    software_version: str
    stops: int
    is_observer: bool
    def __init__(self, protocol_version: _Optional[int] = ..., cluster_id: _Optional[str] = ..., instance_index: _Optional[int] = ..., instance_count: _Optional[int] = ..., boot_id: _Optional[int] = ..., port: _Optional[int] = ..., hostname: _Optional[str] = ..., age: _Optional[int] = ..., software_version: _Optional[str] = ..., stops: _Optional[int] = ..., is_observer: bool = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("message_ids",)
    MESSAGE_IDS_FIELD_NUMBER: _ClassVar[int]
    message_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, message_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class TransferKey(_message.Message):
    __slots__ = ("job_id", "node_id", "list_index", "occurrence", "source", "part")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    LIST_INDEX_FIELD_NUMBER: _ClassVar[int]
    OCCURRENCE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    node_id: str
    list_index: int
    occurrence: int
    source: int
    part: int
    def __init__(self, job_id: _Optional[str] = ..., node_id: _Optional[str] = ..., list_index: _Optional[int] = ..., occurrence: _Optional[int] = ..., source: _Optional[int] = ..., part: _Optional[int] = ...) -> None: ...

class Route(_message.Message):
    __slots__ = ("payload_id", "number", "relay_to")
    PAYLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    RELAY_TO_FIELD_NUMBER: _ClassVar[int]
    payload_id: int
    number: int
    relay_to: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, payload_id: _Optional[int] = ..., number: _Optional[int] = ..., relay_to: _Optional[_Iterable[int]] = ...) -> None: ...

class BufferAnnouncement(_message.Message):
    __slots__ = ("buffer_id", "size", "chunk_size", "digest", "key", "inline_payload", "attempt", "shared_memory", "route")
    BUFFER_ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    INLINE_PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SHARED_MEMORY_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    buffer_id: int
    size: int
    chunk_size: int
    digest: bytes
    key: TransferKey
    inline_payload: bytes
    attempt: int
    shared_memory: bool
    route: Route
    def __init__(self, buffer_id: _Optional[int] = ..., size: _Optional[int] = ..., chunk_size: _Optional[int] = ..., digest: _Optional[bytes] = ..., key: _Optional[_Union[TransferKey, _Mapping]] = ..., inline_payload: _Optional[bytes] = ..., attempt: _Optional[int] = ..., shared_memory: bool = ..., route: _Optional[_Union[Route, _Mapping]] = ...) -> None: ...

class BufferAccept(_message.Message):
    __slots__ = ("buffer_id",)
    BUFFER_ID_FIELD_NUMBER: _ClassVar[int]
    buffer_id: int
    def __init__(self, buffer_id: _Optional[int] = ...) -> None: ...

class BufferDone(_message.Message):
    __slots__ = ("buffer_id",)
    BUFFER_ID_FIELD_NUMBER: _ClassVar[int]
    buffer_id: int
    def __init__(self, buffer_id: _Optional[int] = ...) -> None: ...

class BufferFailed(_message.Message):
    __slots__ = ("buffer_id", "code", "reason", "route")
    BUFFER_ID_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    buffer_id: int
    code: FailureCode
    reason: str
    route: int
    def __init__(self, buffer_id: _Optional[int] = ..., code: _Optional[_Union[FailureCode, str]] = ..., reason: _Optional[str] = ..., route: _Optional[int] = ...) -> None: ...

class BufferCancel(_message.Message):
    __slots__ = ("buffer_id", "reason", "key")
    BUFFER_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    buffer_id: int
    reason: str
    key: TransferKey
    def __init__(self, buffer_id: _Optional[int] = ..., reason: _Optional[str] = ..., key: _Optional[_Union[TransferKey, _Mapping]] = ...) -> None: ...
