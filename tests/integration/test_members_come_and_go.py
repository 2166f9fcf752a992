"""Clusters of real processes that survive their members: killed, restarted, without a server.

Processes are forked from one that has loaded torch: a restart takes no seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import queue
import random
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import pytest
import torch

from comfy_cluster.cluster import Cluster, CollectiveKey, InstanceState
from comfy_cluster.config import ClusterConfig, RegistrationMode
from comfy_cluster.errors import ClusterError, PeerLost
from comfy_cluster.runtime import build_cluster
from comfy_cluster.wire import MessageType
from tests.integration.clusters import READY_TIMEOUT, configs
from tests.unit.discovery.rendezvous import Rendezvous

pytestmark = pytest.mark.integration

WAIT = 60.0  # seconds; a bound for a broken build, never waited for in a good one
QUICK = {"heartbeat_interval": 0.1, "instance_timeout": 0.6}
RESTARTS = 20  # of a follower
LEADER_RESTARTS = 5
ORDER = MessageType.RELOAD_NODES  # any that nobody else listens to

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload([__name__, "comfy_cluster.cluster.cluster"])


# What the processes do.


def follow(config: ClusterConfig) -> None:
    """Doubles its slice of each job that the leader orders, for ever."""
    torch.set_num_threads(1)
    cluster = build_cluster(config)
    orders: queue.Queue[str] = queue.Queue()
    cluster.add_message_listener(ORDER, lambda peer, payload: orders.put(payload.decode()))
    cluster.start()
    while True:
        job_id = orders.get()
        cluster.declare_ready()
        with contextlib.suppress(ClusterError), cluster.job(job_id):
            part = cluster.fan_out(CollectiveKey(job_id, "out")).result(WAIT)
            cluster.fan_in(CollectiveKey(job_id, "in"), 2 * part).result(WAIT)


def lead(config: ClusterConfig, results: Connection) -> None:
    """Does one job, says so, begins another one, and waits to be killed."""
    torch.set_num_threads(1)
    cluster = build_cluster(config)
    cluster.start()
    cluster.wait_until_ready(WAIT)
    results.send(run_job(cluster, f"whole-{config.direct_listen_port}-{random.random()}"))
    with cluster.job("never"):
        order(cluster, "never")
        time.sleep(WAIT)


def order(cluster: Cluster, job_id: str) -> None:
    for peer in cluster.connected_peers:
        cluster.send_message(peer, ORDER, job_id.encode()).result(WAIT)


def run_job(
    cluster: Cluster, job_id: str, *, in_between: Callable[[], object] = lambda: None
) -> bool:
    """Whether all items come back doubled. ClusterError: an instance was lost."""
    batch = torch.rand(60, 64, 64)
    with cluster.job(job_id):
        order(cluster, job_id)
        part = cluster.fan_out(CollectiveKey(job_id, "out"), batch)
        in_between()
        joined = cluster.fan_in(CollectiveKey(job_id, "in"), 2 * part.result(WAIT))
        return torch.equal(joined.result(WAIT), 2 * batch)


# The tests.


@contextlib.contextmanager
def following(config: ClusterConfig) -> Iterator[list[BaseProcess]]:
    """A list with the process of a follower, which `restart` replaces."""
    processes = [start(follow, config)]
    try:
        yield processes
    finally:
        kill(processes[0])


def start(target: Callable[..., None], *arguments: object) -> BaseProcess:
    process = context.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def kill(process: BaseProcess) -> None:
    process.kill()
    process.join()


def wait_until(condition: Callable[[], bool], describe: Callable[[], str]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, describe()
        time.sleep(0.005)


def test_a_follower_is_killed_and_restarted_while_jobs_run() -> None:
    settings = configs(3, **QUICK)
    rng = random.Random(1)
    with (
        build_cluster(settings[0]) as leader,
        following(settings[1]),
        following(settings[2]) as processes,
    ):
        leader.wait_until_ready(READY_TIMEOUT)

        def die() -> None:
            time.sleep(rng.random() * 0.01)
            kill(processes[0])

        for number in range(RESTARTS):
            try:
                assert run_job(leader, f"broken-{number}", in_between=die)
            except PeerLost as error:
                assert error.peer == 2
            wait_until(lambda: leader.connected_peers == [1], lambda: leader.info().text())
            processes[0] = start(follow, settings[2])
            wait_until(lambda: leader.connected_peers == [1, 2], lambda: leader.info().text())
            assert run_job(leader, f"whole-{number}")


def test_the_leader_is_killed_and_restarted() -> None:
    settings = configs(3, **QUICK)
    with (
        build_cluster(settings[1]) as watching,
        following(settings[2]),
    ):
        orders: queue.Queue[str] = queue.Queue()
        watching.add_message_listener(ORDER, lambda peer, payload: orders.put(payload.decode()))
        for _ in range(LEADER_RESTARTS):
            results, sender = context.Pipe(duplex=False)
            process = start(lead, settings[0], sender)
            watching.wait_until_ready(READY_TIMEOUT)
            job_id = orders.get(timeout=WAIT)
            with watching.job(job_id):
                part = watching.fan_out(CollectiveKey(job_id, "out")).result(WAIT)
                watching.fan_in(CollectiveKey(job_id, "in"), 2 * part).result(WAIT)
            assert results.poll(WAIT) and results.recv() is True
            assert orders.get(timeout=WAIT) == "never"
            with watching.job("never"):
                stuck = watching.fan_out(CollectiveKey("never", "out"))
                kill(process)
                assert isinstance(stuck.exception(WAIT), PeerLost)
                assert watching.state is InstanceState.POPULATING


def configs_at(server: Rendezvous) -> list[ClusterConfig]:
    """Two instances that find each other by a server."""
    return [
        dataclasses.replace(
            each,
            registration_mode=RegistrationMode.STUN,
            stun_servers=(server.url,),
            cluster_id="c",
            key="k" * 32,
            single_host=True,
        )
        for each in configs(2, **QUICK)
    ]


def test_a_cluster_goes_on_without_its_server() -> None:
    with Rendezvous() as server:
        settings = configs_at(server)
        with contextlib.ExitStack() as stack:
            leader = stack.enter_context(build_cluster(settings[0]))
            processes = stack.enter_context(following(settings[1]))
            leader.wait_until_ready(READY_TIMEOUT)
            server.__exit__()
            for number in range(5):
                assert run_job(leader, f"without-{number}")
            kill(processes[0])
            wait_until(lambda: leader.connected_peers == [], lambda: leader.info().text())
            processes[0] = start(follow, settings[1])
            with Rendezvous(port=server.port) as again:
                wait_until(
                    lambda: leader.connected_peers == [1],
                    lambda: f"{leader.info().text()}\n{processes[0]}\n{again.asked}",
                )
                assert run_job(leader, "with-it-again")


@pytest.mark.parametrize("how", ["silence", "headers"])
def test_an_instance_leaves_in_time_beside_a_server_that_stalls(how: str) -> None:
    """The peers are told first: they would wait for the timeout else."""
    with Rendezvous() as server:
        patient = [dataclasses.replace(each, instance_timeout=30.0) for each in configs_at(server)]
        leaving = build_cluster(patient[1])
        with build_cluster(patient[0]) as leader, leaving:
            leader.wait_until_ready(READY_TIMEOUT)
            # Who has not heard of the leader yet cannot say goodbye to it.
            wait_until(lambda: leaving.connected_peers == [0], lambda: leaving.info().text())
            server.stalling = how
            began = time.monotonic()
            leaving.close()
            assert time.monotonic() - began < 2.0
            wait_until(lambda: leader.connected_peers == [], lambda: leader.info().text())
            assert time.monotonic() - began < 10.0
            server.stalling = None
