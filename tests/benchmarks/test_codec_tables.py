"""The tables of the codecs: what they are made of, and what is said about `auto`."""

from __future__ import annotations

import json

import pytest

from comfy_cluster.benchmarks.codec_links import (
    SHARED_MEMORY_WAY,
    Entry,
    codecs_to_compare,
    link_table,
    link_transfers,
)
from comfy_cluster.benchmarks.forms import Form, Specimen, Timing, forms_table
from comfy_cluster.benchmarks.results import Round, WayResult
from comfy_cluster.benchmarks.transfers import Content
from comfy_cluster.benchmarks.ways import ALL_WAYS, CODEC_WAYS, WAYS, codec_way
from comfy_cluster.codec.image_codecs import CODECS, available_codecs

SIZE = 1_000_000  # bytes of tensor
ONE = Specimen("one", Content.PHOTOGRAPH, (1, 8, 8, 3))
TWO = Specimen("two", Content.SOFT_MASK, (1, 8, 8), "float16")


def form(codec: str, taken: str, size: int, *, is_exact: bool = True) -> Form:
    encoded = (Timing(0.004, 0.001), Timing(0.002, 0.001), Timing(0.003, 0.002))
    return Form(codec, taken, SIZE, size, is_exact, encoded, encoded[:1])


def entry(name: str, *seconds: float, sent: int, way: str = "", **counted: int) -> Entry:
    """Rounds of a batch of 2, in each of which `sent` bytes left."""
    result = WayResult(
        way or codec_way(name),
        SIZE,
        tuple(Round(each, 0.002, 0.004, 0.0) for each in seconds),
        counted={"bytes_sent": sent * len(seconds), **counted},
    )
    return Entry(name, result, 2, SIZE)


def test_forms_stand_specimen_by_specimen() -> None:
    forms = {
        ONE: [form("raw", "raw", SIZE), form("lz4", "lz4", SIZE // 8)],
        TWO: [form("webp", "raw", SIZE, is_exact=False)],
    }
    table = forms_table("codecs", "a title", forms)
    assert table.lines == (
        ("one", "raw", "raw", "1.00", "3.00", "1.00", "4.00", "1.00", "yes"),
        ("", "lz4", "lz4", "8.00", "3.00", "1.00", "4.00", "1.00", "yes"),
        ("two", "webp", "raw", "1.00", "3.00", "1.00", "4.00", "1.00", "NO"),
    )
    assert len(table.columns) == len(table.lines[0])
    one, two = json.loads(json.dumps(table.to_json()))["specimens"]
    assert (one["name"], one["content"], one["dtype"]) == ("one", "8-bit photograph", "float32")
    assert one["codecs"][1]["ratio"] == 8.0
    assert one["codecs"][1]["encode"]["seconds"] == [0.004, 0.002, 0.003]
    assert two["codecs"][0] | {"taken": "raw", "is_exact": False} == two["codecs"][0]
    assert any(note.startswith("fewer than 7 rounds") for note in table.notes)


def test_auto_is_told_against_the_best_codec_and_raw() -> None:
    entries = [
        entry("raw", 0.040, 0.044, sent=SIZE + 1000, codec_raw=2),
        entry("lz4", 0.020, 0.020, sent=SIZE // 5, codec_lz4=2),
        entry("webp", 0.040, 0.044, sent=SIZE + 1000, codec_webp=2),
        entry("auto", 0.020, 0.024, sent=SIZE // 5, codec_lz4=1, codec_raw8=1, codec_raw=0),
        entry("shared memory", 0.008, 0.012, sent=0, way=SHARED_MEMORY_WAY, shared_bytes_sent=2),
    ]
    table = link_table("a title", "a link", link_transfers(64)[1], entries, missing={"x": "gone"})
    assert table.lines == (
        ("raw", "21.00", "20.00", "3.00", "2.10 x", "1.00 x", "1.00", "raw 2x"),
        ("lz4", "10.00", "10.00", "3.00", "1.00 x", "2.10 x", "0.20", "lz4 2x"),
        ("webp", "21.00", "20.00", "3.00", "2.10 x", "1.00 x", "1.00", "webp 2x, no smaller"),
        ("auto", "11.00", "10.00", "3.00", "1.10 x", "1.91 x", "0.20", "lz4 1x, raw8 1x"),
        ("shared memory", "5.00", "4.00", "3.00", "0.50 x", "4.20 x", "0.00", ""),
    )
    assert len(table.columns) == len(table.lines[0])
    assert table.notes[0] == (
        "auto takes 1.10 times as long as the best, lz4; by the fastest round of each 1.00 times"
    )
    assert "x is left out: gone" in table.notes
    value = json.loads(json.dumps(table.to_json()))
    assert (value["best"], value["link"], value["shape"]) == ("lz4", "a link", [8, 64, 64, 3])
    assert value["auto_to_best"] == value["codecs"][3]["to_best"] == pytest.approx(1.1)
    assert value["auto_to_best_least"] == 1.0
    assert value["codecs"][3]["chosen"] == {"lz4": 1, "raw8": 1}
    assert value["codecs"][0]["seconds"] == [0.040, 0.044]


def test_without_another_codec_auto_is_told_against_nothing() -> None:
    entries = [entry("auto", 0.02, sent=5, codec_raw=1)]
    table = link_table("a title", "a link", link_transfers(64)[0], entries, missing={})
    assert table.lines[0][4:6] == ("-", "-")
    assert (table.values["best"], table.values["auto_to_best"]) == (None, None)
    assert table.values["auto_to_best_least"] is None


def test_every_codec_is_a_way_that_other_rows_do_not_have() -> None:
    assert CODEC_WAYS.keys() == {codec_way(name) for name in (*CODECS, "auto")}
    assert not CODEC_WAYS.keys() & WAYS.keys()
    assert ALL_WAYS.keys() == CODEC_WAYS.keys() | WAYS.keys()


def test_codecs_are_compared_in_one_order_as_far_as_they_are_wanted() -> None:
    assert codecs_to_compare(()) == [*available_codecs(), "auto"]
    assert codecs_to_compare(["auto", "png", "raw"]) == ["raw", "png", "auto"]
