"""The settings of one instance: every `COMFY_CLUSTER_*` variable, read once and checked.

Holds the one reading of the environment; resolves no name, opens nothing. A variable with the
prefix that is no setting is refused. `from_env` is for the composition root and the command line;
every other module is handed a `ClusterConfig`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from comfy_cluster.errors import ConfigError
from comfy_cluster.settings_parsing import (
    BOOLEAN,
    LARGEST_PORT,
    PORT,
    PREFIX,
    InstanceAddress,
    SettingsReader,
    invalid,
)
from comfy_cluster.settings_values import (
    MEMORY_SIZE,
    REGISTRATION_MODE,
    SETTINGS,
    Codec,
    EngineChoice,
    ImagePrecision,
    LogLevel,
    OnLost,
    RegistrationMode,
    Role,
    SharedMemory,
)

__all__ = [
    "ENGINE_VARIABLES",
    "LEADER",
    "SETTING_VARIABLES",
    "ClusterConfig",
    "Codec",
    "EngineChoice",
    "ImagePrecision",
    "InstanceAddress",
    "LogLevel",
    "OnLost",
    "RegistrationMode",
    "Role",
    "SharedMemory",
    "engine_choice",
    "role_of",
]

LEADER = 0  # index of the leader: spec.md section 1
DEFAULT_DIRECT_LISTEN_PORT = 9998
DEFAULT_BROADCAST_PORT = 9997
DEFAULT_MEMORY_BUDGET = "25%"
ENGINE_VARIABLES = ("PURE_PYTHON", "REQUIRE_FASTPATH")

SETTING_VARIABLES = tuple(variable for variable, _ in SETTINGS.values())
_REQUIRED = ("INSTANCE_COUNT", "INSTANCE_INDEX", "ROLE", "REGISTRATION_MODE")
_REQUIRED_BY_MODE = {
    RegistrationMode.STUN: ("STUN_SERVER", "CLUSTER_ID", "KEY"),
    RegistrationMode.BROADCAST: (),
    RegistrationMode.STATIC: ("UDP_HOSTNAMES",),
}


def default_memory_budget() -> int:
    """A quarter of the RAM, or of this process's control group, in bytes."""
    return MEMORY_SIZE.parse(DEFAULT_MEMORY_BUDGET)


