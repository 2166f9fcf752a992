"""Nodes for scenarios: they make photographs, work on them item by item, fail, wait, and save.

All are deterministic, and each item's result depends on that item only, so that what several
instances make can be compared bit for bit with what one makes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from tests.unit.work.fake_comfyui import FakeComfyUI

InputTypes = dict[str, dict[str, Any]]


def photographs(count: int, *, seed: int = 0, size: int = 6) -> torch.Tensor:
    """8-bit pictures as ComfyUI has them."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 256, (count, size, size, 3), generator=generator)
    return levels.to(torch.float32) / 255.0


def noise(row: int, shape: torch.Size, seed: int) -> torch.Tensor:
    """What a sampler draws for the item at that place of a batch."""
    generator = torch.Generator().manual_seed(1_000 * seed + row)
    return torch.randn(shape, generator=generator)


def _declared(text: str) -> dict[str, Any]:
    pairs = (each.split(":") for each in text.split())
    return {name: (kind, {}) for name, kind in pairs}


class FakeNode:
    """What they have in common."""

    comfy: FakeComfyUI
    FUNCTION = "execute"
    RETURN_TYPES: tuple[Any, ...] = ("IMAGE",)
    INPUTS = ""
    """`name:TYPE ...`"""
    OPTIONAL = ""

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": _declared(cls.INPUTS),
            "optional": _declared(cls.OPTIONAL),
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def note(self, count: int) -> None:
        """Says that this node computed so many items here."""
        self.comfy.record.computed.append((type(self).__name__, count))


class Photographs(FakeNode):
    """Like LoadImage of a folder: what is upstream of a region."""

    INPUTS = "count:INT"
    OPTIONAL = "seed:INT size:INT"

    def execute(self, unique_id: str, count: int, seed: int = 0, size: int = 6) -> Any:
        self.note(count)
        return (photographs(count, seed=seed, size=size),)


class Masks(FakeNode):
    """A mask for each of some pictures."""

    RETURN_TYPES = ("MASK",)
    INPUTS = "images:IMAGE"

    def execute(self, unique_id: str, images: torch.Tensor) -> Any:
        self.note(len(images))
        return (images.mean(dim=-1),)


class Blur(FakeNode):
    """Works on each picture by itself; on masks too."""

    INPUTS = "images:IMAGE"

    def execute(self, unique_id: str, images: torch.Tensor) -> Any:
        self.note(len(images))
        return ((images + images.roll(1, dims=1)) / 2,)


class Compose(FakeNode):
    """Two batches into one, item by item; the second may have one item for all."""

    INPUTS = "images:IMAGE masks:MASK"

    def execute(self, unique_id: str, images: torch.Tensor, masks: torch.Tensor) -> Any:
        self.note(len(images))
        return (images * (masks if masks.ndim == 4 else masks.unsqueeze(-1)),)


class First(FakeNode):
    """The first picture of a batch, as a mask."""

    RETURN_TYPES = ("MASK",)
    INPUTS = "images:IMAGE"

    def execute(self, unique_id: str, images: torch.Tensor) -> Any:
        return (images[:1].mean(dim=-1),)


class Model(FakeNode):
    """Like a checkpoint loader: a live object, and a file that not everybody may have."""

    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {"required": {"name": (cls.comfy.models, {})}, "hidden": {"unique_id": "UNIQUE_ID"}}

    def execute(self, unique_id: str, name: str) -> Any:
        self.note(1)
        return (object(),)


class EmptyLatents(FakeNode):
    """Like EmptyLatentImage; `frames` makes them 5-D, `extras` adds a mask and keys of others."""

    RETURN_TYPES = ("LATENT",)
    INPUTS = "count:INT"
    OPTIONAL = "frames:INT extras:INT first:INT"

    def execute(
        self, unique_id: str, count: int, frames: int = 0, extras: int = 0, first: int = 0
    ) -> Any:
        shape = (count, 4, *([frames] if frames else []), 4, 4)
        latent: dict[str, Any] = {"samples": torch.zeros(shape)}
        if first:
            latent["batch_index"] = list(range(first, first + count))
        if extras:
            latent["noise_mask"] = photographs(count, seed=5, size=4)[..., 0]
            latent["rows"] = torch.arange(count * 2).view(count, 2)
            latent["type"] = "test"
        return (latent,)


