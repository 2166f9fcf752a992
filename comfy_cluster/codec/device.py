"""Tensors in an accelerator's memory, on their way to the codec.

How it works. CUDA copies at full speed, and beside other work, only to pinned memory and on a
stream of its own. Each codec thread has one; it waits for what the tensor's maker had queued when
it was handed over (`when_written`), and the thread waits for the copy without the GIL. torch keeps
pinned memory for the next copy. Other accelerators are copied from by torch's own `copy_`.
https://docs.pytorch.org/docs/stable/notes/cuda.html#use-pinned-memory-buffers
"""

from __future__ import annotations

import threading

import torch

_streams = threading.local()


def when_written(tensor: torch.Tensor) -> torch.cuda.Event | None:
    """An event after all that this thread queued to fill the tensor; None: it is no CUDA tensor."""
    if not tensor.is_cuda:
        return None
    written: torch.cuda.Event = torch.cuda.current_stream(tensor.device).record_event()
    return written


def pinned_copy(values: torch.Tensor, written: torch.cuda.Event | None) -> torch.Tensor:
    """A contiguous copy of a CUDA tensor in pinned main memory; waits until it is there."""
    stream = _stream_of(values.device)
    with torch.cuda.stream(stream):
        if written is not None:
            stream.wait_event(written)
        target = torch.empty(values.shape, dtype=values.dtype, device="cpu", pin_memory=True)
        target.copy_(values.detach(), non_blocking=True)
    stream.synchronize()
    return target


def _stream_of(device: torch.device) -> torch.cuda.Stream:
    streams: dict[torch.device, torch.cuda.Stream] = _streams.__dict__.setdefault("by_device", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return streams[device]
