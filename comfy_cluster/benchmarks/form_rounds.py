"""Encodes and decodes one tensor by each codec, in turn, in this process. For instances only.

On a thread of its own, as the cluster's codec threads are: numcodecs lets go of the GIL, and shares
its work among no further threads, on all but the main one. torch has one thread meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from comfy_cluster import codec
from comfy_cluster.benchmarks.contents import LEVEL_COUNT, make_content
from comfy_cluster.benchmarks.forms import Form, Specimen, Timing
from comfy_cluster.codec import EncodedPayload

T = TypeVar("T")
SEED = 1


def measure_forms(specimen: Specimen, codecs: Sequence[str], rounds: int) -> list[Form]:
    """`rounds` times each; a round before them is checked, and does not count."""
    with ThreadPoolExecutor(1, "codec") as pool:
        return pool.submit(_measure, make_specimen(specimen), codecs, rounds).result()


def make_specimen(specimen: Specimen) -> torch.Tensor:
    """The tensor."""
    generator = torch.Generator().manual_seed(SEED)
    photograph = specimen.photograph
    values = make_content(specimen.content, specimen.shape, generator, photograph=photograph)
    if specimen.dtype == "uint8":
        return (values * (LEVEL_COUNT - 1)).round().to(torch.uint8)
    dtype: torch.dtype = getattr(torch, specimen.dtype)
    return values.to(dtype)


def _measure(tensor: torch.Tensor, codecs: Sequence[str], rounds: int) -> list[Form]:
    thread_count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        runners = [_Runner(tensor, name) for name in codecs]
        for _ in range(rounds):
            for runner in runners:
                runner.run()
        return [runner.form() for runner in runners]
    finally:
        torch.set_num_threads(thread_count)


class _Runner:
    """One codec."""

    def __init__(self, tensor: torch.Tensor, name: str) -> None:
        self._name = name
        self._tensor = tensor
        self._encoded: list[Timing] = []
        self._decoded: list[Timing] = []
        payload = self._encode()
        self._taken, self._payload_size = payload.codec, payload.size
        # Decoded to the same memory each time: the transport, too, gives memory that was in use.
        self._memory = memoryview(bytearray(tensor.nbytes))
        self._is_exact = same_bits(self._decode(_arrived(payload)), tensor)

    def _encode(self) -> EncodedPayload:
        return codec.encode(self._tensor, codec=self._name)

    def _decode(self, data: bytearray) -> torch.Tensor:
        return codec.decode(data, allocate=lambda size: self._memory[:size])

    def run(self) -> None:
        payload, encoded = _timed(self._encode)
        arrived = _arrived(payload)
        _, decoded = _timed(lambda: self._decode(arrived))
        self._encoded.append(encoded)
        self._decoded.append(decoded)

    def form(self) -> Form:
        return Form(
            self._name,
            self._taken,
            self._tensor.nbytes,
            self._payload_size,
            self._is_exact,
            tuple(self._encoded),
            tuple(self._decoded),
        )


def _arrived(payload: EncodedPayload) -> bytearray:
    """The payload as a receiver has it: in writable memory of its own."""
    return bytearray(payload.prefix) + payload.body


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether shape, dtype and every byte are equal; 0.0 and -0.0 are not, two equal NaNs are."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    octets = [each.contiguous().view(-1).view(torch.uint8) for each in (one, other)]
    return torch.equal(*octets)


def _timed(work: Callable[[], T]) -> tuple[T, Timing]:
    begun_at, cpu_begun_at = time.perf_counter(), time.thread_time()
    result = work()
    return result, Timing(time.perf_counter() - begun_at, time.thread_time() - cpu_begun_at)