class Encode(FakeNode):
    """Like VAEEncode: the latents are born here, without a `batch_index`."""

    RETURN_TYPES = ("LATENT",)
    INPUTS = "images:IMAGE"

    def execute(self, unique_id: str, images: torch.Tensor) -> Any:
        return ({"samples": images.permute(0, 3, 1, 2).contiguous()},)


class Sample(FakeNode):
    """Like KSampler: draws the noise of each item by its place in the batch."""

    RETURN_TYPES = ("LATENT",)
    INPUTS = "latent:LATENT"
    OPTIONAL = "model:MODEL seed:INT"

    def execute(
        self, unique_id: str, latent: dict[str, Any], model: Any = None, seed: int = 7
    ) -> Any:
        samples = latent["samples"]
        self.note(len(samples))
        rows = latent.get("batch_index", range(len(samples)))
        drawn = [noise(row, samples.shape[1:], seed) for row in rows]
        added = torch.stack(drawn) if drawn else samples
        mask = latent.get("noise_mask")
        if mask is not None:
            added = added * mask.reshape(-1, *[1] * (samples.ndim - 3), *mask.shape[-2:])
        return ({**latent, "samples": samples + added},)


class Decode(FakeNode):
    """Like VAEDecode: frames of films are pictures, too."""

    INPUTS = "latent:LATENT"

    def execute(self, unique_id: str, latent: dict[str, Any]) -> Any:
        pictures = latent["samples"].movedim(1, -1)
        return (pictures.reshape(-1, *pictures.shape[-3:]),)


class Text(FakeNode):
    """A text that comes over a link."""

    RETURN_TYPES = ("STRING",)
    INPUTS = "text:STRING"

    def execute(self, unique_id: str, text: str) -> Any:
        return (text,)


class ListOf(FakeNode):
    """A list of the batches that it is given."""

    OUTPUT_IS_LIST = (True,)
    INPUTS = "first:IMAGE second:IMAGE"

    def execute(self, unique_id: str, first: Any, second: Any) -> Any:
        return ([first, second],)


class Fail(FakeNode):
    """Passes on, unless the instance is made to fail."""

    INPUTS = "images:IMAGE"

    def execute(self, unique_id: str, images: Any) -> Any:
        if self.comfy.fails:
            raise ValueError("out of paint")
        return (images,)


class Wait(FakeNode):
    """Passes on once the instance's gate is open; may be interrupted, like a sampler."""

    INPUTS = "images:IMAGE"

    def execute(self, unique_id: str, images: Any) -> Any:
        self.comfy.computing.pass_through(self.comfy.is_interrupted)
        self.comfy.raise_if_interrupted()
        return (images,)


class Grow(FakeNode):
    """Makes larger pictures where the instance is made to fail."""

    INPUTS = "images:IMAGE"

    def execute(self, unique_id: str, images: torch.Tensor) -> Any:
        return (torch.cat([images, images[:, :1]], dim=1) if self.comfy.fails else images,)


class JoinedList(FakeNode):
    """One batch of all in a list."""

    INPUT_IS_LIST = True
    INPUTS = "images:IMAGE"

    def execute(self, unique_id: Any, images: list[torch.Tensor]) -> Any:
        return (torch.cat(images),)


class Block(FakeNode):
    """Has nothing for those behind it, where the instance is made to fail."""

    INPUTS = "images:IMAGE"

    def execute(self, unique_id: str, images: Any) -> Any:
        return (self.comfy.stop_blocked() if self.comfy.fails else images,)


class Save(FakeNode):
    """An output node."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    INPUTS = "images:*"

    def execute(self, unique_id: str, images: Any) -> Any:
        self.comfy.record.saved.setdefault(unique_id, []).append(images)
        return {"ui": {"files": [f"{self.comfy.index}/{unique_id}.png"]}}


class Circle(FakeNode):
    """Leaves in the history what has no JSON."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    INPUTS = "images:IMAGE"

    def execute(self, unique_id: str, images: Any) -> Any:
        itself: list[Any] = []
        itself.append(itself)
        return {"ui": {"shown": [itself]}}


FAKE_NODES: dict[str, type[FakeNode]] = {
    node_class.__name__: node_class
    for node_class in (
        Photographs,
        Masks,
        Blur,
        Compose,
        First,
        Model,
        EmptyLatents,
        Encode,
        Sample,
        Decode,
        Text,
        ListOf,
        Fail,
        Wait,
        Block,
        Grow,
        JoinedList,
        Save,
        Circle,
    )
}
