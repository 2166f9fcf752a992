"""The order of the checks: from the settings up to the peers, and what each result allows.

A wrong setting ends it. A port that is taken leaves what can be seen without it. Else the doctor
looks for the others from this instance's place for some seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from comfy_cluster.config import ClusterConfig, RegistrationMode
from comfy_cluster.discovery.interfaces import mtu_towards
from comfy_cluster.doctor.findings import (
    Finding,
    Layer,
    Report,
    State,
    failure,
    ok,
    settings_failure,
)
from comfy_cluster.doctor.names import LookedUp, check_names, look_up
from comfy_cluster.doctor.participation import Participation, Seen, probe_all
from comfy_cluster.doctor.peers import Path, check_peer, check_silence, is_settled
from comfy_cluster.doctor.ports import check_broadcast_port, check_port
from comfy_cluster.doctor.servers import check_servers, is_held
from comfy_cluster.errors import ClusterError, ConfigError
from comfy_cluster.transport.peer_info import Address, PeerInfo
from comfy_cluster.transport.reachability import Reachability

# What a packet tells also while this instance cannot take part; its silence is what it should be.
_CERTAIN = set(Reachability) - {Reachability.SILENT}

NoteListener = Callable[[str], object]


def examine(
    environ: Mapping[str, str], *, seconds: float, note: NoteListener = lambda _: None
) -> Report:
    """Blocks for `seconds` and a few more. `note` is told what takes its time."""
    try:
        config = ClusterConfig.from_env(environ)
    except ConfigError as error:
        return Report((settings_failure(error),))
    if config.is_single:
        return Report((_single(),), 1, 1)
    index, count = config.instance_index, config.instance_count
    settings = ok(
        Layer.SETTINGS,
        "environment",
        f"instance {index} of {count} ({config.role}), mode {config.registration_mode}, "
        f"UDP port {config.direct_listen_port}",
    )
    looked_up = look_up(config)
    ports = [*check_port(config), *check_broadcast_port(config)]
    findings = [settings, *check_names(looked_up), *ports]
    if any(each.layer is Layer.PORT and each.state is State.FAILURE for each in ports):
        findings += [*check_servers(config), *_check_from_outside(config, looked_up)]
        return Report(tuple(findings), count)
    note(f"Looking from the place of instance {index} for {seconds:g} s at most ...")
    try:
        found, connected_count = _take_part(config, seconds)
    except ClusterError as error:
        advice = ["correct that first: nothing else could be tried"]
        found, connected_count = [failure(Layer.PORT, "UDP", str(error), advice=advice)], None
    return Report((*findings, *found), count, connected_count)


def _single() -> Finding:
    return ok(
        Layer.SETTINGS,
        "environment",
        "a cluster of one: no network is used. If ComfyUI has other settings, set the same "
        "COMFY_CLUSTER_* variables here",
    )


def _take_part(config: ClusterConfig, seconds: float) -> tuple[list[Finding], int]:
    """Raises ClusterError: it cannot even begin."""
    mtus: dict[Address, int | None] = {}

    def mtu_of(seen: Seen) -> int | None:
        address = seen.info.address
        if address is not None and address not in mtus:
            mtus[address] = mtu_towards(address)
        return None if address is None else mtus[address]

    with Participation(config) as participation:
        everything = participation.wait(
            seconds,
            until=lambda seen: all(is_settled(each, Path(mtu_of(each))) for each in seen),
        )
        probed = probe_all(_addresses(each.info for each in everything if each.needs_probe))
        if probed:  # that took seconds, in which somebody may have come
            everything = participation.wait(0, until=lambda _: True)
        findings = check_servers(config)
        if is_held(findings):  # which is why they say nothing
            everything = [each for each in everything if each.is_reached or not each.needs_probe]
        if participation.failure is not None:
            return [*findings, _own_failure(participation.failure)], _count(everything)
    for each in everything:
        path = Path(mtu_of(each), probed.get(each.info.index))
        findings += check_peer(each, path, config=config, seconds=seconds)
    findings += check_silence(everything, probed, config=config)
    return findings, _count(everything)


def _count(everything: Iterable[Seen]) -> int:
    """Instances that are connected, this one included."""
    return 1 + sum(each.info.is_connected for each in everything)


def _addresses(infos: Iterable[PeerInfo]) -> dict[int, Address]:
    return {info.index: info.address for info in infos if info.address is not None}


def _own_failure(error: ClusterError) -> Finding:
    return failure(
        Layer.DISCOVERY,
        "this instance",
        str(error),
        advice=["give each instance a COMFY_CLUSTER_INSTANCE_INDEX of its own"],
    )


def _check_from_outside(config: ClusterConfig, looked_up: Iterable[LookedUp]) -> list[Finding]:
    """Of the peers of a list, without this instance's port: only what is certainly wrong."""
    if config.registration_mode is not RegistrationMode.STATIC:
        return []
    infos = [
        PeerInfo(index, (each.literal, each.name.port))
        for index, each in enumerate(looked_up)
        if each.literal is not None and not each.name.is_own
    ]
    probed = probe_all(_addresses(infos))
    return [
        finding
        for info in infos
        if probed[info.index] in _CERTAIN
        for finding in check_peer(
            Seen(info), Path(None, probed[info.index]), config=config, seconds=0
        )
    ]
