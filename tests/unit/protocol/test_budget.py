from __future__ import annotations

from comfy_cluster.protocol.budget import IncomingBudget, OutgoingBudget


def test_outgoing_buffers_share_the_budget() -> None:
    budget = OutgoingBudget(100)
    budget.take(60)
    assert budget.has_room(40)
    assert not budget.has_room(41)
    budget.give_back(60)
    assert budget.used == 0


def test_outgoing_buffer_larger_than_the_budget_goes_alone() -> None:
    budget = OutgoingBudget(100)
    assert budget.has_room(1_000)
    budget.take(1)
    assert not budget.has_room(1_000)


def test_unclaimed_buffers_use_at_most_half() -> None:
    budget = IncomingBudget(100)
    assert budget.has_room(50, is_claimed=False)
    assert not budget.has_room(51, is_claimed=False)
    budget.take(30, is_claimed=False)
    assert not budget.has_room(21, is_claimed=False)
    assert budget.has_room(70, is_claimed=True)


def test_unclaimed_buffers_leave_alone_what_claimed_ones_use() -> None:
    budget = IncomingBudget(100)
    budget.take(80, is_claimed=True)
    assert budget.has_room(20, is_claimed=False)
    assert not budget.has_room(21, is_claimed=False)


def test_a_claimed_buffer_never_waits_for_unclaimed_ones() -> None:
    budget = IncomingBudget(100)
    budget.take(50, is_claimed=False)
    assert budget.has_room(60, is_claimed=True)
    assert budget.has_room(5_000, is_claimed=True)
    budget.take(60, is_claimed=True)
    assert not budget.has_room(1, is_claimed=True)


def test_claiming_moves_the_bytes() -> None:
    budget = IncomingBudget(100)
    budget.take(40, is_claimed=False)
    budget.move(40, to_claimed=True)
    assert (budget.claimed, budget.unclaimed) == (40, 0)
    budget.move(40, to_claimed=False)
    budget.give_back(40, is_claimed=False)
    assert budget.used == 0
