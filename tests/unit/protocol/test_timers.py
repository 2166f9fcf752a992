from __future__ import annotations

import random

from comfy_cluster.protocol.timers import TimerKind, Timers

HELLO, MESSAGE = TimerKind.HELLO, TimerKind.MESSAGE


def test_timers_come_up_in_the_order_of_their_time() -> None:
    timers = Timers()
    timers.set(MESSAGE, "late", 3.0)
    timers.set(MESSAGE, "soon", 1.0)
    timers.set(HELLO, "soon", 2.0)
    assert timers.next_at == 1.0
    assert [timers.pop_due(10.0) for _ in range(4)] == [
        (MESSAGE, "soon"),
        (HELLO, "soon"),
        (MESSAGE, "late"),
        None,
    ]


def test_a_timer_is_due_at_its_time_and_not_before() -> None:
    timers = Timers()
    timers.set(HELLO, 1, 5.0)
    assert timers.pop_due(4.999) is None
    assert timers.pop_due(5.0) == (HELLO, 1)


def test_setting_a_timer_again_moves_it() -> None:
    timers = Timers()
    timers.set(HELLO, 1, 1.0)
    timers.set(HELLO, 1, 2.0)
    assert timers.pop_due(1.5) is None
    timers.set(HELLO, 1, 0.5)
    assert timers.next_at == 0.5
    assert timers.pop_due(1.5) == (HELLO, 1)
    assert timers.pop_due(9.0) is None


def test_cancelled_timer_never_comes_up() -> None:
    timers = Timers()
    timers.set(HELLO, 1, 1.0)
    timers.cancel(HELLO, 1)
    timers.cancel(HELLO, 2)
    assert timers.next_at is None
    assert timers.pop_due(2.0) is None


def test_memory_stays_in_proportion_to_the_timers_that_are_set() -> None:
    timers = Timers()
    for number in range(10_000):
        timers.set(MESSAGE, number % 10, float(number))
        timers.set(HELLO, number, 1.0)
        timers.cancel(HELLO, number)
    assert len(timers) == 10
    assert len(timers._heap) < 200


def test_random_operations_agree_with_a_dictionary(rng: random.Random) -> None:
    timers, model = Timers(), dict[int, float]()
    for _ in range(3_000):
        subject, at = rng.randrange(20), rng.random()
        choice = rng.randrange(3)
        if choice == 0:
            timers.set(MESSAGE, subject, at)
            model[subject] = at
        elif choice == 1:
            timers.cancel(MESSAGE, subject)
            model.pop(subject, None)
        elif (timer := timers.pop_due(at)) is not None:
            due = model.pop(timer[1])  # type: ignore[call-overload]
            assert due <= at and due == min([due, *model.values()])
        else:
            assert not model or min(model.values()) > at
        assert timers.next_at == min(model.values(), default=None)
