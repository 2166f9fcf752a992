"""Who sends which part to whom, and the tensors that are sent."""

from __future__ import annotations

import pytest
import torch

from comfy_cluster.benchmarks.tensors import Tensors, check_value
from comfy_cluster.benchmarks.transfers import (
    BATCH,
    Kind,
    Leg,
    Transfer,
    all_gather,
    collective,
    one_image,
    point_to_point,
)


@pytest.mark.parametrize(
    ("kind", "legs"),
    [
        (Kind.BROADCAST, [Leg(0, 1, 0), Leg(0, 2, 0)]),
        (Kind.FAN_OUT, [Leg(0, 1, 1), Leg(0, 2, 2)]),
        (Kind.FAN_IN, [Leg(1, 0, 1), Leg(2, 0, 2)]),
        (
            Kind.ALL_GATHER,
            [Leg(0, 1, 0), Leg(0, 2, 0), Leg(1, 0, 1), Leg(1, 2, 1), Leg(2, 0, 2), Leg(2, 1, 2)],
        ),
    ],
)
def test_the_legs_are_those_of_the_collective(kind: Kind, legs: list[Leg]) -> None:
    transfer = Transfer(kind, (6, 5), 3)
    assert list(transfer.legs) == legs
    part = 2 * 5 if transfer.is_split else 6 * 5
    assert transfer.delivered_bytes == len(legs) * part * 4


def test_a_source_other_than_the_leader_sends() -> None:
    assert one_image().legs == (Leg(1, 0, 0),)
    assert one_image().tensor_bytes == 1024 * 1024 * 3 * 4


def test_sizes_are_those_that_were_asked_for() -> None:
    assert point_to_point(101).tensor_bytes == 101_000_000
    assert collective(Kind.FAN_IN, 4).shape == BATCH
    assert collective(Kind.FAN_IN, 3).shape[0] % 3 == 0
    assert collective(Kind.FAN_OUT, 4, 10.0).tensor_bytes == pytest.approx(10e6, rel=0.001)
    assert all_gather(8, 2.0).tensor_bytes == 2_000_000
    assert all_gather(8, 2.0).delivered_bytes == 8 * 7 * 2_000_000


@pytest.mark.parametrize(
    ("kind", "shape", "count", "text"),
    [
        (Kind.FAN_OUT, (7, 4), 2, "7 items cannot be shared evenly by 2"),
        (Kind.BROADCAST, (7,), 1, "two instances or more"),
        (Kind.POINT_TO_POINT, (7,), 3, "between 2 instances, not 3"),
    ],
)
def test_what_cannot_be_transferred_is_refused(
    kind: Kind, shape: tuple[int, ...], count: int, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        Transfer(kind, shape, count)


def test_after_a_fan_in_the_parts_lie_joined() -> None:
    transfer = Transfer(Kind.FAN_IN, (6, 5), 3)
    leader, follower = Tensors(transfer, 0), Tensors(transfer, 2)
    assert leader.own.keys() == {0}
    assert leader.wanted == [1, 2]
    leader.place(2).copy_(follower.own[2])
    assert torch.equal(leader.destination[4:], follower.own[2])
    assert leader.destination.shape == (6, 5)


def test_a_fan_out_cuts_the_leaders_tensor() -> None:
    leader = Tensors(Transfer(Kind.FAN_OUT, (6, 5), 3), 0)
    assert leader.source is not None
    assert torch.equal(leader.own[2], leader.source[4:])
    assert Tensors(leader.transfer, 1).source is None


def test_marks_differ_from_round_to_round_and_an_old_result_is_noticed() -> None:
    sender = Tensors(point_to_point(1.0), 0)
    sender.mark(1)
    arrived = sender.own[0].clone()
    assert check_value(arrived, is_full=True) == check_value(sender.own[0], is_full=True)
    sender.mark(2)
    assert check_value(arrived, is_full=False) != check_value(sender.own[0], is_full=False)
    arrived = sender.own[0].clone()
    arrived[12345] += 1  # not a mark: only the full comparison of the first round sees it
    assert check_value(arrived, is_full=True) != check_value(sender.own[0], is_full=True)
    assert check_value(arrived, is_full=False) == check_value(sender.own[0], is_full=False)


def test_an_image_keeps_its_levels_when_it_is_marked() -> None:
    tensors = Tensors(one_image(), 1)
    tensors.mark(3)
    levels = tensors.own[0] * 255
    assert torch.equal((levels.round() / 255), tensors.own[0])
    assert len(set(levels.round().flatten().tolist())) > 100
    shifted = tensors.own[0][:, :, 1:] - tensors.own[0][:, :, :-1]
    assert shifted.abs().mean() < 0.05, "neighbours are alike, or no codec would gain anything"
