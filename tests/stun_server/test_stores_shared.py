"""Both stores used by several processes at once: nothing is lost, no fork does harm."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from stun_server.store import Store, open_store
from tests.stun_server.servers import ROOT
from tests.stun_server.store_writers import CHILDREN, INSTANCES, register, write

PROCESSES = 3
TIMEOUT = 60.0  # seconds of all processes together


@pytest.mark.integration
def test_writers_in_several_processes_lose_nothing(store_url: str) -> None:
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        writers = [pool.apply_async(write, (store_url, writer)) for writer in range(PROCESSES)]
        generations = [each for writer in writers for each in writer.get(TIMEOUT)]
    assert len(set(generations)) == len(generations) == PROCESSES * INSTANCES
    store = open_store(store_url)
    kept = sorted(lease.instance_id for lease in store.listing("a").leases)
    assert kept == sorted(
        f"{writer}.{number}"
        for writer in range(PROCESSES)
        for number in range(INSTANCES)
        if number % 5
    )
    assert {lease.last_ping_at for lease in store.listing("a").leases} == {1.0}
    assert len(store.audit("a", limit=1000)) == PROCESSES * INSTANCES
    assert store.count_of("bucket", window=3600.0, wall=7200.0) == PROCESSES * INSTANCES / 5
    store.close()


def test_writers_in_several_threads_lose_nothing(store_url: str) -> None:
    store = open_store(store_url)
    before = _revision_after_first(store)
    threads = [
        threading.Thread(
            target=lambda writer=writer: [
                register(store, f"{writer}.{number}") for number in range(10)
            ]
        )
        for writer in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    listing = store.listing("a")
    assert len(listing.leases) == 61
    assert listing.revision >= before + 60
    store.close()


def _revision_after_first(store: Store) -> int:
    register(store, "first")
    return store.listing("a").revision


@pytest.mark.integration
def test_a_fork_while_the_store_is_used_does_no_harm(store_url: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-W", "ignore::DeprecationWarning"),
            *("-m", "tests.stun_server.store_writers", "fork", store_url),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        told, errors = process.communicate(timeout=TIMEOUT)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # children that hang outlive their parent
    assert (process.returncode, told) == (0, "ok\n"), errors
    store = open_store(store_url)
    assert len(store.listing("a").leases) == CHILDREN * INSTANCES + 3
    events = store.audit("a", limit=10_000)
    assert sum(event.instance_id.startswith("child-") for event in events) == CHILDREN * INSTANCES
    store.close()
    for path in tmp_path.glob("*.sqlite3"):
        with sqlite3.connect(path) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()
