"""Every row for real, in small: each way moves real bytes between real processes.

A round whose bytes are wrong ends the run, so what comes back here has been checked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from comfy_cluster.benchmarks.measure import able_ways
from comfy_cluster.benchmarks.results import Table
from comfy_cluster.benchmarks.rows import ROWS
from comfy_cluster.benchmarks.session import BenchmarkOptions, Session
from comfy_cluster.benchmarks.transfers import Transfer, collective, one_image, point_to_point
from comfy_cluster.benchmarks.ways import WAYS

pytestmark = pytest.mark.integration

ROUNDS = 2
SURE_WAYS = {"ours", "ours-udp", "gloo", "tcp"}  # the others may be missing, with a reason
OPTIONS = BenchmarkOptions(
    rounds=ROUNDS,
    megabytes=(1.0,),
    instance_counts=(3,),
    message_count=100,
    idle_seconds=0.2,
    codecs=("raw", "png", "auto"),
    image_side=64,
)


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    """One for all rows, so that processes start twice only: two of them, then three."""
    with Session(OPTIONS, os.environ) as session:
        yield session


def run(session: Session, name: str) -> Table:
    (table,) = ROWS[name].run(session)
    return table


def ways_of(table: Table, expected: set[str]) -> dict[str, dict[str, Any]]:
    """The ways' values; those that are expected are there, or it is said why not."""
    ways = {each["way"]: each for each in table.values["ways"]}
    assert ways.keys() | table.values["missing"].keys() == expected
    assert ways.keys() >= SURE_WAYS
    assert [line[0] for line in table.lines] == list(ways)
    return ways


def check_comparison(table: Table, transfer: Transfer) -> None:
    ways = ways_of(table, set(able_ways(list(WAYS), transfer)))
    assert table.values["delivered_bytes"] == transfer.delivered_bytes
    for name, values in ways.items():
        assert len(values["seconds"]) == ROUNDS
        assert all(seconds > 0 for seconds in values["seconds"])
        assert values["is_checked"] is (name != "iperf3")
        assert sum(values["cpu_seconds_per_gb"].values()) > 0
    for own in ("ours", "ours-udp"):
        assert table.values["ratios"][own].keys() == ways.keys() - {own}


def test_point_to_point(session: Session) -> None:
    check_comparison(run(session, "point-to-point"), point_to_point(1.0))


def test_an_image_goes_to_the_leader(session: Session) -> None:
    check_comparison(run(session, "image"), one_image())


def test_small_messages(session: Session) -> None:
    table = run(session, "messages")
    expected = {name for name, way in WAYS.items() if way.has_python}
    for values in ways_of(table, expected).values():
        assert values["round_trip_count"] == OPTIONS.message_count
        assert 0 < values["p50_seconds"] <= values["p99_seconds"]
        assert values["messages_per_second"] > 0


def test_codecs(session: Session) -> None:
    if ROWS["codecs"].missing is not None:
        pytest.skip(ROWS["codecs"].missing)
    *alone, image, batch, noisy, latent = ROWS["codecs"].run(session)
    for table in alone:
        for specimen in table.values["specimens"]:
            assert [each["codec"] for each in specimen["codecs"]] == ["raw", "png"]
            assert all(each["is_exact"] for each in specimen["codecs"])
    for table in (image, batch, noisy, latent):
        codecs = {each["codec"]: each for each in table.values["codecs"]}
        assert codecs.keys() - {"shared memory"} == set(OPTIONS.codecs)
        assert ("shared memory" in codecs) == (table is image)
        assert table.values["best"] in ("raw", "png")
        for name, values in codecs.items():
            assert len(values["seconds"]) == ROUNDS
            assert values["is_checked"]
            assert sum(values["chosen"].values()) == ROUNDS
            assert name not in ("raw", "png") or values["chosen"] == {name: ROUNDS}
        assert codecs["raw"]["sent_bytes"] > table.values["tensor_bytes"]
    sent = {each["codec"]: each["sent_bytes"] for each in batch.values["codecs"]}
    assert sent["png"] < sent["raw"] / 2
    assert any("benchmarks.netlab.codecs" in note for note in latent.notes)


@pytest.mark.parametrize("name", ["busy-python", "busy-torch"])
def test_busy_processes(session: Session, name: str) -> None:
    table = run(session, name)
    expected = {way for way, info in WAYS.items() if info.has_python}
    for way, values in ways_of(table, expected).items():
        kept = values["idle"]["median_seconds"] / values["loaded"]["median_seconds"]
        assert table.values["rate_kept"][way]["idle"] == kept
        assert ("elsewhere" in values) == (name == "busy-python")
        assert len(values["loaded"]["seconds"]) == ROUNDS


@pytest.mark.parametrize("name", ["fan-out", "fan-in", "broadcast"])
def test_collectives_of_three(session: Session, name: str) -> None:
    transfer = next(collective(kind, 3, 1.0) for kind in WAYS["ours"].kinds if kind.value == name)
    check_comparison(run(session, name), transfer)


def test_all_gather_of_three(session: Session) -> None:
    table = run(session, "all-gather")
    ways = ways_of(table, {name for name, way in WAYS.items() if way.has_python})
    assert table.values["delivered_bytes"] == 6 * 1_000_000
    assert all(values["cpu_seconds_per_gb"].keys() == {"both"} for values in ways.values())


def test_idle(session: Session) -> None:
    ways = ways_of(run(session, "idle"), {name for name, way in WAYS.items() if way.has_python})
    for values in ways.values():
        assert len(values["core_shares"]) == 3
        assert all(share >= 0 for share in values["core_shares"])
