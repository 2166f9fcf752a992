"""Hooks into ComfyUI's server while it loads custom nodes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from server import PromptServer

from comfy_cluster.comfyui.host import ComfyHost
from comfy_cluster.comfyui.routes import add_routes

__all__ = ["ComfyHost", "add_routes", "call_at_start", "server_of_comfyui"]


def server_of_comfyui() -> Any:
    """The PromptServer, which is there before custom nodes are loaded."""
    return PromptServer.instance


def call_at_start(server: Any, fn: Callable[[], None]) -> None:
    """Calls `fn` once the server starts, on a thread: ComfyUI's start does not wait for it."""

    async def start(_: Any) -> None:
        threading.Thread(target=fn, name="comfy-cluster-start", daemon=True).start()

    server.app.on_startup.append(start)
