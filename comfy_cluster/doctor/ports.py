"""Can the ports be bound, does the kernel let packets in, and how large are its buffers?"""

from __future__ import annotations

import sys

from comfy_cluster.config import ClusterConfig, RegistrationMode
from comfy_cluster.discovery.broadcast import open_broadcast_socket
from comfy_cluster.discovery.interfaces import loopback_interface
from comfy_cluster.doctor.findings import Finding, Layer, failure, ok, warning
from comfy_cluster.doctor.firewalls import rule_here
from comfy_cluster.errors import ConfigError
from comfy_cluster.transport.assembly import POOR_RECEIVE_CAPACITY
from comfy_cluster.transport.reachability import receives_from_this_machine
from comfy_cluster.transport.sockets import BufferSizes, grow_buffers, open_udp_socket, show_address

_SCRIPT = "sudo scripts/set_kernel_buffer_sizes.sh in the project's folder, --permanent for good"
_RAISE_BUFFERS = {
    "linux": [
        _SCRIPT,
        "or: sudo sysctl -w net.core.rmem_max=268435456 net.core.wmem_max=268435456",
    ],
    "darwin": [_SCRIPT, "or: sudo sysctl -w kern.ipc.maxsockbuf=268435456"],
}


def check_port(config: ClusterConfig) -> list[Finding]:
    """Binds the direct port for a moment; a failure among the findings means that it cannot be."""
    port = config.direct_listen_port
    where = f"UDP {show_address((config.listen_address, port))}"
    try:
        sock = open_udp_socket(config.listen_address, port)
    except ConfigError as error:
        return [
            failure(
                Layer.PORT,
                where,
                str(error),
                advice=[
                    _owner(port),
                    "if it is ComfyUI with these settings, the port is fine: `comfy-cluster "
                    "status` shows how it sees the others",
                    "the doctor needs the port to check the peers: stop ComfyUI and ask again",
                ],
            )
        ]
    with sock:
        return [
            ok(Layer.PORT, where, "can be bound"),
            *check_own_firewall(port, is_open=receives_from_this_machine(sock)),
            check_buffers(grow_buffers(sock)),
        ]


def _owner(port: int, *, platform: str = sys.platform) -> str:
    if platform == "linux":
        return f"who has it: sudo ss -ulpn sport = :{port}"
    if platform == "win32":
        return f"who has it: Get-NetUDPEndpoint -LocalPort {port}"
    return f"who has it: sudo lsof -nP -iUDP:{port}"


def check_own_firewall(port: int, *, is_open: bool) -> list[Finding]:
    """`is_open`: a packet from this machine came in. Many firewalls let all through that stays on
    the machine, so only a failure means something."""
    if is_open:
        return []
    return [
        failure(
            Layer.FIREWALL,
            f"UDP {port}",
            f"a firewall of this machine drops what comes to UDP port {port}, even from itself",
            advice=[f"let it in: {rule_here(port)}"],
        )
    ]


def check_buffers(sizes: BufferSizes, *, platform: str = sys.platform) -> Finding:
    granted = f"{sizes.receive >> 10} KiB to receive, {sizes.send >> 10} KiB to send"
    if sizes.receive_capacity >= POOR_RECEIVE_CAPACITY:
        return ok(Layer.BUFFERS, "kernel buffers", granted)
    return warning(
        Layer.BUFFERS,
        "kernel buffers",
        f"only {granted}: fast transfers lose packets or wait",
        advice=_RAISE_BUFFERS.get(platform, ["raise the system's limit for UDP socket buffers"]),
    )


def check_broadcast_port(config: ClusterConfig) -> list[Finding]:
    """In broadcast mode: can this instance hear the others' announcements?"""
    if config.registration_mode is not RegistrationMode.BROADCAST:
        return []
    subject = f"UDP {config.broadcast_port}"
    try:
        open_broadcast_socket(
            config.broadcast_port, loopback_interface() if config.single_host else None
        ).close()
    except ConfigError as error:
        return [
            failure(
                Layer.PORT,
                subject,
                str(error),
                advice=[
                    _owner(config.broadcast_port),
                    "end it, or set another COMFY_CLUSTER_BROADCAST_PORT everywhere",
                ],
            )
        ]
    return [ok(Layer.PORT, subject, "can be bound, for announcements")]
