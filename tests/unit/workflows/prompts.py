"""Prompts for tests, in a line a node."""

from __future__ import annotations

from typing import Any

FAN_OUTS = {
    "image": "ClusterFanOutImage",
    "latent": "ClusterFanOutLatent",
    "mask": "ClusterFanOutMask",
}


def prompt_of(text: str) -> dict[str, dict[str, Any]]:
    """Lines `id Class name=id.output name=constant ...`; a reference has a dot."""
    prompt: dict[str, dict[str, Any]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        node_id, class_type, *pairs = line.split()
        inputs: dict[str, Any] = {}
        for name, value in (pair.split("=", 1) for pair in pairs):
            source, dot, output = value.rpartition(".")
            inputs[name] = [source, int(output)] if dot else value
        prompt[node_id] = {"class_type": class_type, "inputs": inputs}
    return prompt


TEXT_TO_IMAGE = """
    1 CheckpointLoaderSimple ckpt_name=a
    2 CLIPTextEncode clip=1.1 text=cat
    3 EmptyLatentImage batch_size=8
    4 ClusterFanOutLatent latent=3.0
    5 KSampler model=1.0 positive=2.0 negative=2.0 latent_image=4.0
    6 VAEDecode samples=5.0 vae=1.2
    7 ClusterFanInImages images=6.0
    8 SaveImage images=7.0
"""
