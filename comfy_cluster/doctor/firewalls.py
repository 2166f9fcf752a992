"""Which command lets UDP through a firewall, in words for the user. Runs none of them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable

_LINUX = {
    "ufw": "sudo ufw allow {port}/udp",
    "firewall-cmd": (
        "sudo firewall-cmd --permanent --add-port={port}/udp && sudo firewall-cmd --reload"
    ),
    "nft": "sudo nft insert rule inet filter input udp dport {port} accept",
    "iptables": "sudo iptables -I INPUT -p udp --dport {port} -j ACCEPT",
}
_WINDOWS = (
    "New-NetFirewallRule -DisplayName 'ComfyUI Cluster' -Direction Inbound -Protocol UDP "
    "-LocalPort {port} -Action Allow"
)
_MACOS = "System Settings > Network > Firewall > Options: allow incoming connections of Python"


def rule_here(
    port: int,
    *,
    platform: str = sys.platform,
    which: Callable[[str], str | None] = shutil.which,
) -> str:
    """How this machine lets UDP packets to `port` in."""
    if platform == "win32":
        return f"in PowerShell as administrator: {_WINDOWS.format(port=port)}"
    if platform == "darwin":
        return _MACOS
    program = next((name for name in _LINUX if which(name)), "nft")
    return _LINUX[program].format(port=port)


def rules_there(port: int) -> list[str]:
    """The same for a machine of which nothing is known, for each system."""
    return [
        f"on that machine let UDP {port} in, on Linux: {_LINUX['ufw'].format(port=port)}, or: "
        f"{_LINUX['nft'].format(port=port)}",
        f"on Windows: {_WINDOWS.format(port=port)}",
        f"on macOS: {_MACOS}",
        "in a cloud: in its security group too",
    ]