def role_of(instance_index: int) -> Role:
    return Role.LEADER if instance_index == LEADER else Role.FOLLOWER


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """Settings of one instance; `ClusterConfig()` is a cluster of one.

    Read from variables by `from_env`; `static` makes one for instances whose addresses are known.
    Contradictions raise `ConfigError`, however it is made.
    """

    instance_count: int = 1
    """Instances in the cluster, 1 or more."""
    instance_index: int = 0
    """This instance, counted from 0."""
    role: Role = Role.LEADER
    """`LEADER` for instance 0, `FOLLOWER` for every other."""
    registration_mode: RegistrationMode = RegistrationMode.STATIC
    """How instances find each other: `stun`, `broadcast` or `static`."""
    stun_servers: tuple[str, ...] = ()
    """URLs of the rendezvous servers, without a trailing slash; this instance uses all of them."""
    cluster_id: str = "default"
    """Names the cluster: instances with another one are ignored."""
    key: str | None = field(default=None, repr=False)
    """Secret of the cluster, 16 characters or more; never shown."""
    listen_address: str = "0.0.0.0"
    """IP address to bind."""
    instance_address: str | None = None
    """Name or IP address that the others use to reach this instance; None: found out."""
    direct_listen_port: int = DEFAULT_DIRECT_LISTEN_PORT
    """UDP port of this instance."""
    broadcast_port: int = DEFAULT_BROADCAST_PORT
    """UDP port for discovery in the LAN."""
    udp_broadcast: bool = False
    """Announce this instance by broadcast; true by default in broadcast mode."""
    udp_hostnames: tuple[InstanceAddress, ...] = ()
    """Static mode: name and port of every instance, in index order."""
    single_host: bool = False
    """All instances run on this machine."""
    comfy_port: int | None = None
    """HTTP port of this instance's ComfyUI; None: the one ComfyUI tells."""
    burst_size: int = 174
    """Packets a burst."""
    ack_timeout: float = 5.0
    """Seconds; a message fails after (1 + max_retries) times this without an ACK."""
    max_retries: int = 3
    """See `ack_timeout`."""
    log_level: LogLevel = LogLevel.INFO
    """DEBUG shows registrations, messages, buffer transfers and state transitions."""
    hot_reload: bool = False
    """Development: reload node code when the leader asks."""
    min_instances: int = 1
    """Work may start when this many instances are connected, this one included."""
    on_lost: OnLost = OnLost.REDO
    """What a fan-in does when an instance is lost."""
    heartbeat_interval: float = 0.5
    """Seconds between two signs of life."""
    instance_timeout: float = 3.0
    """Seconds of silence after which a peer is lost."""
    memory_budget: int = field(default_factory=default_memory_budget)
    """Bytes of payload in transfer at once, in and out; more waits its turn."""
    shared_memory: SharedMemory = SharedMemory.AUTO
    """`auto`: peers of one machine and user move payloads through shared memory; `off`: UDP."""
    codec: Codec = Codec.AUTO
    """Forces one lossless codec."""
    image_precision: ImagePrecision = ImagePrecision.EXACT
    """`exact`, or `uint8`: images and masks travel rounded and clipped to 8 bits."""
    runpod_pod_id: str | None = None
    """RunPod's own `RUNPOD_POD_ID`: the instance address is `{pod_id}.runpod.internal`."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> ClusterConfig:
        """Read every setting; a cluster of one when none is set.

        Raises ConfigError, which names the variable, its value and what was expected.
        """
        reader = SettingsReader(environ)
        reader.check_names((*SETTING_VARIABLES, *ENGINE_VARIABLES))
        engine_choice(environ)
        pod_id = environ.get("RUNPOD_POD_ID") or None
        if all(reader.text(name) is None for name in SETTING_VARIABLES):
            return cls(runpod_pod_id=pod_id)
        _require(reader)
        given = _read_given(reader)
        return cls(**(_derived_defaults(given) | given), runpod_pod_id=pod_id)

    @classmethod
    def static(cls, instance_index: int, addresses: Sequence[tuple[str, int]]) -> ClusterConfig:
        """Settings of one instance of a static cluster; `dataclasses.replace` changes the rest."""
        count = len(addresses)
        _check_index(instance_index, count)
        return cls(
            instance_count=count,
            instance_index=instance_index,
            role=role_of(instance_index),
            direct_listen_port=addresses[instance_index][1],
            udp_hostnames=tuple(InstanceAddress(*address) for address in addresses),
            min_instances=count,
        )

    def __post_init__(self) -> None:
        _check_index(self.instance_index, self.instance_count)
        _check_role(self.role, self.instance_index)
        if self.registration_mode is RegistrationMode.STATIC and not self.is_single:
            _check_addresses(self.udp_hostnames, self.instance_count)
        if not 1 <= self.direct_listen_port <= LARGEST_PORT:
            raise invalid("DIRECT_LISTEN_PORT", str(self.direct_listen_port), PORT.expected)
        if not 1 <= self.min_instances <= self.instance_count:
            expected = f"1 to {self.instance_count}, the instance count"
            raise invalid("MIN_INSTANCES", str(self.min_instances), expected)
        if self.instance_timeout <= self.heartbeat_interval:
            expected = f"more than the heartbeat interval, {self.heartbeat_interval} s"
            raise invalid("INSTANCE_TIMEOUT", str(self.instance_timeout), expected)

    @property
    def is_single(self) -> bool:
        """True for a cluster of one: no socket, no thread."""
        return self.instance_count == 1

    @property
    def is_leader(self) -> bool:
        return self.role is Role.LEADER


def engine_choice(environ: Mapping[str, str] | None = None) -> EngineChoice:
    """What `COMFY_CLUSTER_PURE_PYTHON` and `COMFY_CLUSTER_REQUIRE_FASTPATH` ask for.

    `fastpath.py` and the build call it before any `ClusterConfig` exists; without `environ` it
    reads this process's environment. Raises ConfigError.
    """
    reader = SettingsReader(os.environ if environ is None else environ)
    is_pure, is_required = (reader.read(name, BOOLEAN, default=False) for name in ENGINE_VARIABLES)
    if is_pure and is_required:
        expected = f"false, because {PREFIX}{ENGINE_VARIABLES[1]} is true"
        raise invalid(ENGINE_VARIABLES[0], "true", expected)
    if is_pure:
        return EngineChoice.PURE_PYTHON
    return EngineChoice.REQUIRE_COMPILED if is_required else EngineChoice.AUTO


def _check_index(index: int, count: int) -> None:
    if not 0 <= index < count:
        raise ConfigError(
            f"Instance index {index} exceeds instance count {count}: "
            f"expected {PREFIX}INSTANCE_INDEX from 0 to {count - 1}",
            variable=PREFIX + "INSTANCE_INDEX",
            value=str(index),
        )


def _check_role(role: Role, index: int) -> None:
    if role is not role_of(index):
        raise invalid("ROLE", str(role), f"{role_of(index)} for instance index {index}")


def _check_addresses(addresses: tuple[InstanceAddress, ...], count: int) -> None:
    shown = ",".join(map(str, addresses))
    if len(addresses) != count:
        expected = f"{count} addresses, one for each instance, and not {len(addresses)}"
        raise invalid("UDP_HOSTNAMES", shown, expected)
    places: dict[InstanceAddress, int] = {}
    for index, address in enumerate(addresses):
        first = places.setdefault(address, index)
        if first != index:
            expected = (
                f"a different address for each instance: entries {first} and {index} are both "
                f"{address}"
            )
            raise invalid("UDP_HOSTNAMES", shown, expected)


def _require(reader: SettingsReader) -> None:
    single = f"set all of them, or no {PREFIX}* variable at all for a cluster of one"
    reader.require(_REQUIRED, why=single)
    mode = reader.read("REGISTRATION_MODE", REGISTRATION_MODE, default=RegistrationMode.STATIC)
    why = f"{PREFIX}REGISTRATION_MODE={mode} needs it"
    reader.require(_REQUIRED_BY_MODE[mode], why=why)


def _read_given(reader: SettingsReader) -> dict[str, Any]:
    """The settings that the environment gives, by field."""
    return {
        name: reader.read(variable, form, default=None)
        for name, (variable, form) in SETTINGS.items()
        if reader.text(variable) is not None
    }


def _derived_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults that depend on other settings, by field."""
    count, index, mode = (
        given[name] for name in ("instance_count", "instance_index", "registration_mode")
    )
    _check_index(index, count)
    port = DEFAULT_DIRECT_LISTEN_PORT + (index if given.get("single_host") else 0)
    if mode is RegistrationMode.STATIC:
        _check_addresses(given["udp_hostnames"], count)
        port = given["udp_hostnames"][index].port
    return {
        "direct_listen_port": port,
        "udp_broadcast": mode is RegistrationMode.BROADCAST,
        "min_instances": count,
    }
