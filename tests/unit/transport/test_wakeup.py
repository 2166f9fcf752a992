"""A wake-up is seen exactly as long as it was not cleared after it was set."""

from __future__ import annotations

import select
import threading

from comfy_cluster.transport.wakeup import WakeUp


def is_set(wakeup: WakeUp) -> bool:
    return bool(select.select([wakeup], [], [], 0)[0])


def test_set_and_clear() -> None:
    wakeup = WakeUp()
    assert not is_set(wakeup)
    wakeup.set()
    wakeup.set()
    assert is_set(wakeup)
    wakeup.clear()
    assert not is_set(wakeup)
    wakeup.set()
    assert is_set(wakeup)
    wakeup.close()


def test_set_after_close_is_harmless() -> None:
    wakeup = WakeUp()
    wakeup.close()
    wakeup.set()


def test_no_wake_up_is_lost_between_threads() -> None:
    """Each number put before `set` is seen by the waiter, whatever the threads do in between."""
    wakeup = WakeUp()
    queue: list[int] = []
    count, seen = 5000, 0

    def produce() -> None:
        for number in range(count):
            queue.append(number)
            wakeup.set()

    thread = threading.Thread(target=produce)
    thread.start()
    while seen < count:
        ready, _, _ = select.select([wakeup], [], [], 10)
        assert ready, f"woken for {seen} of {count}"
        wakeup.clear()
        seen = len(queue)
    thread.join()
    wakeup.close()
