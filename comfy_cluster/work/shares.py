"""Who gets which items of what is fanned out, and how the results are put together. Pure.

How it works. A fan-out gets a list of batches (usually of one). Of each batch an instance gets the
items of its place in the even split; a batch of one item among larger ones goes to everybody. What
an instance gets nothing of is left out of its list, so its results are as many as its batches.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comfy_cluster.errors import WorkflowError
from comfy_cluster.work.kinds import Allocate, BatchKind


@dataclass(frozen=True, slots=True)
class Members:
    """Who runs the workflow, in the order of their slices."""

    instances: tuple[int, ...]
    own: int

    @property
    def others(self) -> list[int]:
        return [each for each in self.instances if each != self.own]


@dataclass(frozen=True, slots=True)
class Share:
    """What one instance works on."""

    instance: int
    ranges: tuple[range, ...]
    """Its items of each batch of the list; some may be empty."""

    @property
    def is_empty(self) -> bool:
        return not any(self.ranges)

    @property
    def item_count(self) -> int:
        return sum(map(len, self.ranges))

    @property
    def batches(self) -> list[int]:
        """Indexes of the batches that it has items of."""
        return [index for index, part in enumerate(self.ranges) if part]

    def over(self, instances: Sequence[int]) -> list[Share]:
        """The even split of this share; those that get something.

        What is over goes to the first ones; in a list, of the next batch to the next ones, so that
        a list of single items is split too.
        """
        count, first = len(instances), 0
        ranges: list[list[range]] = [[] for _ in instances]
        for part in self.ranges:
            size, extra = divmod(len(part), count)
            start = part.start
            for place in range(count):
                stop = start + size + ((place - first) % count < extra)
                ranges[place].append(range(start, stop))
                start = stop
            first = (first + extra) % count
        shares = [Share(each, tuple(ranges[place])) for place, each in enumerate(instances)]
        return [share for share in shares if not share.is_empty]


@dataclass(frozen=True, slots=True)
class Offer:
    """What one fan-out node was given."""

    kind: BatchKind
    values: list[Any]

    @property
    def sizes(self) -> list[int]:
        return [self.kind.count(value) for value in self.values]

    def _value(self, index: int) -> Any:
        return self.values[min(index, len(self.values) - 1)]

    def is_for_all(self, index: int, sizes: Sequence[int]) -> bool:
        """Whether a batch of the list is one item that goes with each of the larger batches'."""
        return sizes[index] != 1 and self.kind.count(self._value(index)) == 1

    def slices_for(self, share: Share, sizes: Sequence[int]) -> list[Any]:
        """The values of a share; `sizes` are those that all fan-outs agreed on."""
        return [
            self._value(index)
            if self.is_for_all(index, sizes)
            else self.kind.cut(self._value(index), share.ranges[index])
            for index in share.batches
        ]


def positions_of(share: Share, offers: Collection[Offer], sizes: Sequence[int]) -> list[range]:
    """By batch of a share the positions of what is made of the slices of some fan-outs."""
    return [
        range(1)
        if offers and all(offer.is_for_all(index, sizes) for offer in offers)
        else share.ranges[index]
        for index in share.batches
    ]


def agreed_sizes(offers: Mapping[str, Offer], names: Mapping[str, str]) -> tuple[int, ...]:
    """Items of each batch of the list. WorkflowError: the fan-outs do not agree.

    `names`: how a user is told of each node.
    """
    length = max(len(offer.values) for offer in offers.values())
    sizes = [1] * length
    for offer in offers.values():
        if len(offer.values) not in (1, length):
            raise WorkflowError(_disagreement(offers, names, "lists of different length"))
        for index in range(length):
            size = offer.sizes[min(index, len(offer.values) - 1)]
            if size != 1 and sizes[index] not in (1, size):
                raise WorkflowError(_disagreement(offers, names, "batches of different size"))
            sizes[index] = size if size != 1 else sizes[index]
    return tuple(sizes)


def _disagreement(offers: Mapping[str, Offer], names: Mapping[str, str], what: str) -> str:
    found = ", ".join(
        f"{names[node_id]} has {'+'.join(map(str, offer.sizes))} {offer.kind.name}"
        for node_id, offer in sorted(offers.items())
    )
    return (
        f"the fan-outs of one region got {what}: {found}. They need as many items each, or one "
        "item for all"
    )


def are_lists_cut(shares: Sequence[Share], batch_count: int) -> bool:
    """Whether an instance gets some batches of a list, and not all of them."""
    return any(len(share.batches) != batch_count for share in shares)


@dataclass(frozen=True, slots=True)
class Piece:
    """What came of a share."""

    share: Share
    values: list[Any]

    def order(self) -> list[int]:
        """What pieces are sorted by: the first item of each batch."""
        return [part.start for part in self.share.ranges]


def join_pieces(
    pieces: Sequence[Piece],
    kind: BatchKind,
    *,
    batch_count: int,
    makes_list: bool,
    allocate: Allocate | None = None,
) -> list[Any]:
    """The results of all shares as one list of batches, in the order of the items.

    `makes_list`: the region made lists of the batches, which are strung together. WorkflowError
    says which instance sent what.
    """
    ordered = sorted(pieces, key=Piece.order)
    if makes_list:
        if batch_count > 1:
            raise WorkflowError(
                "several batches were fanned out as a list, and the region makes lists of them: "
                "their order cannot be told. Fan out one batch, or join the lists before the fan-in"
            )
        return [value for piece in ordered for value in piece.values]
    lengths = {len(piece.values) for piece in ordered}
    if batch_count == 1 and len(lengths) == 1 and lengths != {1}:
        # A list from upstream, such as of seeds, of which each instance has made its part.
        columns = zip(*(piece.values for piece in ordered), strict=True)
        instances = [piece.share.instance for piece in ordered]
        return [
            _join(list(zip(instances, values, strict=True)), kind, allocate) for values in columns
        ]
    joined = []
    for index in range(batch_count):
        parts = [(piece.share.instance, value) for piece, value in _parts_of(ordered, index)]
        if parts:
            joined.append(_join(parts, kind, allocate))
    return joined


def _parts_of(pieces: Sequence[Piece], index: int) -> list[tuple[Piece, Any]]:
    parts = []
    for piece in pieces:
        places = piece.share.batches
        if len(piece.values) != len(places):
            raise WorkflowError(
                f"instance {piece.share.instance} sent {len(piece.values)} results for the "
                f"{len(places)} batches that it got: nodes in the region join or drop list items"
            )
        if index in places:
            parts.append((piece, piece.values[places.index(index)]))
    return parts


def _join(parts: Sequence[tuple[int, Any]], kind: BatchKind, allocate: Allocate | None) -> Any:
    try:
        return kind.join([value for _, value in parts], allocate)
    except WorkflowError as error:
        sent = ", ".join(
            f"instance {instance} sent {kind.describe(value)}" for instance, value in parts
        )
        raise WorkflowError(f"the {kind.name} do not fit together: {sent} ({error})") from error
