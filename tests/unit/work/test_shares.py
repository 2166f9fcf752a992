"""Who gets which items, and how results are put together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_cluster.errors import WorkflowError
from comfy_cluster.work.kinds import IMAGES, LATENTS, MASKS, tell_positions
from comfy_cluster.work.shares import Offer, Piece, Share, agreed_sizes, join_pieces

examples = settings(max_examples=60, deadline=None, derandomize=True)
NAMES = {"1": "node 1 (A)", "2": "node 2 (B)"}


def numbered(count: int, start: int = 0) -> torch.Tensor:
    """Pictures of one pixel that say which they are."""
    return torch.arange(start, start + count, dtype=torch.float32).view(count, 1, 1, 1)


def numbers(value: torch.Tensor) -> list[int]:
    return [int(each) for each in value.flatten()]


def offers(*sizes: list[int]) -> dict[str, Offer]:
    return {
        str(index): Offer(IMAGES, [numbered(size) for size in each])
        for index, each in enumerate(sizes, 1)
    }


@examples
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    instances=st.integers(1, 5),
    lost=st.sets(st.integers(0, 4)),
)
def test_what_is_split_and_split_again_comes_together_again(
    sizes: list[int], instances: int, lost: set[int]
) -> None:
    whole = Share(0, tuple(map(range, sizes)))
    shares = whole.over(list(range(instances)))
    assert not any(share.is_empty for share in shares)
    others = [each for each in range(instances) if each not in lost] or [0]
    redone = [
        part
        for share in shares
        for part in (share.over(others) if share.instance in lost else [share])
    ]
    assert sum(share.item_count for share in redone) == sum(sizes)
    offer = Offer(IMAGES, [numbered(size, 100 * index) for index, size in enumerate(sizes)])
    pieces = [Piece(share, offer.slices_for(share, sizes)) for share in reversed(redone)]
    joined = join_pieces(pieces, IMAGES, batch_count=len(sizes), makes_list=False)
    expected = [value for value in offer.values if len(value)]
    assert [numbers(each) for each in joined] == [numbers(each) for each in expected]


def test_what_is_over_goes_to_the_first_and_of_the_next_batch_to_the_next() -> None:
    shares = Share(0, (range(10), range(2))).over([0, 2, 5])
    assert [share.instance for share in shares] == [0, 2, 5]
    assert [share.ranges for share in shares] == [
        (range(0, 4), range(0, 0)),
        (range(4, 7), range(0, 1)),
        (range(7, 10), range(1, 2)),
    ]
    assert shares[0].batches == [0]


def test_a_list_of_single_items_is_split_too() -> None:
    shares = Share(0, tuple(range(1) for _ in range(8))).over([0, 1, 2, 3])
    assert [share.batches for share in shares] == [[0, 4], [1, 5], [2, 6], [3, 7]]


@pytest.mark.parametrize(
    ("sizes", "agreed"),
    [
        ([[8]], (8,)),
        ([[8], [8]], (8,)),
        ([[8], [1]], (8,)),
        ([[1], [8]], (8,)),
        ([[1], [1]], (1,)),
        ([[0]], (0,)),
        ([[3, 5], [1]], (3, 5)),
        ([[3, 5], [3, 1]], (3, 5)),
        ([[1], [3, 5]], (3, 5)),
    ],
)
def test_sizes_that_agree(sizes: list[list[int]], agreed: tuple[int, ...]) -> None:
    assert agreed_sizes(offers(*sizes), NAMES) == agreed


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([[8], [7]], r"different size: node 1 \(A\) has 8 images, node 2 \(B\) has 7 images"),
        ([[8], [0]], "different size"),
        ([[0], [8]], "different size"),
        ([[3, 5], [5, 5]], r"different size: node 1 \(A\) has 3\+5 images"),
        ([[3, 5], [3, 5, 1]], "lists of different length"),
    ],
)
def test_sizes_that_do_not(sizes: list[list[int]], message: str) -> None:
    with pytest.raises(WorkflowError, match=message):
        agreed_sizes(offers(*sizes), NAMES)


def test_one_item_among_many_goes_to_everybody() -> None:
    share = Share(1, (range(4, 8), range(0, 0), range(0, 1)))
    one = Offer(IMAGES, [numbered(1)])
    assert [numbers(each) for each in one.slices_for(share, (8, 0, 1))] == [[0], [0]]
    many = Offer(IMAGES, [numbered(8), numbered(0), numbered(1, 9)])
    assert [numbers(each) for each in many.slices_for(share, (8, 0, 1))] == [[4, 5, 6, 7], [9]]


def test_lists_that_the_region_made_are_strung_together() -> None:
    pieces = [
        Piece(Share(1, (range(2, 4),)), [numbered(1, 2), numbered(1, 3)]),
        Piece(Share(0, (range(0, 2),)), [numbered(2)]),
    ]
    joined = join_pieces(pieces, IMAGES, batch_count=1, makes_list=True)
    assert [numbers(each) for each in joined] == [[0, 1], [2], [3]]
    with pytest.raises(WorkflowError, match="their order cannot be told"):
        join_pieces(pieces, IMAGES, batch_count=2, makes_list=True)


def test_results_that_are_not_as_many_as_the_batches() -> None:
    pieces = [
        Piece(Share(1, (range(2),)), [numbered(1)]),
        Piece(Share(2, (range(2, 4),)), [numbered(1), numbered(1)]),
    ]
    with pytest.raises(WorkflowError, match="instance 2 sent 2 results for the 1 batches"):
        join_pieces(pieces, IMAGES, batch_count=1, makes_list=False)


def test_a_list_from_upstream_is_joined_element_by_element() -> None:
    pieces = [
        Piece(Share(2, (range(2, 3),)), [numbered(1, 2), numbered(1, 12)]),
        Piece(Share(1, (range(2),)), [numbered(2), numbered(2, 10)]),
    ]
    joined = join_pieces(pieces, IMAGES, batch_count=1, makes_list=False)
    assert [numbers(each) for each in joined] == [[0, 1, 2], [10, 11, 12]]


def test_results_that_do_not_fit_together_are_told_by_instance() -> None:
    pieces = [
        Piece(Share(0, (range(1),)), [torch.zeros(1, 4, 4, 3)]),
        Piece(Share(3, (range(1, 2),)), [torch.zeros(1, 4, 5, 3)]),
    ]
    with pytest.raises(WorkflowError) as info:
        join_pieces(pieces, IMAGES, batch_count=1, makes_list=False)
    assert str(info.value).startswith(
        "the images do not fit together: instance 0 sent [1, 4, 4, 3] float32, instance 3 sent "
        "[1, 4, 5, 3] float32"
    )


# Kinds.


@pytest.mark.parametrize("kind", [IMAGES, MASKS, LATENTS])
@pytest.mark.parametrize("value", [None, "text", 5, [], torch.tensor(1.0), {"samples": 1}])
def test_what_is_no_such_value(kind: Any, value: Any) -> None:
    with pytest.raises(WorkflowError):
        kind.count(value)


def test_a_single_mask_is_a_batch_of_one() -> None:
    mask = torch.rand(4, 5)
    assert MASKS.count(mask) == 1
    assert torch.equal(MASKS.cut(mask, range(0, 1)), mask.unsqueeze(0))
    assert torch.equal(MASKS.join([mask, mask], None), torch.stack([mask, mask]))
    assert MASKS.describe(mask) == "[1, 4, 5] float32"


def test_places_are_told_where_nobody_has() -> None:
    latent = {"samples": torch.zeros(2, 4, 3, 3), "type": "x"}
    told = tell_positions(latent, range(5, 7))
    assert told["batch_index"] == [5, 6] and told["type"] == "x"
    assert "batch_index" not in latent
    assert tell_positions(told, range(0, 2)) is told
    assert tell_positions(latent, range(5, 8)) is latent  # of another batch, nothing is known
    with pytest.raises(WorkflowError, match="expected a latent"):
        tell_positions(torch.zeros(1), range(1))
