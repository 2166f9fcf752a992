"""Processes that use one store at the same time; what `test_stores_shared.py` starts.

Run as a program with a mode of `MODES` and the store's URL; says "ok" at its end.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback

from stun_server.store import AuditEvent, ClusterView, Lease, Renewal, Store, open_store

INSTANCES = 25  # that each writer registers
CHILDREN = 3


def write(url: str, writer: int) -> list[int]:
    """Registers instances of its own in one cluster, with heartbeats; their generations."""
    store = open_store(url)
    generations = []
    for number in range(INSTANCES):
        instance_id = f"{writer}.{number}"
        generations.append(register(store, instance_id))
        renewal = store.renew("a", instance_id, "run", ttl=600.0, wall=1.0)
        assert renewal is Renewal.RENEWED, (instance_id, renewal)
    for number in range(0, INSTANCES, 5):
        remove(store, f"{writer}.{number}")
        store.count("bucket", window=3600.0, wall=7200.0)
    store.close()
    return generations


def register(store: Store, instance_id: str) -> int:
    def step(view: ClusterView) -> int:
        generation = view.next_generation()
        view.put(
            Lease(
                *(instance_id, "run", "10.0.0.1", 8189, "FOLLOWER"),
                generation=generation,
                registered_at=0.0,
                last_ping_at=0.0,
                expires_at=view.now + 600.0,
            )
        )
        view.bump()
        view.record(AuditEvent(0.0, "register", "a", instance_id))
        return generation

    return store.update("a", step)


def remove(store: Store, instance_id: str) -> None:
    def step(view: ClusterView) -> None:
        view.delete(instance_id)
        view.bump()

    store.update("a", step)


def fork_with_connections(url: str) -> None:
    """Forks while the parent has connections, and threads of it use them; all of them write.

    With Redis no thread does: redis-py's locks are its own. gunicorn forks before there are any.
    """
    store = open_store(url)
    register(store, "parent")
    register(store, "busy")
    stopping = threading.Event()
    count = 2 if url.startswith("sqlite") else 0
    busy = [threading.Thread(target=_keep_busy, args=(store, stopping)) for _ in range(count)]
    for thread in busy:
        thread.start()
    children = [_fork(store, number) for number in range(CHILDREN)]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    stopping.set()
    for thread in busy:
        thread.join()
    register(store, "afterwards")
    store.close()
    assert statuses == [0] * CHILDREN, statuses


def _keep_busy(store: Store, stopping: threading.Event) -> None:
    while not stopping.wait(0.001):
        store.renew("a", "parent", "run", ttl=600.0, wall=1.0)
        store.listing("a")
        register(store, "busy")


def _fork(store: Store, number: int) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        for each in range(INSTANCES):
            register(store, f"child-{number}.{each}")
        store.close()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


MODES = {"fork": fork_with_connections}

if __name__ == "__main__":
    MODES[sys.argv[1]](sys.argv[2])
    print("ok")
