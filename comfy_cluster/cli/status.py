"""`comfy-cluster status`: asks a running ComfyUI what it knows of the cluster."""

from __future__ import annotations

from collections.abc import Mapping

import requests
from rich.console import Console
from rich.table import Table

from comfy_cluster.cluster.info import STATUS_PATH, ClusterInfo, PeerSummary, size_text
from comfy_cluster.errors import ConfigError, DiscoveryError
from comfy_cluster.settings_parsing import PREFIX

DEFAULT_COMFY_PORT = 8188  # ComfyUI's own
TIMEOUT = (3.05, 10.0)  # seconds to connect and to be answered


def default_url(environ: Mapping[str, str]) -> str:
    """Of the ComfyUI of this machine: on COMFY_CLUSTER_COMFY_PORT, else on ComfyUI's own port."""
    port = environ.get(f"{PREFIX}COMFY_PORT") or DEFAULT_COMFY_PORT
    return f"http://127.0.0.1:{port}"


def ask(url: str) -> str:
    """The status as JSON. DiscoveryError: nobody answers, or not with that; the text says what."""
    address = url.rstrip("/") + STATUS_PATH
    try:
        with requests.Session() as session:
            session.trust_env = False  # no proxy leads to a machine of one's own
            answer = session.get(address, timeout=TIMEOUT)
    except requests.RequestException as error:
        raise DiscoveryError(
            f"no ComfyUI answers at {url}: is it running? With --port of its own name it by "
            f"--url or {PREFIX}COMFY_PORT ({type(error).__name__})"
        ) from error
    if answer.status_code == requests.codes.not_found:
        raise DiscoveryError(
            f"the ComfyUI at {url} has no ComfyUI Cluster, or an older one: its log says whether "
            "the nodes were loaded"
        )
    if answer.status_code != requests.codes.ok:
        raise ConfigError(f"the ComfyUI at {url} says: {_told(answer)}")
    return answer.text


def parse(text: str, url: str) -> ClusterInfo:
    """DiscoveryError: it is another version's."""
    try:
        return ClusterInfo.parse(text)
    except ValueError as error:
        raise DiscoveryError(
            f"what answers at {url} is not of this version ({error}): install the same one"
        ) from error


def print_status(console: Console, info: ClusterInfo) -> None:
    """A line about this instance, and a table of the others."""
    console.print(
        f"Instance {info.instance_index} of {info.instance_count} ({info.role}), "
        f"{info.state.value}. Connected: {info.connected_count}/{info.instance_count} instances",
        highlight=False,
    )
    if info.failure:
        console.print(info.failure, highlight=False)
    console.print(
        f"Cluster {info.cluster_id}, registration {info.registration_mode}, engine {info.engine}, "
        f"version {info.software_version}",
        highlight=False,
    )
    if info.peers:
        console.print(_table(info))


def _table(info: ClusterInfo) -> Table:
    table = Table("instance", "address", "connection", box=None)
    for name in ("RTT", "sent", "received", "resent", "packet", "version"):
        table.add_column(name, justify="right")
    for peer in info.peers:
        table.add_row(*_row(peer))
    return table


def _row(peer: PeerSummary) -> list[str]:
    name = f"{peer.instance_index} ({peer.role})"
    if not peer.is_connected:
        return [name, peer.address, peer.connection_text, *["-"] * 6]
    return [
        name,
        peer.address,
        peer.connection_text,
        "-" if peer.rtt is None else f"{peer.rtt * 1000:.2f} ms",
        size_text(peer.bytes_sent),
        size_text(peer.bytes_received),
        str(peer.chunks_retransmitted),
        f"{peer.packet_size} B",
        peer.software_version or "-",
    ]


def _told(answer: requests.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{answer.status_code} {answer.reason}"
