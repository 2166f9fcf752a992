"""HTTP routes that the page uses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import execution
from aiohttp import web

from comfy_cluster.cluster.info import STATUS_PATH
from comfy_cluster.comfyui.validation import validate
from comfy_cluster.errors import ClusterError, DiscoveryError, WorkflowError
from comfy_cluster.transport.handle import Handle
from comfy_cluster.work.work import Work

logger = logging.getLogger("comfy_cluster.comfyui")

QUEUE_PATH = "/cluster/queue"
ANSWER_TIMEOUT = 60.0  # seconds; followers validate within one or two


def add_routes(server: Any, get_work: Callable[[], Work]) -> None:
    """Adds them to ComfyUI's PromptServer, before it starts."""

    @server.routes.post(QUEUE_PATH)  # type: ignore[untyped-decorator]
    async def queue_on_all(request: web.Request) -> web.Response:
        return await _queue_on_all(request, server, get_work)

    @server.routes.get(STATUS_PATH)  # type: ignore[untyped-decorator]
    async def status(request: web.Request) -> web.Response:
        return await _status(request, get_work)


async def _status(request: web.Request, get_work: Callable[[], Work]) -> web.Response:
    """What this instance knows of the cluster: `ClusterInfo.to_json`."""
    if _is_foreign(request.headers):
        return _refused(403, "foreign_origin", "this address is for ComfyUI's own page only")
    try:
        # Not on the server's loop: it waits for the transport's thread.
        text = await asyncio.get_running_loop().run_in_executor(None, lambda: get_work().status())
    except ClusterError as error:
        return _refused(503, "cluster", str(error))
    return web.Response(text=text, content_type="application/json")


async def _queue_on_all(
    request: web.Request, server: Any, get_work: Callable[[], Work]
) -> web.Response:
    """`{"prompt", "client_id", "extra_data"}` as at /prompt; answers with the job's id."""
    if _is_foreign(request.headers):
        return _refused(403, "foreign_origin", "this address is for ComfyUI's own page only")
    try:
        body = await request.json()
        prompt = body["prompt"]
        extra_data = dict(body.get("extra_data") or {})
        if not isinstance(prompt, dict) or not all(map(_is_node, prompt.values())):
            raise TypeError("prompt is no object of nodes with class_type and inputs")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return _refused(400, "no_prompt", f'expected JSON with "prompt": {error!r}')
    if body.get("client_id") is not None:
        extra_data["client_id"] = body["client_id"]
    return await _queue(server, get_work, prompt, extra_data)


async def _queue(
    server: Any, get_work: Callable[[], Work], prompt: dict[str, Any], extra_data: dict[str, Any]
) -> web.Response:
    number = server.number
    is_valid, error, outputs, node_errors = await validate(execution.validate_prompt, prompt)
    if not is_valid:
        return web.json_response({"error": error, "node_errors": node_errors}, status=400)
    try:
        work = get_work()
        job_id, prompt_id, queued = work.queue_on_all(prompt, extra_data, outputs=list(outputs))
        await asyncio.wait_for(_outcome_of(queued), ANSWER_TIMEOUT)
    except asyncio.TimeoutError:
        queued.cancel("it took too long")
        text = f"not every instance has answered within {ANSWER_TIMEOUT:g} s: look at their logs"
        return _refused(503, "no_answer", text)
    except DiscoveryError as error_:
        return _refused(503, "not_ready", str(error_))
    except WorkflowError as error_:
        return _refused(400, "refused", str(error_))
    except ClusterError as error_:
        return _refused(503, "cluster", str(error_))
    answer = {
        "job_id": job_id,
        "prompt_id": prompt_id,
        "number": number,
        "node_errors": node_errors,
    }
    return web.json_response(answer)


def _is_node(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("inputs"), dict) and "class_type" in node


async def _outcome_of(handle: Handle[None]) -> None:
    await handle


def _is_foreign(headers: Mapping[str, str]) -> bool:
    """Whether a browser sends it for a page of another site (as ComfyUI does for loopback)."""
    if headers.get("Sec-Fetch-Site", "").lower() == "cross-site":
        return True
    origin = headers.get("Origin")
    return origin is not None and urlsplit(origin).netloc.lower() != headers.get("Host", "").lower()


def _refused(status: int, kind: str, message: str) -> web.Response:
    error = {"type": kind, "message": message, "details": "", "extra_info": {}}
    return web.json_response({"error": error, "node_errors": {}}, status=status)
