"""Which codec a tensor travels with, and why."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch

from comfy_cluster import codec
from comfy_cluster.cluster.choice import Choice, CodecChooser
from comfy_cluster.cluster.forecast import CodecSpeeds, Stage, Work
from comfy_cluster.cluster.links import Link
from comfy_cluster.config import ClusterConfig, Codec, ImagePrecision

ALL = frozenset(codec.CODECS)


def link(rate: float, codecs: frozenset[str] = ALL, *, shares_memory: bool = False) -> Link:
    return Link(codecs, takes_parts=True, rate=rate, shares_memory=shares_memory)


def chooser(**settings: object) -> CodecChooser:
    config = dataclasses.replace(ClusterConfig(), **settings)  # type: ignore[arg-type]
    return CodecChooser(config, CodecSpeeds(), thread_count=2)


def choice(tensor: torch.Tensor, on: Link, *, is_image: bool = False, **settings: object) -> Choice:
    choosing = chooser(**settings)
    return choosing.quick_choice(tensor, on) or choosing.choose(tensor, on, is_image=is_image)


def photograph(count: int = 1) -> torch.Tensor:
    """8-bit images [count,1024,1024,3] with slopes and some noise, as float32."""
    generator = torch.Generator().manual_seed(1)
    slope = torch.arange(1024).reshape(1, -1, 1, 1) // 8
    levels = slope + torch.randint(0, 6, (count, 1024, 1024, 3), generator=generator)
    return levels.to(torch.float32).div_(torch.full((1,), 255.0))


NOISE = torch.randn(1, 16, 256, 256, generator=torch.Generator().manual_seed(2))


def test_small_tensors_go_raw_without_a_look() -> None:
    found = choice(torch.zeros(8, 8), link(1e8))
    assert (found.codec, found.reason) == ("raw", "small")


def test_floats_of_a_few_milliseconds_go_raw_without_a_look() -> None:
    at = link(NOISE.nbytes / 0.008)
    assert choice(NOISE, at).reason == "small"
    levels = torch.zeros(NOISE.shape)
    assert choice(levels, at).reason == "forecast"
    slower = link(NOISE.nbytes / 0.04)
    assert choice(NOISE, slower).reason == "forecast"


def test_what_shares_memory_goes_raw() -> None:
    found = choice(photograph(), link(1e3, shares_memory=True))
    assert (found.codec, found.reason) == ("raw", "shared_memory")


def test_what_stays_on_this_machine_goes_raw() -> None:
    found = choice(photograph(), Link(ALL, takes_parts=True, rate=1e3, is_local=True))
    assert (found.codec, found.reason) == ("raw", "local")


def test_slower_links_get_smaller_payloads() -> None:
    image = photograph(4)
    order = ["raw", "raw8", "bitpack", "lz4", "zstd", "webp"]
    chosen = [choice(image, link(rate)).codec for rate in (1e12, 2e9, 1e8, 2e7, 1e4)]
    places = [order.index(name) for name in chosen]
    assert places == sorted(places)
    assert chosen[0] == "raw" and chosen[-1] == "webp"
    assert len(set(chosen)) >= 4


def test_floats_are_compressed_where_the_link_is_slower_than_that() -> None:
    smooth = torch.linspace(0, 1, 1 << 21).reshape(2, 1024, 1024)
    assert choice(smooth, link(1e7)).codec in ("lz4", "zstd")
    assert choice(NOISE, link(1e11)).codec == "raw"


def test_random_bits_go_raw_on_any_link() -> None:
    generator = torch.Generator().manual_seed(3)
    bits = torch.randint(-(1 << 62), 1 << 62, (1 << 19,), generator=generator)
    assert choice(bits, link(1e6)).codec == "raw"


def test_only_codecs_of_the_link_are_chosen() -> None:
    image = photograph()
    assert choice(image, link(1e5, frozenset({"raw", "png"}))).codec == "png"
    assert choice(image, link(1e5, frozenset({"raw"}))).codec == "raw"


@pytest.mark.parametrize("name", codec.CODECS)
def test_the_setting_forces_any_codec(name: str) -> None:
    found = choice(photograph(), link(1e9), codec=Codec(name))
    assert (found.codec, found.reason) == (name, "forced")


def test_a_forced_codec_that_the_link_lacks_says_so() -> None:
    found = choice(photograph(), link(1e9, frozenset({"raw"})), codec=Codec.ZSTD)
    assert found.codec == "raw"
    assert found.text == "COMFY_CLUSTER_CODEC is zstd, which a receiver does not have"


def test_floats_that_will_be_rounded_are_judged_as_levels() -> None:
    noisy = photograph() + 1e-3 * torch.randn(
        1, 1024, 1024, 3, generator=torch.Generator().manual_seed(4)
    )
    only = link(2e9, frozenset({"raw", "raw8"}))
    settings = {"image_precision": ImagePrecision.UINT8}
    assert choice(noisy, only, is_image=True, **settings).codec == "raw8"
    assert choice(noisy, only, is_image=False, **settings).codec == "raw"
    assert choice(noisy, only, is_image=True).codec == "raw"


def test_a_choice_is_counted_and_told(caplog: pytest.LogCaptureFixture) -> None:
    choosing = chooser()
    image = photograph()
    found = choosing.choose(image, link(1e7), is_image=True)
    with caplog.at_level(logging.DEBUG, "comfy_cluster.cluster"):
        choosing.count(found, image)
    stats = choosing.stats()
    assert stats[f"codec_{found.codec}"] == 1
    assert stats["codec_choices_forecast"] == 1
    assert sum(stats.values()) == 2
    assert f"> [1, 1024, 1024, 3] torch.float32 as {found.codec}: expected at 10 MB/s: raw " in (
        caplog.text
    )


def test_learned_speeds_change_the_choice() -> None:
    image, at = photograph(), link(1e8)
    choosing = chooser()
    first = choosing.choose(image, at, is_image=True).codec
    assert first != "raw"
    for _ in range(50):  # this machine turns out to be far too slow for it
        choosing.speeds.learn(Stage(first, Work.ENCODE, is_levels=True), image, seconds=60.0)
    assert choosing.choose(image, at, is_image=True).codec == "raw"


def test_one_stall_turns_no_compression_off() -> None:
    image, at = photograph(4), link(1e8)
    choosing = chooser()
    for name in ("lz4", "zstd", "raw8"):
        choosing.speeds.learn(Stage(name, Work.ENCODE, is_levels=True), image, seconds=30.0)
    assert choosing.choose(image, at, is_image=True).codec != "raw"


def test_raw_is_always_possible() -> None:
    assert choice(photograph(), link(1e5, frozenset({"a later one"}))).codec == "raw"


def test_tensors_with_gradient_or_negative_bit_are_looked_at() -> None:
    image = photograph()
    for tensor in (image.clone().requires_grad_(), torch._neg_view(image.neg())):
        found = choice(tensor, link(tensor.nbytes / 0.008))
        assert found.reason == "forecast"
