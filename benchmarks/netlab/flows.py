"""What is measured on a link: one flow of ours, of TCP cubic, of TCP BBR, or two at a time.

Every flow goes from host 0 to host 1. A row holds goodput (payload bits a second), its share of
the link, what was sent twice, CPU seconds a GB at both ends, and round trips of small packets.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.netlab.lab import Lab

OURS, CUBIC, BBR, UDP = "ours", "cubic", "bbr", "udp"
FLOWS = (OURS, CUBIC, BBR, UDP)
UDP_HEADERS = 52  # bytes: room for those of TCP, so that packets are of equal size
UDP_LOAD = 0.95  # of the link: plain UDP does not find out how much that is
OUR_PORT, IPERF_PORT = 9998, 5201
CONGESTION_CONTROLS = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
END_TIMEOUT = 120.0  # seconds beyond the flow's own
SENDING = "sending"  # what `ours.py` prints when it begins
SMALL_MEGABYTES = 2.0  # of a payload that is counted by the moment it is done
MANY_UNDER_WAY = 16  # of these: half of 1 Gbit/s through a queue of 250 ms is 17 MB in flight
SERVER_READY = "Server listening"


@dataclass(frozen=True, slots=True)
class Row:
    """One flow. None: not known for this kind of flow."""

    flow: str
    goodput: float
    """Payload bits a second, from the first byte sent to the last one acknowledged."""
    share: float | None
    """Of the link's rate, which counts Ethernet frames: TCP with MTU 1500 reaches 0.956."""
    retransmit_share: float
    """Packets sent again, of all that carried payload."""
    sender_cpu: float
    """CPU seconds for a GB of payload."""
    receiver_cpu: float
    rtt_median_ms: float | None
    """Of small packets beside the flow."""
    rtt_p95_ms: float | None
    payload_bytes: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def available_tcp() -> list[str]:
    """Which of cubic and BBR this kernel has."""
    return [name for name in (CUBIC, BBR) if name in CONGESTION_CONTROLS.read_text().split()]


def measure(lab: Lab, flow: str, *, seconds: float, megabytes: float) -> Row:
    """One flow alone on the link; `megabytes` is the size of each of our payloads."""
    if flow == OURS:
        run = OurFlow(lab, ["--megabytes", str(megabytes), "--seconds", str(seconds)])
        echo = start_echo(lab, seconds)
        result = run.finish(seconds + END_TIMEOUT)
    else:
        finish = _start_iperf(lab, flow, seconds)
        echo = start_echo(lab, seconds)
        result = finish(seconds + END_TIMEOUT)
    return _row(lab, flow, result, _json_of(echo, seconds + END_TIMEOUT))


def measure_beside_tcp(lab: Lab, seconds: float) -> list[Row]:
    """Ours and TCP cubic at the same time; ours begins first and ends last.

    Both are counted over the TCP flow's time, ours by the payloads done in it.
    """
    options = {"--megabytes": SMALL_MEGABYTES, "--under-way": MANY_UNDER_WAY}
    ours = OurFlow(lab, [str(word) for option in options.items() for word in option])
    echo = start_echo(lab, seconds)
    begin = time.monotonic()
    tcp = _start_iperf(lab, CUBIC, seconds)(seconds + END_TIMEOUT)
    end = time.monotonic()
    ours.stop()
    result = ours.finish(seconds + END_TIMEOUT, span=(begin, end))
    trips = _json_of(echo, seconds + END_TIMEOUT)
    return [_row(lab, OURS, result, trips), _row(lab, CUBIC, tcp, trips)]


def start_echo(lab: Lab, seconds: float) -> subprocess.Popen[Any]:
    return lab.hosts[0].python(
        "benchmarks.netlab.echo", lab.hosts[1].address, "--seconds", str(seconds)
    )


def _row(lab: Lab, flow: str, result: dict[str, Any], trips: dict[str, Any]) -> Row:
    rate = lab.profile.bits_per_second
    return Row(
        flow=flow,
        share=None if rate is None else result["goodput"] / rate,
        rtt_median_ms=trips["median_ms"],
        rtt_p95_ms=trips["p95_ms"],
        **result,
    )


