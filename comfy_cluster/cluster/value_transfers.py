"""Whole ComfyUI values (images, latents, lists of them) between instances, in several payloads.

How it works. A value travels as a description, under the collective's key, and its tensors, under
the same key with list indexes from 1 on. Who receives reads the description first, which is small,
and then asks for the tensors, which may have arrived meanwhile. Used by `Cluster`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np
import torch

from comfy_cluster import values
from comfy_cluster.cluster.collectives import Collectives, Kind
from comfy_cluster.cluster.keys import CollectiveKey
from comfy_cluster.errors import CorruptPayload, UnsupportedTensor
from comfy_cluster.transport.handle import Executor, Handle, all_ended, all_of


class ValueTransfers:
    """Thread-safe; no method blocks."""

    def __init__(self, collectives: Collectives, executor: Executor) -> None:
        self._collectives = collectives
        self._executor = executor

    def send(
        self,
        key: CollectiveKey,
        value: Any,
        peers: Collection[int],
        *,
        kind: Kind,
        is_image: bool,
        siblings: int,
    ) -> Handle[None]:
        """See `Cluster.send_value`."""
        try:
            packed = values.pack(value)
        except UnsupportedTensor as error:
            return Handle.failed(error)
        description = torch.frombuffer(bytearray(packed.description), dtype=torch.uint8)
        tensors = [(description, False)] + [(tensor, is_image) for tensor in packed.tensors]
        sent = [
            self._collectives.send(
                dataclasses.replace(key, list_index=index),
                tensor,
                peers,
                kind=kind,
                is_image=may_round,
                siblings=siblings,
            )
            for index, (tensor, may_round) in enumerate(tensors)
        ]
        return all_ended(sent, f"{kind.value} ({key})")

    def receive(self, key: CollectiveKey, source: int, *, kind: Kind) -> Handle[Any]:
        """See `Cluster.receive_value`."""

        def claim(index: int) -> Handle[torch.Tensor]:
            return self._collectives.receive_more(
                dataclasses.replace(key, list_index=index), source, kind=kind
            )

        def receive_tensors(received: torch.Tensor) -> Handle[Any]:
            description = _bytes_of(received, source)
            count = values.tensor_count(description)
            tensors = all_of([claim(index + 1) for index in range(count)])
            return tensors.then(lambda got: values.unpack(description, got))

        described = self._collectives.receive(key, source, kind=kind)
        value = described.and_then(receive_tensors, self._executor)
        value.description = f"{kind.value} ({key}) from instance {source}"
        return value


def _bytes_of(received: torch.Tensor, source: int) -> bytes:
    if received.dtype is not torch.uint8 or received.ndim != 1:
        raise CorruptPayload(f"from instance {source}: not the description of a value")
    return bytes(np.asarray(received.cpu().numpy()).data)
