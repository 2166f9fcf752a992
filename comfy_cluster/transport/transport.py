"""The transport: moves payloads and messages between the instances of a cluster.

The facade of `transport/` for the layers above: it wires socket, engine, protocol core and threads
together, and turns calls into handles. It finds no peer (discovery/ does, and calls `add_member`)
and knows neither tensors nor collectives.

How it works: callers' threads make a handle and post a command to the control thread, which alone
touches the protocol core; the core's events fulfil the handles there. Engine threads move packets,
the digest pool reads payloads. Before `start` there is no socket and no thread. A thread that dies
by itself fails every handle.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from comfy_cluster import fastpath
from comfy_cluster.codec.payload import EncodedPayload
from comfy_cluster.config import ClusterConfig
from comfy_cluster.errors import LocalProtocolError, TransferCancelled
from comfy_cluster.protocol.outgoing_buffers import SMALLEST_SHARED
from comfy_cluster.transport import assembly
from comfy_cluster.transport.assembly import Parts
from comfy_cluster.transport.control import Command
from comfy_cluster.transport.handle import Handle
from comfy_cluster.transport.memory import ReceivedBuffer
from comfy_cluster.transport.peer_info import Address, PeerInfo
from comfy_cluster.transport.routing import Listeners, MessageListener, PeerListener
from comfy_cluster.transport.sockets import canonical_address, show_address
from comfy_cluster.wire import MessageType, TransferKey

logger = logging.getLogger("comfy_cluster.transport")

T = TypeVar("T")

ANSWER_TIMEOUT = 5.0  # seconds; the control thread answers within a turn, which takes milliseconds

TELLING_SIZE = 2 << 20  # bytes sent; fills a path of 1 Gbit/s and 16 ms


class Transport:
    """One instance's end of the cluster's network. Thread-safe; only `close` takes its time."""

    def __init__(
        self,
        config: ClusterConfig,
        *,
        make_engine: Callable[..., Any] = fastpath.PacketEngine,
        engine_name: str = fastpath.ENGINE_NAME,
        is_observer: bool = False,
    ) -> None:
        """`make_engine` takes the keywords of `PacketEngine`. `is_observer`: it only looks, and the
        others count it as no member."""
        self._config = config
        self._make_engine = make_engine
        self._engine_name = engine_name
        self._is_observer = is_observer
        self._lock = threading.Lock()  # guards start and close against each other
        self._parts: Parts | None = None
        self._pid = os.getpid()
        self._is_closed = False
        self._failure: BaseException | None = None
        self._handles: set[Handle[Any]] = set()
        self._members: set[int] = set()  # whom a broadcast goes to; what they are the core knows
        self._listeners = Listeners()
        self._ended: Handle[None] = Handle("the transport of this instance")

    # Life

    def start(self) -> None:
        """Binds the socket and starts the threads. ConfigError: the port cannot be bound."""
        with self._lock:
            if self._parts is not None or self._is_closed:
                raise LocalProtocolError("a transport starts once: make a new one")
            self._pid = os.getpid()
            self._parts = assembly.assemble(
                self._config,
                self._listeners,
                make_engine=self._make_engine,
                engine_name=self._engine_name,
                on_failure=self._on_failure,
                is_observer=self._is_observer,
            )
            self._parts.engine_threads.start()
            self._parts.control.start()
        atexit.register(self.close)

    def close(self) -> None:
        """Says goodbye to the peers and ends everything within two seconds. Twice is fine.

        What is under way fails with TransferCancelled. In a child of a fork it does nothing: socket
        and threads are the parent's.
        """
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        atexit.unregister(self.close)
        parts = self._parts
        if parts is None or self._pid != os.getpid():
            return
        if not parts.control.is_current:
            self._close(parts)
            return
        # A listener closes: it cannot wait for its own thread.
        closer = threading.Thread(target=self._close, args=(parts,), name="comfy-cluster-close")
        try:
            closer.start()
        except RuntimeError:  # the system gives this process no thread
            parts.engine_threads.stop_soon()  # silence tells the peers
            parts.control.stop()
            self._fail_handles(_closed_error)

    def _close(self, parts: Parts) -> None:
        assembly.take_apart(parts)
        self._fail_handles(_closed_error)

    @property
    def failure(self) -> BaseException | None:
        """What ended one of the threads, and with it this transport."""
        return self._failure

    @property
    def ended(self) -> Handle[None]:
        """Fails once a transport that was started is closed, or a thread of it died: with what all
        other handles fail with, and before them. It never has a result."""
        return self._ended

    def _on_failure(self, error: BaseException) -> None:
        name = threading.current_thread().name
        logger.error("! thread %s ended, nothing can be sent any more", name, exc_info=error)
        self._failure = error
        if self._parts is not None:
            self._parts.engine_threads.stop_soon()  # silence tells the peers
        self._fail_handles(lambda _: error)

    def _fail_handles(self, error_of: Callable[[Handle[Any]], BaseException]) -> None:
        self._ended.set_exception(error_of(self._ended))
        while (handle := self._pop_handle()) is not None:
            handle.set_exception(error_of(handle))

    def _pop_handle(self) -> Handle[Any] | None:
        try:
            return self._handles.pop()
        except KeyError:  # all are done; others may empty the set at any moment
            return None

    # Members

    def add_member(self, peer: int, address: Address) -> None:
        """Tells where `peer` may be reached, as IP literal and port; again when that changes.

        ConfigError: the socket cannot reach that address.
        """
        parts = self._running()
        self._check_peer(peer)
        canonical = canonical_address(address, parts.sock.family)
        parts.control.post(partial(parts.endpoint.add_member, peer, canonical))
        self._members.add(peer)  # after the command, so that what is sent comes after it too

    def remove_member(self, peer: int) -> None:
        """Forgets a peer; what is in transfer with it fails with PeerLost."""
        parts = self._running()
        self._members.discard(peer)
        parts.control.post(partial(parts.endpoint.remove_member, peer))

    def allocate(self, size: int) -> memoryview:
        """Writable memory of `size` bytes with any content, of the pool that payloads arrive in.

        Raises MemoryError.
        """
        return self._running().memory.allocate(size)

    def shares_memory(self, peer: int) -> bool:
        """Whether large payloads travel to and from `peer` through shared memory, at this moment.

        One segment, one copy, however many such peers a payload goes to at the same time.
        """
        shared_memory = self._parts.shared_memory if self._parts is not None else None
        return shared_memory is not None and peer in shared_memory.peers

    def bandwidth_to(self, peer: int) -> float:
        """Bytes a second that the path to `peer` was seen to carry over UDP; 0.0: not known yet.

        What little was sent says of a path is too low: it never was full.
        """
        if self._parts is None:
            return 0.0
        try:
            flow = self._parts.engine.peer_stats(peer)
        except ValueError:  # not connected
            return 0.0
        return float(flow["bandwidth"]) if flow["bytes_sent"] >= TELLING_SIZE else 0.0

    def add_peer_listener(self, fn: PeerListener) -> None:
        """`fn(event)` is called on the control thread; it must not block, and must not raise."""
        self._listeners.add_peer_listener(fn)

    def peers(self) -> list[PeerInfo]:
        """All other instances of the cluster, by index."""
        count, own = self._config.instance_count, self._config.instance_index
        others = [index for index in range(count) if index != own]
        return self._ask(lambda: [self._peer_info(index) for index in others])

    def _peer_info(self, index: int) -> PeerInfo:
        parts = self._parts
        if parts is not None:
            # It is no member; or it is lost while we look from beside a thread that is ending.
            with contextlib.suppress(KeyError, ValueError):
                return assembly.peer_info(parts, index)
        return PeerInfo(index)

    def ask_reflexive(self, server: Address, *, timeout: float) -> Handle[Address]:
        """The address that a STUN server, given as IP literal and port, sees this socket under.

        Done within `timeout` seconds. The handle fails with TransferTimeout (no answer),
        RemoteProtocolError (it refuses), or LocalProtocolError (too many questions at once).
        ConfigError: the socket cannot reach that address.
        """
        parts = self._running()
        canonical = canonical_address(server, parts.sock.family)
        handle: Handle[Address] = self._new_handle(
            f"STUN server {show_address(server)}",
            on_cancel=lambda _: parts.binding_requests.forget(handle),
        )
        parts.control.post(
            lambda now: parts.binding_requests.ask(handle, canonical, timeout=timeout, now=now)
        )
        return handle

    # Messages

    def send_message(
        self, peer: int, message_type: MessageType, payload: bytes, *, require_ack: bool = True
    ) -> Handle[None]:
        """Done when `peer` acknowledged it; without `require_ack`, when it was handed on.

        The handle fails with TransferTimeout or PeerLost. LocalProtocolError: no such peer.
        """
        parts = self._running()
        self._check_peer(peer)
        handle: Handle[None] = self._new_handle(
            f"{message_type.name} to instance {peer}",
            on_cancel=lambda now: parts.outgoing.cancel_message(handle, now),
        )
        parts.control.post(
            lambda now: parts.outgoing.send_message(
                handle, peer, message_type, payload, require_ack=require_ack, now=now
            )
        )
        return handle

    def broadcast_message(
        self, message_type: MessageType, payload: bytes, *, require_ack: bool = True
    ) -> dict[int, Handle[None]]:
        """`send_message` to every peer whose address is known; handles by peer."""
        return {
            peer: self.send_message(peer, message_type, payload, require_ack=require_ack)
            for peer in sorted(self._members)
        }

    def add_message_listener(self, message_type: MessageType, fn: MessageListener) -> None:
        """`fn(peer, payload)` is called on the control thread; it must not block, nor raise."""
        self._listeners.add_message_listener(message_type, fn)

    # Buffers

    def send_buffer(
        self, peer: int, key: TransferKey, payload: EncodedPayload, *, message_type: MessageType
    ) -> Handle[None]:
        """Done when `peer` has the payload, and found its digest right where it has one.

        The payload's memory must not change until then. The handle fails with TransferTimeout,
        PeerLost, CorruptPayload, or TransferCancelled. LocalProtocolError: no such peer, or the key
        names another source than this instance.
        """
        parts = self._running()
        handle = self._new_transfer(peer, key)

        def send(digest: bytes | None) -> None:
            parts.control.post(
                lambda now: parts.outgoing.send_buffer(
                    handle, peer, key, payload, digest=digest, message_type=message_type, now=now
                )
            )

        if payload.size >= SMALLEST_SHARED and self.shares_memory(peer):
            send(None)
        else:
            parts.digests.digest(payload, send)
        return handle

    def send_chain(
        self,
        peers: Sequence[int],
        key: TransferKey,
        payload: EncodedPayload,
        *,
        message_type: MessageType,
    ) -> dict[int, Handle[None]]:
        """Like `send_buffer` to each of `peers`, but sent once: each sends it on to the next one
        while it arrives. A peer that drops out fails its own handle only."""
        parts = self._running()
        handles = {peer: self._new_transfer(peer, key) for peer in peers}

        def send(digest: bytes) -> None:
            parts.control.post(
                lambda now: parts.outgoing.send_chain(
                    handles, key, payload, digest=digest, message_type=message_type, now=now
                )
            )

        parts.digests.digest(payload, send)
        return dict(handles)

    def _new_transfer(self, peer: int, key: TransferKey) -> Handle[None]:
        """The handle of a payload to `peer`. Raises LocalProtocolError."""
        parts = self._running()
        self._check_peer(peer)
        if key.source != self._config.instance_index:
            raise LocalProtocolError(f"instance {self._config.instance_index} cannot send {key}")
        parts.control.expect_payload()
        handle: Handle[None] = self._new_handle(
            f"{key} to instance {peer}",
            on_cancel=lambda now: parts.outgoing.cancel_buffer(handle, now),
        )
        return handle

    def receive_buffer(
        self,
        key: TransferKey,
        *,
        peer: int,
        before_claim: Callable[[Handle[ReceivedBuffer]], object] | None = None,
    ) -> Handle[ReceivedBuffer]:
        """Done when the payload of `key` is here, and its digest is right.

        `before_claim(handle)` is called before the payload is asked for: if it cancels the handle,
        because the job has ended, then it is not, and the job stays ended.
        The handle fails with PeerLost or TransferCancelled; with PeerLost too if `peer` does not
        connect at all. LocalProtocolError: no such peer, or the key names another source.
        """
        parts = self._running()
        self._check_peer(peer)
        if key.source != peer:
            raise LocalProtocolError(f"{key} cannot come from instance {peer}")
        parts.control.expect_payload()  # it may be announced already, or come at once
        handle: Handle[ReceivedBuffer] = self._new_handle(
            str(key), on_cancel=lambda now: parts.incoming.unclaim(key, handle, now)
        )
        if before_claim is not None:
            before_claim(handle)
        parts.control.post(lambda now: parts.incoming.claim(key, handle, now))
        return handle

    def end_job(self, job_id: str) -> None:
        """Drops what arrived for the job and nobody asked for, and cancels its transfers."""
        parts = self._running()

        def end(now: float) -> None:
            parts.endpoint.end_job(job_id, now)
            parts.incoming.end_job(job_id)

        parts.control.post(end)

    # Numbers

    def stats(self) -> dict[str, int]:
        """Counters by name: the protocol core's, `engine_*`, `socket_*`, `stun_*`,
        `shared_memory_*`.

        {} before the start.
        """
        parts = self._parts
        if parts is None:
            return {}
        engine, loops = parts.engine.stats(), parts.engine_threads.stats()
        counted: dict[str, int] = dataclasses.asdict(parts.endpoint.stats)
        counted |= {f"engine_{name}": count for name, count in engine.items()}
        asked = dataclasses.asdict(parts.binding_requests.stats)
        counted |= {f"stun_{name}": count for name, count in asked.items()}
        if parts.shared_memory is not None:
            shared = dataclasses.asdict(parts.shared_memory.stats)
            counted |= {f"shared_memory_{name}": count for name, count in shared.items()}
        return counted | {f"socket_{name}": count for name, count in loops.items()}

    # Inside

    def _running(self) -> Parts:
        """LocalProtocolError: not started, or closed, or in a child of a fork."""
        if self._parts is None:
            raise LocalProtocolError("the transport was not started: call start() first")
        if self._pid != os.getpid():
            raise LocalProtocolError("a transport cannot be used in a child of a fork")
        return self._parts

    def _check_peer(self, peer: int) -> None:
        own, count = self._config.instance_index, self._config.instance_count
        if peer == own:
            raise LocalProtocolError(f"instance {own} cannot send to or receive from itself")
        if not 0 <= peer < count:
            raise LocalProtocolError(f"there is no instance {peer} in a cluster of {count}")

    def _new_handle(self, description: str, *, on_cancel: Command | None = None) -> Handle[Any]:
        """A handle that ends when this transport does; `on_cancel` runs on the control thread."""
        post = self._running().control.post
        handle: Handle[Any] = Handle(
            description, on_cancel=None if on_cancel is None else partial(post, on_cancel)
        )
        self._handles.add(handle)
        handle.add_done_callback(self._handles.discard)
        # In this order: whoever ends the transport sets these first, and then looks at the set.
        if self._failure is not None:
            handle.set_exception(self._failure)
        elif self._is_closed:
            handle.set_exception(_closed_error(handle))
        return handle

    def _ask(self, fn: Callable[[], T]) -> T:
        """Calls `fn` on the control thread, or here if that has ended."""
        parts = self._parts
        has_ended = self._is_closed or self._failure is not None
        if parts is None or has_ended or parts.control.is_current:
            return fn()
        handle: Handle[T] = self._new_handle("a look at the peers")

        def answer(_: float) -> None:
            try:
                handle.set_result(fn())
            except Exception as error:  # it is the asker's: a look must not end the thread
                handle.set_exception(error)

        parts.control.post(answer)
        error = handle.exception(ANSWER_TIMEOUT)
        if error is not None and (self._is_closed or self._failure is not None):
            return fn()  # the thread has ended meanwhile
        return handle.result()


def _closed_error(handle: Handle[Any]) -> TransferCancelled:
    return TransferCancelled(f"{handle.description}: this instance was closed")
