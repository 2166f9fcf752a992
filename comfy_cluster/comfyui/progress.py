"""Progress: of prompts that run here, and of what runs elsewhere on this page's nodes."""

from __future__ import annotations

import logging
from typing import Any

from comfy_execution import progress as comfy_progress

_RUNNING = "running"  # of ComfyUI's NodeState

logger = logging.getLogger("comfy_cluster.comfyui")


def fraction_of(prompt_id: str) -> float:
    """0.0 to 1.0: nodes of the running prompt that are done, and the running ones in proportion."""
    registry: Any = comfy_progress.get_progress_state()
    if registry.prompt_id != prompt_id:
        return 0.0
    count = len(registry.dynprompt.all_node_ids())
    done = sum(
        min(1.0, state["value"] / state["max"]) if state["max"] else 0.0
        for state in list(registry.nodes.values())
    )
    return min(1.0, done / count) if count else 0.0


def running_nodes(prompt_id: str) -> set[str]:
    """Nodes of the running prompt that are at work; those that wait for lazy inputs too."""
    registry: Any = comfy_progress.get_progress_state()
    if registry.prompt_id != prompt_id:
        return set()
    return {
        node_id
        for node_id, state in list(registry.nodes.items())
        if state["state"].value == _RUNNING
    }


def show(
    server: Any, prompt_id: str, node_id: str, *, value: float, maximum: float, text: str
) -> None:
    """Shows progress on a node of the running prompt, if that is the one."""
    registry: Any = comfy_progress.get_progress_state()
    if registry.prompt_id != prompt_id:
        return
    registry.update_progress(node_id, value, max(maximum, 1))
    if server.client_id is not None:
        server.send_progress_text(text, node_id, server.client_id)
