"""What encoding a tensor may cost in memory, before it is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from comfy_cluster import codec
from comfy_cluster.cluster.budget import Admission, ByteBudget
from comfy_cluster.cluster.choice import CodecChooser
from comfy_cluster.cluster.forecast import CodecSpeeds
from comfy_cluster.cluster.keys import CollectiveKey
from comfy_cluster.cluster.links import Link
from comfy_cluster.cluster.payloads import Payloads
from comfy_cluster.cluster.routes import Routes
from comfy_cluster.cluster.sending import encoding_cost
from comfy_cluster.config import ClusterConfig, Codec
from comfy_cluster.transport.handle import Handle
from comfy_cluster.transport.memory import ReceivedBuffer
from comfy_cluster.wire import MessageType
from tests.unit.cluster.fake_transport import FakeClusters

KEY = CollectiveKey("job", "7").from_source(0)


class RacingBudget(ByteBudget):
    """Admits what waits at the very moment in which it is given up."""

    def admit(self, size: int) -> Handle[Admission]:
        handle = super().admit(size)
        abandon = handle.abandon

        def admit_and_abandon(error: BaseException) -> bool:
            self.held.release()
            return abandon(error)

        handle.abandon = admit_and_abandon  # type: ignore[method-assign]
        return handle

    def fill(self) -> None:
        self.held = super().admit(self.capacity).result(0)


class HeldExecutor:
    """Keeps what it is given, and runs it on demand."""

    def __init__(self) -> None:
        self.tasks: list[Callable[[], None]] = []

    def submit(self, fn: Callable[[], None], /, *, on_dropped: Callable[[str], object]) -> None:
        self.tasks.append(fn)


def make_payloads(config: ClusterConfig, budget: ByteBudget, executor: HeldExecutor) -> Payloads:
    transport = FakeClusters(2).network.transports[0]
    return Payloads(
        config,
        transport,
        executor=executor,
        budget=budget,
        chooser=CodecChooser(config, CodecSpeeds(), thread_count=1),
        link_to=lambda peers, size: Link(frozenset(codec.CODECS), takes_parts=True, rate=1e6),
        plan=lambda peers, size: Routes(tuple(peers)),
    )


def test_an_admission_that_comes_with_the_cancel_is_given_back(config: ClusterConfig) -> None:
    budget = RacingBudget(10)
    budget.fill()
    forced = dataclasses.replace(config, codec=Codec.ZSTD)
    sent = make_payloads(forced, budget, HeldExecutor()).send(
        torch.zeros(1, 2, 2, 3),
        [1],
        key=KEY,
        message_type=MessageType.DISTRIBUTE_BUFFER_BROADCAST,
        is_image=True,
        on_transfer=lambda peer, transfer: transfer,
    )
    assert budget.waiting_count == 1
    assert sent.cancel()
    assert budget.used == 0 and budget.waiting_count == 0


def test_a_buffer_that_nobody_decodes_is_released(config: ClusterConfig) -> None:
    released: list[bool] = []
    buffer = ReceivedBuffer(memoryview(bytearray(8)), lambda: released.append(True))
    executor = HeldExecutor()
    payloads = make_payloads(config, ByteBudget(10), executor)
    arrived: list[Handle[ReceivedBuffer]] = []
    key = CollectiveKey("job", "7").from_source(1)
    received = payloads.receive(key, peer=1, on_arriving=arrived.append)
    arrived[0].set_result(buffer)
    received.cancel()
    executor.tasks.pop()()
    assert released == [True]


def test_a_tensor_that_must_be_copied_costs_that_too() -> None:
    tensor = torch.zeros(4, 8, dtype=torch.int64)
    assert encoding_cost(tensor) == tensor.nbytes
    assert encoding_cost(tensor.T) == 2 * tensor.nbytes
    assert encoding_cost(torch.zeros(0, 9, 9, 3)) == 0


@pytest.mark.parametrize("name", codec.CODECS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_no_payload_is_larger_than_its_cost(dtype: torch.dtype, name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    levels = torch.randint(0, 256, (2, 32, 32, 3), generator=generator)
    image = levels.to(dtype) if dtype == torch.uint8 else levels.to(dtype) / 255.0
    payload = codec.encode(image, codec=name)
    encoded = 0 if payload.codec == "raw" else payload.size
    assert encoded <= encoding_cost(image)
