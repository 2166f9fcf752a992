"""Events of the protocol core on their way to whom they concern: handles and listeners.

Runs on the control thread; listeners may be added from any thread. Used by `transport.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from comfy_cluster.protocol import events
from comfy_cluster.transport.binding_requests import BindingRequests
from comfy_cluster.transport.incoming import IncomingHandles
from comfy_cluster.transport.outgoing import OutgoingHandles
from comfy_cluster.wire import MessageType

PeerEvent = events.PeerConnected | events.PeerLost | events.PeerRefused | events.StrangerHeard
PeerListener = Callable[[PeerEvent], object]
MessageListener = Callable[[int, bytes], object]


class Listeners:
    """Who wants to know of peers and messages. What a listener raises ends the control thread."""

    def __init__(self) -> None:
        self._of_peers: tuple[PeerListener, ...] = ()
        self._of_messages: dict[MessageType, tuple[MessageListener, ...]] = {}

    def add_peer_listener(self, fn: PeerListener) -> None:
        self._of_peers += (fn,)

    def add_message_listener(self, message_type: MessageType, fn: MessageListener) -> None:
        self._of_messages[message_type] = (*self._of_messages.get(message_type, ()), fn)

    def on_peer_event(self, event: PeerEvent) -> None:
        for listener in self._of_peers:
            listener(event)

    def on_message(self, event: events.MessageReceived) -> None:
        for listener in self._of_messages.get(event.message_type, ()):
            listener(event.peer, event.payload)


class EventRouter:
    def __init__(
        self,
        listeners: Listeners,
        *,
        outgoing: OutgoingHandles,
        incoming: IncomingHandles,
        binding_requests: BindingRequests,
    ) -> None:
        self._listeners = listeners
        self._outgoing = outgoing
        self._incoming = incoming
        self._binding_requests = binding_requests

    def on_event(self, event: events.Event) -> None:
        if isinstance(event, events.MessageReceived):
            self._listeners.on_message(event)
        elif isinstance(event, events.MessageDelivered):
            self._outgoing.on_message_outcome(event.message_id)
        elif isinstance(event, events.MessageFailed):
            self._outgoing.on_message_outcome(event.message_id, event.error)
        elif isinstance(event, events.BufferSent):
            self._outgoing.on_buffer_outcome(event.buffer_id)
        elif isinstance(event, events.BufferFailed):
            self._outgoing.on_buffer_outcome(event.buffer_id, event.error)
        elif isinstance(event, events.DigestNeeded):
            self._outgoing.on_digest_needed(event.buffer_id)
        elif isinstance(event, events.BufferArrived):
            self._incoming.on_arrived(event)
        elif isinstance(event, events.IncomingFailed):
            self._incoming.on_failed(event)
        elif isinstance(event, events.RelayEnded):
            self._incoming.on_relay_ended(event.buffer_id)
        elif isinstance(event, events.RelayLate):
            self._incoming.on_relay_late(event.buffer_id)
        elif isinstance(event, events.StunReceived):
            self._binding_requests.on_packet(event.address, event.packet)
        else:
            self._listeners.on_peer_event(event)
