"""Choices that are used again, for tensors that resemble the last one."""

from __future__ import annotations

import torch

from comfy_cluster.cluster.links import Link
from comfy_cluster.cluster.recent import USES, Kind, RecentChoices

LINK = Link(frozenset({"raw", "zstd"}), takes_parts=True, rate=1e8)


def kind(
    shape: tuple[int, ...] = (1, 8, 8, 3), *, rate: float = 1e8, seems_levels: bool = True
) -> Kind:
    link = Link(LINK.codecs, takes_parts=True, rate=rate)
    return Kind.of(torch.zeros(shape), link, seems_levels=seems_levels, is_image=True)


def test_a_choice_is_used_some_times_and_then_looked_at_again() -> None:
    recent: RecentChoices[str] = RecentChoices()
    assert recent.take(kind()) is None
    recent.put(kind(), "zstd")
    assert [recent.take(kind()) for _ in range(USES + 1)] == ["zstd"] * USES + [None]


def test_other_shapes_rates_and_contents_are_other_kinds() -> None:
    recent: RecentChoices[str] = RecentChoices()
    recent.put(kind(), "zstd")
    assert recent.take(kind((2, 8, 8, 3))) is None
    assert recent.take(kind(rate=3e8)) is None
    assert recent.take(kind(seems_levels=False)) is None
    assert recent.take(kind(rate=1.01e8)) == "zstd"


def test_only_so_many_kinds_are_remembered() -> None:
    recent: RecentChoices[int] = RecentChoices()
    for size in range(1000):
        recent.put(kind((1, size + 1)), size)
    assert recent.take(kind((1, 1))) is None
    assert recent.take(kind((1, 1000))) == 999