class OurFlow:
    """Two instances that send and take payloads; `__init__` returns when the first one is sent."""

    def __init__(self, lab: Lab, options: list[str]) -> None:
        addresses = [f"{host.address}:{OUR_PORT}" for host in lab.hosts[:2]]
        self._receiver, self._sender = (
            lab.hosts[index].python("benchmarks.netlab.ours", str(index), *addresses, *options)
            for index in (1, 0)
        )
        assert self._sender.stdout is not None
        if self._sender.stdout.readline().strip() != SENDING:
            raise RuntimeError("ours did not begin to send; its error is above")

    def stop(self) -> None:
        assert self._sender.stdin is not None
        self._sender.stdin.close()
        self._sender.stdin = None

    def finish(self, timeout: float, *, span: tuple[float, float] | None = None) -> dict[str, Any]:
        """What a row needs; goodput over `span` (moments of time.monotonic), or over all."""
        sent, received = _json_of(self._sender, timeout), _json_of(self._receiver, timeout)
        gigabytes, peer = sent["bytes"] / 1e9, sent["peer"]
        size, seconds = sent["bytes"], sent["seconds"]
        if span is not None:
            done = [moment for moment in sent["done_at"] if span[0] <= moment <= span[1]]
            size, seconds = len(done) * sent["payload_size"], span[1] - span[0]
        return {
            "goodput": 8 * size / seconds,
            "retransmit_share": peer["chunks_retransmitted"] / max(1, peer["chunks_sent"]),
            "sender_cpu": sent["cpu_seconds"] / gigabytes,
            "receiver_cpu": received["cpu_seconds"] / gigabytes,
            "payload_bytes": size,
            "seconds": seconds,
        }


Finish = Callable[[float], dict[str, Any]]


def _start_iperf(lab: Lab, flow: str, seconds: float) -> Finish:
    source, sink = lab.hosts[0], lab.hosts[1]
    server = sink.popen(
        ["iperf3", "-s", "-1", "--forceflush", "-p", str(IPERF_PORT)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    while SERVER_READY not in (line := server.stdout.readline()):
        if not line:
            raise RuntimeError("iperf3 did not start as a server")
    command = ["iperf3", "-c", sink.address, "-p", str(IPERF_PORT), *_iperf_options(lab, flow)]
    duration = str(max(1, round(seconds)))
    client = source.popen([*command, "-t", duration, "-J"], stdout=subprocess.PIPE)

    def finish(timeout: float) -> dict[str, Any]:
        report = _json_of(client, timeout)
        if "error" in report:
            raise RuntimeError(f"{' '.join(command)}: {report['error']}")
        server.communicate(timeout=timeout)  # its port is free only then
        end, cpu = report["end"], report["end"]["cpu_utilization_percent"]
        size, repeated = _udp_outcome(end) if flow == UDP else _tcp_outcome(report)
        spent = end["sum" if flow == UDP else "sum_sent"]["seconds"]
        return {
            "goodput": 8 * size / spent,
            "retransmit_share": repeated,
            "sender_cpu": cpu["host_total"] / 100 * spent / (size / 1e9),
            "receiver_cpu": cpu["remote_total"] / 100 * spent / (size / 1e9),
            "payload_bytes": size,
            "seconds": spent,
        }

    return finish


def _iperf_options(lab: Lab, flow: str) -> list[str]:
    if flow != UDP:
        return ["-C", flow]
    payload = lab.profile.mtu - UDP_HEADERS
    rate = lab.profile.bits_per_second
    share = UDP_LOAD * payload / lab.profile.frame_size
    return ["-u", "-l", str(payload), "-b", "0" if rate is None else str(int(rate * share))]


def _tcp_outcome(report: dict[str, Any]) -> tuple[int, float]:
    """Payload bytes that arrived, and the share of packets that were sent again."""
    sent, size = report["end"]["sum_sent"], report["end"]["sum_received"]["bytes"]
    repeated = sent["retransmits"] * report["start"]["tcp_mss_default"]
    return size, repeated / max(1, sent["bytes"])


def _udp_outcome(end: dict[str, Any]) -> tuple[int, float]:
    """Payload bytes that arrived; UDP sends nothing again."""
    total = end["sum"]
    return int(total["bytes"] * (1 - total["lost_packets"] / max(1, total["packets"]))), 0.0


def _json_of(process: subprocess.Popen[Any], timeout: float) -> dict[str, Any]:
    text = process.communicate(timeout=timeout)[0]
    if not text:
        raise RuntimeError(f"{process.args!r} said nothing and ended with {process.returncode}")
    row: dict[str, Any] = json.loads(text)
    return row
