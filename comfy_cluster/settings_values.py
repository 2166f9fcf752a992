"""Which settings there are: the variable of each, the words it takes, its limits.

Their defaults and meanings stand in `config.py`, which re-exports the words: import them from it.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from comfy_cluster import identity
from comfy_cluster import settings_parsing as forms
from comfy_cluster.settings_parsing import Form, memory_size, one_of, whole_number

LARGEST_INSTANCE_COUNT = 4_096  # MAX_PEERS of the packet engine
LARGEST_BURST_SIZE = 1024  # UIO_MAXIOV: no kernel takes more packets in one call
LARGEST_RETRY_COUNT = 100


class _TextEnum(str, Enum):
    def __str__(self) -> str:
        return str(self.value)


class Role(_TextEnum):
    LEADER = "LEADER"
    FOLLOWER = "FOLLOWER"


class RegistrationMode(_TextEnum):
    STUN = "stun"
    BROADCAST = "broadcast"
    STATIC = "static"


class OnLost(_TextEnum):
    REDO = "redo"
    FAIL = "fail"
    PARTIAL = "partial"


class SharedMemory(_TextEnum):
    AUTO = "auto"
    OFF = "off"


class Codec(_TextEnum):
    AUTO = "auto"
    RAW = "raw"
    RAW8 = "raw8"
    BITPACK = "bitpack"
    LZ4 = "lz4"
    ZSTD = "zstd"
    PNG = "png"
    WEBP = "webp"


class ImagePrecision(_TextEnum):
    EXACT = "exact"
    UINT8 = "uint8"


class LogLevel(_TextEnum):
    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"
    CRITICAL = "CRITICAL"


class EngineChoice(Enum):
    """Which packet engine may run; read apart from the settings, see `config.engine_choice`."""

    AUTO = "the compiled one, else the pure-Python one with a warning"
    PURE_PYTHON = "the pure-Python one"
    REQUIRE_COMPILED = "the compiled one, or an error"


REGISTRATION_MODE = one_of(RegistrationMode)
MEMORY_SIZE = memory_size(identity.total_memory)

# Field of ClusterConfig: variable without the prefix, and how it is written.
SETTINGS: dict[str, tuple[str, Form[Any]]] = {
    "instance_count": ("INSTANCE_COUNT", whole_number(1, LARGEST_INSTANCE_COUNT)),
    # Wider than any count, so that the error about the instance count is the one to be seen.
    "instance_index": ("INSTANCE_INDEX", whole_number(0, 1_000_000)),
    "role": ("ROLE", one_of(Role)),
    "registration_mode": ("REGISTRATION_MODE", REGISTRATION_MODE),
    "stun_servers": ("STUN_SERVER", forms.URLS),
    "cluster_id": ("CLUSTER_ID", forms.CLUSTER_ID),
    "key": ("KEY", forms.KEY),
    "listen_address": ("LISTEN_ADDRESS", forms.IP_ADDRESS),
    "instance_address": ("INSTANCE_ADDRESS", forms.HOSTNAME),
    "direct_listen_port": ("DIRECT_LISTEN_PORT", forms.PORT),
    "broadcast_port": ("BROADCAST_PORT", forms.PORT),
    "udp_broadcast": ("UDP_BROADCAST", forms.BOOLEAN),
    "udp_hostnames": ("UDP_HOSTNAMES", forms.INSTANCE_ADDRESSES),
    "single_host": ("SINGLE_HOST", forms.BOOLEAN),
    "comfy_port": ("COMFY_PORT", forms.PORT),
    "burst_size": ("BATCH_SIZE", whole_number(1, LARGEST_BURST_SIZE)),
    "ack_timeout": ("ACK_TIMEOUT", forms.SECONDS),
    "max_retries": ("MAX_RETRIES", whole_number(0, LARGEST_RETRY_COUNT)),
    "log_level": ("LOG_LEVEL", one_of(LogLevel)),
    "hot_reload": ("HOT_RELOAD", forms.BOOLEAN),
    "min_instances": ("MIN_INSTANCES", whole_number(1, LARGEST_INSTANCE_COUNT)),
    "on_lost": ("ON_LOST", one_of(OnLost)),
    "heartbeat_interval": ("HEARTBEAT_INTERVAL", forms.SECONDS),
    "instance_timeout": ("INSTANCE_TIMEOUT", forms.SECONDS),
    "memory_budget": ("MEMORY_BUDGET", MEMORY_SIZE),
    "shared_memory": ("SHARED_MEMORY", one_of(SharedMemory)),
    "codec": ("CODEC", one_of(Codec)),
    "image_precision": ("IMAGE_PRECISION", one_of(ImagePrecision)),
}
