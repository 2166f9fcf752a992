"""What a lab did to packets: read from the kernel's counters and the relay's."""

from __future__ import annotations

import json
import os
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
    """Packets that could have been lost at random. The kernel counts them with a loss only."""
    offered_bytes: int = 0
    lost_packets: int = 0
    """Dropped at random, as asked."""
    queue_drops: int = 0
    """Dropped because a queue was full."""
    reordered: int = 0
    """Held back so that others overtook them."""
    super_packets: int = 0
    """Frames larger than the MTU where losses are: above 0 the losses are not those of packets."""
    overruns: int = 0
    """Packets lost because relay or kernel did not keep up: above 0 a result is the machine's, not
    the link's. Of the whole machine where the kernel does not tell whose."""
    latest_us: int = 0
    """The most that a packet left the relay too late."""

    relay_cpu: float = 0.0
    """CPU seconds of the relay's process, with what the receivers' kernels do in its calls."""

    @property
    def loss(self) -> float:
        return self.lost_packets / max(1, self.offered_packets)


def of_relay(counts: dict[str, int], process: int, namespaces: list[str]) -> Counters:
    """`counts`: what the relay says; `namespaces`: the hosts'."""
    names = ("offered_packets", "offered_bytes", "lost_packets", "queue_drops", "reordered")
    dropped = sum(_device_drops(name) for name in namespaces)
    return Counters(
        **{name: counts[name] for name in names},
        overruns=counts["overruns"] + counts["refused"] + dropped + _backlog_drops(),
        latest_us=counts["latest_us"],
        relay_cpu=_cpu_seconds(process),
    )


def of_kernel(switch: str, host_count: int) -> Counters:
    named, hosts = dict(_named_counters(switch)), range(host_count)
    lost = [named.get(wiring.LOST.format(index), (0, 0)) for index in hosts]
    offered = [named.get(wiring.OFFERED.format(index), (0, 0)) for index in hosts]
    return Counters(
        offered_packets=sum(packets for packets, _ in offered),
        offered_bytes=sum(size for _, size in offered),
        lost_packets=sum(packets for packets, _ in lost),
        queue_drops=sum(queue["drops"] for queue in _queues(switch)),
        super_packets=named.get(wiring.SUPER, (0, 0))[0],
        overruns=_device_drops(switch) + _backlog_drops(),
    )


def _cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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


def _device_drops(namespace: str) -> int:
    """What the devices dropped because nobody took it in time."""
    links = json.loads(run_command(["ip", "-n", namespace, "-s", "-j", "link", "show"]))
    return sum(link["stats64"][way]["dropped"] for link in links for way in ("rx", "tx"))
