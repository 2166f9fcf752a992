from __future__ import annotations

import random

from comfy_cluster.protocol.budget import IncomingBudget
from comfy_cluster.protocol.incoming_buffer import IncomingBuffer
from comfy_cluster.protocol.incoming_queue import LARGEST_OPEN, IncomingQueue
from comfy_cluster.wire import BufferAnnouncement, MessageType
from tests.unit.protocol.fake_engine import key_of

KIND = MessageType.DISTRIBUTE_BUFFER_FANIN


def make(number: int, size: int, *, claimed: bool = False, peer: int = 1) -> IncomingBuffer:
    announcement = BufferAnnouncement(number, size, 1_148, bytes(16), key_of(f"n{number}"))
    return IncomingBuffer(peer, KIND, announcement, number, claimed)


def fill(queue: IncomingQueue, *buffers: IncomingBuffer) -> None:
    for buffer in buffers:
        queue.add(buffer)


def pop(queue: IncomingQueue, budget: IncomingBudget) -> int | None:
    buffer = queue.pop_next()
    if buffer is None:
        return None
    budget.take(buffer.size, is_claimed=buffer.is_claimed, is_returning=buffer.is_returning)
    return buffer.buffer_id


def test_claimed_buffers_come_first_each_kind_in_its_order() -> None:
    budget = IncomingBudget(1_000)
    queue = IncomingQueue(budget)
    fill(queue, make(1, 10), make(2, 10), make(3, 10, claimed=True), make(4, 10, claimed=True))
    assert [pop(queue, budget) for _ in range(5)] == [3, 4, 1, 2, None]


def test_large_claimed_buffer_is_not_overtaken() -> None:
    budget = IncomingBudget(1_000)
    queue = IncomingQueue(budget)
    budget.take(100, is_claimed=True)
    fill(queue, make(1, 950, claimed=True), make(2, 10, claimed=True, peer=2), make(3, 10))
    assert pop(queue, budget) is None
    budget.give_back(100, is_claimed=True)
    assert pop(queue, budget) == 1


def test_returning_buffer_needs_no_room_once_it_is_claimed() -> None:
    budget = IncomingBudget(1_000)
    queue = IncomingQueue(budget)
    budget.take(900, is_claimed=True)
    returning = make(2, 500)
    returning.is_returning = True
    fill(queue, make(1, 500, claimed=True), returning)
    assert pop(queue, budget) is None
    queue.set_claimed(returning, True)
    assert [pop(queue, budget), pop(queue, budget)] == [2, None]


def test_returning_buffers_together_take_no_more_than_the_budget_once_more() -> None:
    budget = IncomingBudget(1_000)
    queue = IncomingQueue(budget)
    budget.take(900, is_claimed=True)
    returning = [make(number, 400, claimed=True) for number in range(1, 5)]
    for buffer in returning:
        buffer.is_returning = True
    fill(queue, *returning)
    assert [pop(queue, budget) for _ in range(3)] == [1, 2, None]
    queue.on_closed(1)
    budget.give_back(400, is_claimed=True, is_returning=True)
    assert [pop(queue, budget) for _ in range(2)] == [3, None]


def test_unclaimed_buffer_above_their_share_blocks_nobody_and_goes_when_claimed() -> None:
    budget = IncomingBudget(1_000)
    queue = IncomingQueue(budget)
    large = make(1, 600)
    fill(queue, large, make(2, 10))
    assert [pop(queue, budget), pop(queue, budget)] == [2, None]
    queue.set_claimed(large, True)
    assert pop(queue, budget) == 1


def test_peer_with_all_its_places_taken_does_not_block_the_others() -> None:
    budget = IncomingBudget(1_000_000)
    queue = IncomingQueue(budget)
    fill(queue, *(make(number, 10) for number in range(1, LARGEST_OPEN + 3)))
    fill(queue, make(900, 10, peer=2))
    popped = [pop(queue, budget) for _ in range(LARGEST_OPEN + 2)]
    assert popped[:-2] == list(range(1, LARGEST_OPEN + 1))
    assert popped[-2:] == [900, None]
    queue.on_closed(1)
    assert pop(queue, budget) == LARGEST_OPEN + 1


def test_random_use_leaves_nothing_behind_and_pops_every_buffer(rng: random.Random) -> None:
    budget = IncomingBudget(1_000)
    queue = IncomingQueue(budget)
    waiting: dict[int, IncomingBuffer] = {}
    opened: list[IncomingBuffer] = []
    for number in range(1, 2_000):
        buffer = make(
            number, rng.randrange(1_500), claimed=rng.random() < 0.5, peer=rng.randrange(4)
        )
        waiting[number] = buffer
        queue.add(buffer)
        if waiting and rng.random() < 0.3:
            chosen = rng.choice(list(waiting.values()))
            queue.set_claimed(chosen, not chosen.is_claimed)
        while (popped := queue.pop_next()) is not None:
            del waiting[popped.buffer_id]
            budget.take(popped.size, is_claimed=popped.is_claimed)
            opened.append(popped)
        if opened and rng.random() < 0.9:
            done = opened.pop(rng.randrange(len(opened)))
            queue.on_closed(done.peer)
            budget.give_back(done.size, is_claimed=done.is_claimed)
    for buffer in list(waiting.values()):
        queue.remove(buffer)
    for buffer in opened:
        queue.on_closed(buffer.peer)
    assert len(queue) == 0 and not queue._lanes
