"""What a lab did to packets: read from the kernel's counters and the relay's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.netlab import wiring
from benchmarks.netlab.requirements import run_command


@dataclass(frozen=True, slots=True)
class Counters:
    """Packets and bytes of all links together, since the lab began."""

    offered_packets: int = 0
    """Packets that could have been lost at random; counted with a loss only."""
    offered_bytes: int = 0
    lost_packets: int = 0
    """Dropped at random, as asked."""
    queue_drops: int = 0
    """Dropped because a queue was full."""
    carried_packets: int = 0
    """Packets that left the uplinks' queues in the switch; counted where those are."""
    carried_bytes: int = 0
    relayed: int = 0
    """Frames that the relay passed on."""
    reordered: int = 0
    overruns: int = 0
    """Frames lost because relay or kernel could not keep up: above 0 a result is the machine's,
    not the link's. Counted for the whole machine where the kernel does not tell whose."""
    latest_us: int = 0
    """The most that a frame left the relay too late."""

    @property
    def loss(self) -> float:
        return self.lost_packets / max(1, self.offered_packets)


def read_counters(switch: str, host_count: int, relayed: dict[str, int]) -> Counters:
    """`relayed`: the relay's own counters, {} without one."""
    named, hosts = dict(_named_counters(switch)), range(host_count)
    lost = [named.get(wiring.LOST.format(index), (0, 0)) for index in hosts]
    offered = [named.get(wiring.OFFERED.format(index), (0, 0)) for index in hosts]
    queues = {queue["dev"]: queue for queue in _queues(switch)}
    uplinks = [queues[wiring.uplink(index)] for index in hosts if wiring.uplink(index) in queues]
    relay_drops = sum(relayed.get(name, 0) for name in ("dropped", "refused", "truncated"))
    return Counters(
        offered_packets=sum(packets for packets, _ in offered),
        offered_bytes=sum(size for _, size in offered),
        lost_packets=sum(packets for packets, _ in lost),
        queue_drops=sum(queue["drops"] for queue in queues.values()),
        carried_packets=sum(queue["packets"] for queue in uplinks),
        carried_bytes=sum(queue["bytes"] for queue in uplinks),
        relayed=relayed.get("relayed", 0),
        reordered=relayed.get("reordered", 0),
        overruns=relay_drops + _device_drops(switch) + _backlog_drops(),
        latest_us=relayed.get("latest_us", 0),
    )


def _backlog_drops() -> int:
    """Packets that the machine dropped since boot because softirqs did not keep up."""
    lines = Path("/proc/net/softnet_stat").read_text().splitlines()
    return sum(int(line.split()[1], 16) for line in lines)


def _named_counters(switch: str) -> Iterator[tuple[str, tuple[int, int]]]:
    command = ["ip", "netns", "exec", switch, "nft", "-j", "list", "counters"]
    for entry in json.loads(run_command(command))["nftables"]:
        if "counter" in entry:
            counter = entry["counter"]
            yield counter["name"], (counter["packets"], counter["bytes"])


def _queues(switch: str) -> Iterator[dict[str, Any]]:
    for queue in json.loads(run_command(["tc", "-n", switch, "-s", "-j", "qdisc", "show"])):
        if queue["kind"] == "tbf":
            yield queue


def _device_drops(switch: str) -> int:
    """What the devices dropped because nobody took it in time, a TAP's relay for example."""
    links = json.loads(run_command(["ip", "-n", switch, "-s", "-j", "link", "show"]))
    return sum(link["stats64"][way]["dropped"] for link in links for way in ("rx", "tx"))
