"""A byte budget: first come, first served, nothing refused."""

from __future__ import annotations

import random
import threading

from comfy_cluster.cluster.budget import Admission, ByteBudget

WAIT = 10.0  # seconds; a bound for a broken build, never waited for in a good one


def test_what_fits_is_admitted_at_once() -> None:
    budget = ByteBudget(100)
    assert budget.admit(60).done() and budget.admit(40).done()
    assert budget.used == 100


def test_more_waits_in_the_order_of_asking() -> None:
    budget = ByteBudget(100)
    first = budget.admit(80).result(0)
    second, third = budget.admit(50), budget.admit(10)
    assert not second.done()
    assert not third.done()  # it would fit, but it came later
    first.release()
    assert second.done() and third.done()
    assert budget.used == 60


def test_one_that_is_larger_than_the_budget_is_admitted_alone() -> None:
    budget = ByteBudget(100)
    small = budget.admit(1).result(0)
    large, after = budget.admit(1000), budget.admit(1)
    assert not large.done()
    small.release()
    assert large.done() and not after.done()
    large.result(0).release()
    assert after.done() and budget.used == 1


def test_nothing_waits_for_nobody() -> None:
    budget = ByteBudget(100)
    budget.admit(1000)
    budget.admit(10)
    assert budget.admit(0).done()


def test_shrinking_lets_the_next_in_and_releasing_twice_is_fine() -> None:
    budget = ByteBudget(100)
    first = budget.admit(100).result(0)
    second = budget.admit(50)
    first.shrink_to(200)
    assert budget.used == 100
    first.shrink_to(50)
    assert second.done() and budget.used == 100
    first.release()
    first.release()
    assert budget.used == 50


def test_a_cancelled_request_leaves_the_queue() -> None:
    budget = ByteBudget(100)
    first = budget.admit(90).result(0)
    second, third = budget.admit(50), budget.admit(10)
    second.cancel()
    assert third.done() and budget.waiting_count == 0
    first.release()
    third.result(0).release()
    assert budget.used == 0


def test_who_gives_back_at_once_lets_any_number_in() -> None:
    """One after the other: there may be more than Python nests calls."""
    budget = ByteBudget(100)
    first = budget.admit(100).result(0)
    waiting = [budget.admit(100).then(Admission.release) for _ in range(5000)]
    first.release()
    assert [each.exception(0) for each in waiting] == [None] * len(waiting)
    assert budget.used == 0 and budget.waiting_count == 0


def test_many_threads_never_exceed_it() -> None:
    budget = ByteBudget(100)
    largest = [0]
    lock = threading.Lock()

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(50):
            admission = budget.admit(rng.randint(0, 60)).result(WAIT)
            with lock:
                largest[0] = max(largest[0], budget.used)
            admission.release()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < largest[0] <= 100
    assert budget.used == 0


def test_shrinking_what_was_released_meanwhile_takes_nothing() -> None:
    budget = ByteBudget(100)
    admission = budget.admit(60).result(0)
    admission.release()
    admission.shrink_to(40)
    assert budget.used == 0
