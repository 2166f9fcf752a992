"""A Stable Diffusion of random weights, small enough for a CPU: ComfyUI's own classes throughout.

The weights are drawn from a fixed seed, so every process makes the same model.
"""

from __future__ import annotations

import zlib
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.taesd.taesd
import torch

from .types import Inputs

CONTEXT_SIZE = 32
TOKEN_COUNT = 8
# Noise of about the strength of what is sampled: nothing of these weights could take away more.
_SAMPLING = {"linear_start": 0.00085, "linear_end": 0.002}
# The shape of an SD1.5 UNet, with 32 channels instead of 320 and two levels instead of four.
_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1],
    "use_spatial_transformer": True,
    "context_dim": CONTEXT_SIZE,
    "legacy": False,
}


class TestTinyModel:
    """A MODEL."""

    CATEGORY = "test"
    FUNCTION = "execute"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"seed": ("INT", {"default": 0})}}

    def execute(self, seed: int) -> tuple[Any]:
        return (_make_model(seed),)


class TestTinyConditioning:
    """CONDITIONING that depends on a text, without a CLIP."""

    CATEGORY = "test"
    FUNCTION = "execute"
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"text": ("STRING", {"default": ""})}}

    def execute(self, text: str) -> tuple[Any]:
        clip = TinyClip()
        return (clip.encode_from_tokens_scheduled(clip.tokenize(text)),)


class TestTinyVAE:
    """A VAE."""

    CATEGORY = "test"
    FUNCTION = "execute"
    RETURN_TYPES = ("VAE",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"seed": ("INT", {"default": 0})}}

    def execute(self, seed: int) -> tuple[Any]:
        return (_make_vae(seed),)


class TestTinyCheckpoint:
    """All three, in the place of CheckpointLoaderSimple: the name of the file is the seed."""

    CATEGORY = "test"
    FUNCTION = "execute"
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"ckpt_name": ("STRING", {"default": ""})}}

    def execute(self, ckpt_name: str) -> tuple[Any, Any, Any]:
        seed = _seed_of(ckpt_name)
        return _make_model(seed), TinyClip(), _make_vae(seed)


class TinyClip:
    """What CLIPTextEncode needs of a CLIP: each text has random, but always the same, tokens."""

    def tokenize(self, text: str, **_: Any) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str, **_: Any) -> list[Any]:
        chance = torch.Generator().manual_seed(_seed_of(tokens))
        encoded = torch.randn(1, TOKEN_COUNT, CONTEXT_SIZE, generator=chance)
        return [[encoded, {"pooled_output": encoded.mean(dim=1)}]]


def _make_model(seed: int) -> Any:
    config = comfy.supported_models.SD15(_UNET)
    config.set_inference_dtype(torch.float32, None)
    config.sampling_settings = dict(_SAMPLING)
    model = config.get_model({}, "")
    _fill(model.diffusion_model, seed, gain=0.7)
    return comfy.model_patcher.ModelPatcher(
        model.eval(),
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def _make_vae(seed: int) -> Any:
    model = comfy.taesd.taesd.TAESD(latent_channels=4)
    _fill(model.taesd_encoder, seed, gain=0.8)
    _fill(model.taesd_decoder, seed + 1, gain=0.8)
    with torch.no_grad():
        model.taesd_decoder[-1].bias += 0.5  # grey in the mean, so that little is clipped
    return comfy.sd.VAE(sd=model.state_dict())


def _fill(module: torch.nn.Module, seed: int, *, gain: float) -> None:
    """Random weights: ComfyUI's layers leave them as they find the memory.

    A gain under 1 keeps the model from making large what is small, as rounding differs by batch.
    """
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=chance)
            if parameter.ndim > 1:
                parameter.copy_(noise * (gain / parameter[0].numel() ** 0.5))
            else:  # scales of normalisations, and biases
                parameter.copy_(noise * 0.1 + (1.0 if name.endswith("weight") else 0.0))


def _seed_of(text: str) -> int:
    return zlib.crc32(text.encode())


TINY_NODES = (TestTinyModel, TestTinyConditioning, TestTinyVAE, TestTinyCheckpoint)
