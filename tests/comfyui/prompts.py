"""API prompts for tests, a node a line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Nodes = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Ref:
    """A node of a prompt that is being made; as an input it stands for its first output."""

    node_id: str

    def __getitem__(self, output: int) -> list[Any]:
        """A link to one of its outputs."""
        return [self.node_id, output]


class PromptBuilder:
    """A prompt that grows. Nodes get the ids 1, 2, 3, ..."""

    def __init__(self) -> None:
        self.prompt: Nodes = {}

    def add(self, class_type: str, **inputs: Any) -> Ref:
        node_id = str(len(self.prompt) + 1)
        linked = {
            name: value[0] if isinstance(value, Ref) else value for name, value in inputs.items()
        }
        self.prompt[node_id] = {"class_type": class_type, "inputs": linked}
        return Ref(node_id)


# What a region does with its slice.
Through = Callable[[PromptBuilder, Ref], Ref]
FAN_OUTS = {
    "images": "ClusterFanOutImage",
    "latent": "ClusterFanOutLatent",
    "masks": "ClusterFanOutMask",
}
FAN_INS = {
    "images": "ClusterFanInImages",
    "latent": "ClusterFanInLatents",
    "masks": "ClusterFanInMasks",
}


def photographs(builder: PromptBuilder, count: int, *, first: int = 0) -> Ref:
    """A batch that only the leader can load."""
    return builder.add("TestPhotographs", count=count, first=first, folder="photographs")


def save(builder: PromptBuilder, value: Ref | list[Any], name: str) -> Ref:
    """`ComfyInstance.saved(name)` reads it."""
    return builder.add("TestSaveTensor", value=value, name=name)


def fan_out(builder: PromptBuilder, value: Ref | list[Any], kind: str = "images") -> Ref:
    return builder.add(FAN_OUTS[kind], **{kind: value})


def fan_in(builder: PromptBuilder, value: Ref | list[Any], kind: str = "images") -> Ref:
    return builder.add(FAN_INS[kind], **{kind: value})


def scale_and_blur(builder: PromptBuilder, images: Ref) -> Ref:
    """Nodes of ComfyUI that work on each image by itself."""
    scaled = builder.add(
        "ImageScale",
        **{"image": images, "upscale_method": "bicubic", "width": 80, "height": 60},
        crop="disabled",
    )
    return builder.add("ImageBlur", image=scaled, blur_radius=3, sigma=1.0)


def over_images(
    through: Through, *, count: int, cluster: bool = True, name: str = "result", first: int = 0
) -> Nodes:
    """Photographs through a region, or with `cluster=False` through the same nodes without one."""
    builder = PromptBuilder()
    images = photographs(builder, count, first=first)
    part = fan_out(builder, images) if cluster else images
    made = through(builder, part)
    save(builder, fan_in(builder, made) if cluster else made, name)
    return builder.prompt


def checkpoint(builder: PromptBuilder) -> Ref:
    """MODEL, CLIP and VAE: tiny ones, the same on every instance."""
    return builder.add("TestTinyCheckpoint", ckpt_name="tiny")


def sampled(
    builder: PromptBuilder, tiny: Ref, latent: Ref, *, denoise: float = 1.0, seed: int = 7
) -> Ref:
    """A latent through KSampler."""
    positive = builder.add("CLIPTextEncode", clip=tiny[1], text="a lighthouse in a storm")
    negative = builder.add("CLIPTextEncode", clip=tiny[1], text="blurry")
    return builder.add(
        "KSampler",
        **{"model": tiny[0], "positive": positive, "negative": negative, "latent_image": latent},
        **{"seed": seed, "steps": 3, "cfg": 3.0, "denoise": denoise},
        **{"sampler_name": "euler", "scheduler": "normal"},
    )


def text_to_image(count: int, *, cluster: bool = True, name: str = "result") -> Nodes:
    """Images out of noise."""
    builder = PromptBuilder()
    tiny = checkpoint(builder)
    empty = builder.add("EmptyLatentImage", width=64, height=64, batch_size=count)
    part = fan_out(builder, empty, "latent") if cluster else empty
    latent = sampled(builder, tiny, part)
    images = builder.add("VAEDecode", samples=latent, vae=tiny[2])
    save(builder, fan_in(builder, images) if cluster else images, name)
    return builder.prompt


def image_to_image(count: int, *, cluster: bool = True, name: str = "result") -> Nodes:
    """Photographs, cut to what the model makes, repainted."""
    builder = PromptBuilder()
    tiny = checkpoint(builder)
    images = builder.add(
        "ImageScale",
        **{"image": photographs(builder, count), "upscale_method": "area", "crop": "center"},
        **{"width": 64, "height": 64},
    )
    part = fan_out(builder, images) if cluster else images
    encoded = builder.add("VAEEncode", pixels=part, vae=tiny[2])
    latent = sampled(builder, tiny, encoded, denoise=0.6)
    made = builder.add("VAEDecode", samples=latent, vae=tiny[2])
    save(builder, fan_in(builder, made) if cluster else made, name)
    return builder.prompt


def without_regions(prompt: Nodes) -> Nodes:
    """The same prompt for one machine: what reads a fan-out or fan-in reads its input instead."""
    removed = {
        node_id: next(iter(node["inputs"].values()))
        for node_id, node in prompt.items()
        if node["class_type"] in (*FAN_OUTS.values(), *FAN_INS.values())
    }

    def behind(value: Any) -> Any:
        while isinstance(value, list) and value[0] in removed:
            value = removed[value[0]]
        return value

    return {
        node_id: {
            **node,
            "inputs": {name: behind(value) for name, value in node["inputs"].items()},
        }
        for node_id, node in prompt.items()
        if node_id not in removed
    }
