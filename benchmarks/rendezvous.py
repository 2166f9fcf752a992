"""How much the rendezvous server carries: heartbeats and lists a second, beside requests that wait.

    python -m benchmarks.rendezvous
    python -m benchmarks.rendezvous --stores sqlite --seconds 10 --waiting 0

The real gunicorn with its workers on loopback, asked by wrk, which must be installed. Both share
this machine's processors. A cluster of 100 instances; of each answer the status is checked.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import requests

from tests.stun_server.redis_server import RedisServer
from tests.stun_server.servers import RunningServer, running_server

CLUSTER = "bench"
INSTANCES = 100
KEY = "a-key-of-the-benchmark-and-no-other"
_HEARTBEATS = """
local number = 0
function request()
    number = number + 1
    return wrk.format("POST", "/heartbeat/{cluster}/" .. number % {instances})
end
"""
_LISTS = 'wrk.path = "/instances/{cluster}"'
_WHAT = {"heartbeats": _HEARTBEATS, "lists of 100": _LISTS}
_UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


@dataclass(frozen=True, slots=True)
class Measured:
    """What wrk says."""

    per_second: float
    p50: float
    """Milliseconds."""
    p99: float
    faults: int
    """Answers that were no success, and connections that failed."""


@contextlib.contextmanager
def server_on(store: str, workers: int) -> Iterator[RunningServer]:
    """A fresh server with its instances, on `sqlite` or `redis`."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = {"STUN_WORKERS": str(workers), "STUN_INSTANCE_TIMEOUT": "3600"}
        if store == "redis":
            redis_server = RedisServer.start(folder)
            stack.callback(redis_server.stop)
            settings["STUN_STORE"] = redis_server.url
        server = stack.enter_context(running_server(folder, port=None, **settings))
        with requests.Session() as session:
            session.headers["X-Cluster-Key"] = KEY
            for index in range(INSTANCES):
                body = {"cluster_id": CLUSTER, "instance_id": str(index), "role": "FOLLOWER"}
                body |= {"address": f"10.0.0.{index}", "port": "9998"}
                session.post(
                    f"{server.url}/register-instance", json=body | {"port": 9998}, timeout=30
                ).raise_for_status()
        yield server


@contextlib.contextmanager
def waiting_requests(server: RunningServer, count: int) -> Iterator[None]:
    """So many clients that wait for a change of the cluster, again and again."""
    url = f"{server.url}/instances/{CLUSTER}"
    headers = {"X-Cluster-Key": KEY}
    headers["If-None-Match"] = requests.get(url, headers=headers, timeout=30).headers["ETag"]
    is_over = threading.Event()

    def wait() -> None:
        while not is_over.is_set():
            with contextlib.suppress(requests.RequestException):  # the server ends
                requests.get(f"{url}?wait=30", headers=headers, timeout=60)

    threads = [threading.Thread(target=wait, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    _until_waiting(server, count)
    try:
        yield
    finally:
        is_over.set()
        # A change, which ends their waiting.
        requests.delete(f"{server.url}/instance/{CLUSTER}/0", headers=headers, timeout=30)
        for thread in threads:
            thread.join()


def _until_waiting(server: RunningServer, count: int) -> None:
    pattern = re.compile(r"^stun_waiting_requests\S* ([\d.]+)", re.MULTILINE)
    while True:
        told = requests.get(f"{server.url}/metrics", timeout=30).text
        if sum(map(float, pattern.findall(told))) >= count:
            return
        threading.Event().wait(0.1)


def measure(server: RunningServer, script: str, *, connections: int, seconds: int) -> Measured:
    """One run of wrk."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script.format(cluster=CLUSTER, instances=INSTANCES))
        file.flush()
        command = ["wrk", "--latency", "-t1", f"-c{connections}", f"-d{seconds}s"]
        command += ["-H", f"X-Cluster-Key: {KEY}", "-s", file.name, server.url]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rate = re.search(r"Requests/sec: +([\d.]+)", told)
    assert rate is not None, told
    faults = re.findall(r"Non-2xx or 3xx responses: (\d+)|Socket errors: (.*)", told)
    counts = [int(number) for pair in faults for number in re.findall(r"\d+", " ".join(pair))]
    return Measured(float(rate[1]), _latency(told, "50%"), _latency(told, "99%"), sum(counts))


def _latency(told: str, share: str) -> float:
    found = re.search(rf"^ +{share} +([\d.]+)(us|ms|s|m)$", told, re.MULTILINE)
    assert found is not None, told
    return float(found[1]) * _UNITS[found[2]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stores", nargs="+", choices=["sqlite", "redis"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--connections", type=int, default=8, help="of wrk")
    parser.add_argument("--waiting", type=int, default=200, help="requests that wait beside")
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.error("wrk is not installed (Debian: apt-get install wrk)")
    print(f"{'store':8}{'what':15}{'a second':>9}{'p50 ms':>9}{'p99 ms':>9}{'faults':>8}")
    for store in arguments.stores or ["sqlite", "redis"]:
        with (
            server_on(store, arguments.workers) as server,
            waiting_requests(server, arguments.waiting),
        ):
            for what, script in _WHAT.items():
                found = measure(
                    server,
                    script,
                    connections=arguments.connections,
                    seconds=arguments.seconds,
                )
                print(
                    f"{store:8}{what:15}{found.per_second:9.0f}{found.p50:9.1f}{found.p99:9.1f}"
                    f"{found.faults:8}"
                )


if __name__ == "__main__":
    main()
