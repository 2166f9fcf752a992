"""The rows that move tensors between idle processes."""

from __future__ import annotations

from collections.abc import Iterator

from comfy_cluster.benchmarks.results import Table
from comfy_cluster.benchmarks.session import Session
from comfy_cluster.benchmarks.transfers import (
    Kind,
    Transfer,
    all_gather,
    collective,
    one_image,
    point_to_point,
)

SIZES = (1.0, 13.0, 101.0, 403.0)  # MB: an image, float32; larger than the caches; a batch
COLLECTIVE_COUNTS = (4,)  # instances; architecture.md section 6
ALL_GATHER_COUNTS = (2, 4, 8)


def point_to_point_row(session: Session) -> Iterator[Table]:
    for megabytes in session.megabytes(*SIZES):
        transfer = point_to_point(megabytes)
        title = f"one float32 tensor of {_size_text(transfer)}, process to process"
        yield session.compare("point-to-point", title, transfer)


def fan_out_row(session: Session) -> Iterator[Table]:
    return _collective_row(session, Kind.FAN_OUT)


def fan_in_row(session: Session) -> Iterator[Table]:
    return _collective_row(session, Kind.FAN_IN)


def broadcast_row(session: Session) -> Iterator[Table]:
    return _collective_row(session, Kind.BROADCAST)


def _collective_row(session: Session, kind: Kind) -> Iterator[Table]:
    for count in session.instance_counts(*COLLECTIVE_COUNTS):
        for megabytes in session.options.megabytes or (None,):
            transfer = collective(kind, count, megabytes)
            title = f"{kind.value} of {_tensor_text(transfer)} over {count} instances"
            yield session.compare(kind.value, title, transfer)


def all_gather_row(session: Session) -> Iterator[Table]:
    for count in session.instance_counts(*ALL_GATHER_COUNTS):
        for megabytes in session.options.megabytes or (None,):
            transfer = all_gather(count, megabytes)
            title = f"all-gather of {count} instances, {_tensor_text(transfer)} each"
            yield session.compare("all-gather", title, transfer)


def image_row(session: Session) -> Iterator[Table]:
    transfer = one_image()
    title = f"an 8-bit image {_tensor_text(transfer)} from follower to leader"
    yield session.compare("image", title, transfer)


def _tensor_text(transfer: Transfer) -> str:
    return f"[{','.join(map(str, transfer.shape))}] ({_size_text(transfer)})"


def _size_text(transfer: Transfer) -> str:
    return f"{transfer.tensor_bytes / 1e6:.4g} MB"
