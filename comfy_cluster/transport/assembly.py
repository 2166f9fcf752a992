"""What a transport is made of from its start on: put together here, and taken apart again.

It starts no thread and keeps no state. Used by `transport.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import random
import selectors
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from comfy_cluster import identity
from comfy_cluster.codec.image_codecs import available_codecs
from comfy_cluster.config import ClusterConfig, RegistrationMode, SharedMemory
from comfy_cluster.protocol import Endpoint, ProtocolSettings, events
from comfy_cluster.transport import sockets
from comfy_cluster.transport.binding_requests import BindingRequests
from comfy_cluster.transport.control import Command, ControlThread
from comfy_cluster.transport.digests import DigestPool
from comfy_cluster.transport.engine_threads import EngineThreads
from comfy_cluster.transport.incoming import IncomingHandles
from comfy_cluster.transport.memory import MemoryPool
from comfy_cluster.transport.outgoing import OutgoingHandles
from comfy_cluster.transport.peer_info import PeerInfo
from comfy_cluster.transport.routing import EventRouter, Listeners
from comfy_cluster.transport.shared_memory.availability import why_unavailable
from comfy_cluster.transport.shared_memory.carrier import SharedMemoryCarrier
from comfy_cluster.transport.workers import WorkerPool

logger = logging.getLogger("comfy_cluster.transport")

# While Python code elsewhere keeps the GIL, no heartbeat leaves; the engine's keepalives do.
KEEPALIVES_PER_TIMEOUT = 3
LARGEST_STRANGER_RATE = 256.0  # HELLOs a second from unknown addresses; each costs some 0.1 ms
FAREWELL_BURSTS = 16  # of packets at most, in which the core says goodbye to all peers
FAREWELL_TIMEOUT = 0.05  # seconds in all, while the socket is full
KEPT_SHARE = 2  # of the memory budget, in memory that is kept for the payloads to come
POOR_RECEIVE_CAPACITY = 1 << 20  # bytes; less than this limits a transfer at 1 Gbit/s and 8 ms


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """All of them live as long as the transport runs."""

    sock: socket.socket
    engine: Any
    engine_threads: EngineThreads
    endpoint: Endpoint
    control: ControlThread[events.Event]
    workers: WorkerPool
    digests: DigestPool
    outgoing: OutgoingHandles
    incoming: IncomingHandles
    binding_requests: BindingRequests
    memory: MemoryPool
    shared_memory: SharedMemoryCarrier | None
    """None: it is turned off, or this system has none."""


def assemble(
    config: ClusterConfig,
    listeners: Listeners,
    *,
    make_engine: Callable[..., Any],
    engine_name: str,
    on_failure: Callable[[BaseException], object],
    is_observer: bool = False,
) -> Parts:
    """Opens the socket and makes everything around it. ConfigError: the port cannot be bound."""
    settings = _protocol_settings(config, engine_name, is_observer=is_observer)
    sock = sockets.open_udp_socket(config.listen_address, config.direct_listen_port)
    sizes = sockets.grow_buffers(sock)
    _log_socket(sock, sizes, engine_name)
    engine = make_engine(**_engine_options(config, sizes))

    def post(command: Command) -> None:
        control.post(command)

    memory = MemoryPool(config.memory_budget // KEPT_SHARE)
    workers = WorkerPool(on_failure=on_failure)
    shared_memory = _open_shared_memory(config, settings, workers, post)
    endpoint = Endpoint(
        settings,
        engine,
        rng=random.SystemRandom(),
        allocate=memory.allocate,
        now=time.monotonic(),
        shared_memory=shared_memory,
    )
    digests = DigestPool(workers)
    outgoing = OutgoingHandles(endpoint, digests, post=post)
    incoming = IncomingHandles(endpoint, digests, post=post)
    binding_requests = BindingRequests(engine, send=partial(_send, sock))
    router = EventRouter(
        listeners, outgoing=outgoing, incoming=incoming, binding_requests=binding_requests
    )
    engine_threads = EngineThreads(engine, sock, on_failure=on_failure)
    control: ControlThread[events.Event] = ControlThread(
        endpoint,
        engine_threads,
        on_event=router.on_event,
        on_failure=on_failure,
        shared_memory=shared_memory,
        timed=(binding_requests,),
    )
    return Parts(
        sock=sock,
        engine=engine,
        engine_threads=engine_threads,
        endpoint=endpoint,
        control=control,
        workers=workers,
        digests=digests,
        outgoing=outgoing,
        incoming=incoming,
        binding_requests=binding_requests,
        shared_memory=shared_memory,
        memory=memory,
    )


def _engine_options(config: ClusterConfig, sizes: sockets.BufferSizes) -> dict[str, float]:
    return {
        "burst_size": config.burst_size,
        "receive_capacity": sizes.receive_capacity,
        "keepalive_interval": config.instance_timeout / KEEPALIVES_PER_TIMEOUT,
        "strangers_per_second": _strangers_per_second(config),
    }


def _strangers_per_second(config: ClusterConfig) -> float:
    """A list of addresses is complete; elsewhere who was found finds the finder by its HELLO."""
    is_complete = config.registration_mode is RegistrationMode.STATIC
    return 0.0 if is_complete else LARGEST_STRANGER_RATE


def _open_shared_memory(
    config: ClusterConfig,
    settings: ProtocolSettings,
    workers: WorkerPool,
    post: Callable[[Command], None],
) -> SharedMemoryCarrier | None:
    """None where it cannot be had: everything works without."""
    if config.shared_memory is SharedMemory.OFF:
        return None
    reason = why_unavailable()
    if not reason:
        try:
            return SharedMemoryCarrier(
                settings.instance_index,
                settings.boot_id,
                memory_budget=settings.memory_budget,
                workers=workers,
                post=post,
            )
        except OSError as error:
            reason = str(error)
    logger.info("= no shared memory with instances of this machine: %s", reason)
    return None


def _protocol_settings(
    config: ClusterConfig, engine_name: str, *, is_observer: bool
) -> ProtocolSettings:
    settings = ProtocolSettings.from_config(
        config,
        boot_id=identity.new_boot_id(),
        engine_name=engine_name,
        version=identity.software_version(),
        is_observer=is_observer,
    )
    return dataclasses.replace(
        settings,
        loopback_packet_size=sockets.LOOPBACK_PACKET_SIZE,
        codecs=available_codecs(),
    )


def _log_socket(sock: socket.socket, sizes: sockets.BufferSizes, engine_name: str) -> None:
    where = sockets.show_address(sock.getsockname()[:2])
    logger.info("= listening on %s, %s engine", where, engine_name)
    if sizes.receive_capacity < POOR_RECEIVE_CAPACITY:
        logger.warning(
            "! the system grants a receive buffer of only %d KiB, which slows transfers down: raise"
            " it with the project's scripts/set_kernel_buffer_sizes.sh (on Linux that is:"
            " sysctl -w net.core.rmem_max=268435456)",
            sizes.receive >> 10,
        )


def take_apart(parts: Parts) -> None:
    """Ends all threads and closes the socket; within two seconds, whatever the threads do."""
    has_control_ended = parts.control.stop()
    if not has_control_ended:  # the peers would wait for the timeout
        for peer, goodbye in parts.endpoint.farewells():
            parts.engine.send_message(peer, goodbye)
    have_loops_ended = parts.engine_threads.stop()
    with contextlib.suppress(OSError, ValueError):  # no descriptors left, or the socket is dead
        _send_farewell(parts)
    if have_loops_ended and has_control_ended:
        parts.sock.close()
    else:  # the socket stays open: its number must not come to mean another file to that thread
        logger.error("! a thread of the transport does not end")
    if parts.shared_memory is not None and has_control_ended:
        parts.shared_memory.close()
        parts.workers.close(parts.shared_memory.free_memory)  # later, if one is writing to it
    else:
        parts.workers.close()


def _send_farewell(parts: Parts) -> None:
    """Sends what is left in the engine: GOODBYE to every peer."""
    deadline = time.monotonic() + FAREWELL_TIMEOUT
    with selectors.DefaultSelector() as writable:
        writable.register(parts.sock, selectors.EVENT_WRITE)
        for _ in range(FAREWELL_BURSTS):
            packets = parts.engine.packets_to_send(time.monotonic())
            if not packets:
                return
            for address, packet in packets:
                writable.select(max(0.0, deadline - time.monotonic()))
                _send(parts.sock, packet, address)


def _send(sock: socket.socket, packet: bytes, address: sockets.Address) -> None:
    """What the socket refuses is as lost as what the network drops."""
    with contextlib.suppress(OSError):
        sock.sendto(packet, address)


def peer_info(parts: Parts, index: int) -> PeerInfo:
    """A snapshot of one member. On the control thread only, or after it has ended."""
    core = parts.endpoint.peer_info(index)
    if not core.is_connected and not core.is_observer:
        return PeerInfo(index, core.address, is_heard=core.is_heard)
    flow = parts.engine.peer_stats(index)
    shared = parts.shared_memory
    names = {field.name for field in dataclasses.fields(PeerInfo)} & flow.keys()
    return PeerInfo(
        index,
        core.address,
        core.is_connected,
        boot_id=core.boot_id,
        role=core.role,
        software_version=core.software_version,
        engine_name=core.engine_name,
        silent_for=max(0.0, time.monotonic() - flow["last_received_at"]),
        rtt=flow["smoothed_rtt"] if flow["min_rtt"] else core.message_rtt or None,
        shares_memory=shared is not None and index in shared.peers,
        shared_bytes_sent=0 if shared is None else shared.bytes_sent(index),
        shared_bytes_received=0 if shared is None else shared.bytes_received(index),
        is_heard=True,
        is_observer=core.is_observer,
        **{name: flow[name] for name in names},
    )
