"""Tensors of a CUDA device on their way to the codec; where there is one."""

from __future__ import annotations

import threading

import pytest
import torch

from comfy_cluster.codec import CODECS, Assembly, decode, encode, parts_of
from comfy_cluster.codec.device import pinned_copy, when_written

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def images() -> torch.Tensor:
    levels = torch.arange(4 * 512 * 512 * 3).reshape(4, 512, 512, 3) // 97 % 251
    return levels.to(torch.float32).div_(torch.full((1,), 255.0))


def test_a_tensor_in_main_memory_needs_no_event() -> None:
    assert when_written(torch.zeros(3)) is None


@needs_cuda
@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_takes_tensors_from_there(codec: str) -> None:
    image = images()
    there = image.cuda()
    payload = encode(there, codec=codec, written=when_written(there))
    assert torch.equal(decode(payload.prefix + bytes(payload.body)), image)


@needs_cuda
def test_the_copy_waits_for_what_was_queued_before() -> None:
    image = images().cuda()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # type: ignore[no-untyped-call]
        doubled = image * 2
        written = when_written(doubled)
    found: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: found.append(pinned_copy(doubled, written)))
    thread.start()
    thread.join()
    assert found[0].is_pinned()
    assert torch.equal(found[0], images() * 2)


@needs_cuda
def test_parts_of_any_strides_come_together() -> None:
    there = images().cuda().permute(0, 3, 1, 2)
    assembly = None
    for part in parts_of(there):
        payload = encode(part.values, codec="zstd", place=part.place, written=when_written(there))
        data = payload.prefix + bytes(payload.body)
        assembly = assembly or Assembly(data)
        assembly.add(part.index, data)
    assert assembly is not None
    assert torch.equal(assembly.finish(), there.cpu())
