from __future__ import annotations

from comfy_cluster.protocol import inbox, outbox
from comfy_cluster.protocol.inbox import Inbox
from comfy_cluster.wire import LARGEST_ACK


def acked(box: Inbox) -> list[int]:
    return [message_id for ack in box.take_acks() for message_id in ack.message_ids]


def test_a_message_is_new_once_and_acknowledged_every_time() -> None:
    box = Inbox()
    assert box.on_message(7)
    assert acked(box) == [7]
    assert not box.on_message(7)
    assert acked(box) == [7]
    assert acked(box) == []


def test_acks_go_together_and_fit_their_bound() -> None:
    box = Inbox()
    for message_id in range(2 * LARGEST_ACK + 1):
        box.on_message(message_id)
        box.on_message(message_id)
    acks = box.take_acks()
    assert [len(ack.message_ids) for ack in acks] == [LARGEST_ACK, LARGEST_ACK, 1]


def test_memory_covers_what_a_sender_may_have_under_way_and_is_bounded() -> None:
    assert inbox.MEMORY >= 2 * outbox.SPAN
    box = Inbox()
    for message_id in range(3 * inbox.MEMORY):
        box.on_message(message_id)
    assert len(box._seen) == inbox.MEMORY
    assert not box.on_message(3 * inbox.MEMORY - outbox.SPAN)
