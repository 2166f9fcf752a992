"""`ComfyHost`: the ComfyUI process that this runs in, as the work needs it (`work.host.Host`)."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import execution
import folder_paths
import nodes
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_execution.utils import get_executing_context

from comfy_cluster.comfyui import progress
from comfy_cluster.comfyui.node_types import node_type_of
from comfy_cluster.comfyui.queue import PromptQueue
from comfy_cluster.comfyui.validation import validated_outputs
from comfy_cluster.comfyui.watcher import Watcher
from comfy_cluster.errors import ClusterError, WorkflowError
from comfy_cluster.transport.handle import Handle
from comfy_cluster.work.host import NodeType, PromptState
from comfy_cluster.workflows.prompt import Prompt

logger = logging.getLogger("comfy_cluster.comfyui")

_WORKFLOW_FOLDER = ("default", "workflows")  # below the user folder; ComfyUI's only user
WARNING_EVENT = "cluster.warning"  # to the page: web/failures.mjs


class ComfyHost:
    """See `work.host.Host`. `server` is ComfyUI's PromptServer."""

    def __init__(self, server: Any, *, is_leader: bool) -> None:
        self.is_leader = is_leader
        self._server = server
        self._queue = PromptQueue(server, nodes.interrupt_processing)
        self._watcher = Watcher(
            state_of=self.state_of,
            progress_of=progress.fraction_of,
            cancel=self._queue.cancel,
            call_on_loop=server.loop.call_soon_threadsafe,
        )

    @property
    def can_expand(self) -> bool:
        args = getattr(sys.modules.get("comfy.cli_args"), "args", None)
        return not getattr(args, "cache_none", False)

    # Prompts.

    def running_prompt_id(self) -> str:
        context = get_executing_context()
        return self._queue.running_id if context is None else str(context.prompt_id)

    def check(self, prompt: Prompt, prompt_id: str) -> Handle[None]:
        checked: Handle[None] = Handle(f"prompt {prompt_id}")

        async def check() -> None:
            await self._outputs_of(prompt, prompt_id)

        self._run_on_loop(check(), checked)
        return checked

    async def _outputs_of(self, prompt: Prompt, prompt_id: str) -> list[str]:
        return await validated_outputs(
            prompt,
            prompt_id,
            validate_prompt=execution.validate_prompt,
            node_classes=nodes.NODE_CLASS_MAPPINGS,
        )

    def submit(
        self,
        prompt: Prompt,
        prompt_id: str,
        *,
        extra_data: Mapping[str, Any],
        is_first: bool = True,
    ) -> Handle[None]:
        submitted: Handle[None] = Handle(f"prompt {prompt_id}")

        async def submit() -> None:
            outputs = await self._outputs_of(prompt, prompt_id)
            self._queue.put(
                prompt, prompt_id, extra_data=extra_data, outputs=outputs, is_first=is_first
            )

        self._run_on_loop(submit(), submitted)
        return submitted

    def _run_on_loop(self, work: Any, handle: Handle[None]) -> None:
        def on_done(done: Any) -> None:
            error = None if done.cancelled() else done.exception()
            if done.cancelled():
                handle.cancel("ComfyUI is closing")
            elif error is None:
                handle.set_result(None)
            else:
                is_told = isinstance(error, ClusterError)
                handle.set_exception(
                    error if is_told else WorkflowError(f"cannot run it: {error!r}")
                )

        asyncio.run_coroutine_threadsafe(work, self._server.loop).add_done_callback(on_done)

    def cancel(self, prompt_id: str) -> None:
        self._watcher.cancel(prompt_id)

    def state_of(self, prompt_id: str) -> PromptState:
        return self._queue.state_of(prompt_id)

    def watch(
        self,
        prompt_id: str,
        *,
        on_over: Callable[[PromptState], object],
        on_progress: Callable[[float], object] | None = None,
    ) -> None:
        self._watcher.watch(prompt_id, on_over, on_progress)

    def requested_outputs(self, prompt_id: str) -> Sequence[str] | None:
        return self._queue.outputs(prompt_id)

    def extra_data(self, prompt_id: str) -> Mapping[str, Any]:
        return self._queue.extra_data(prompt_id)

    def node_type(self, class_type: str) -> NodeType:
        return node_type_of(nodes.NODE_CLASS_MAPPINGS.get(class_type))

    # While a node runs.

    def is_interrupted(self) -> bool:
        return bool(comfy.model_management.processing_interrupted())

    def raise_if_interrupted(self) -> None:
        # It clears the flag, and raises; whoever only looks must not.
        comfy.model_management.throw_exception_if_processing_interrupted()

    def is_alone(self, prompt_id: str, node_ids: Collection[str]) -> bool:
        return progress.running_nodes(prompt_id) <= set(node_ids)

    def show_progress(
        self, prompt_id: str, node_id: str, value: float, maximum: float, text: str
    ) -> None:
        progress.show(self._server, prompt_id, node_id, value=value, maximum=maximum, text=text)

    def show_warning(self, text: str) -> None:
        self._server.send_sync(WARNING_EVENT, {"text": text}, self._server.client_id)

    def stop_blocked(self) -> Any:
        return ExecutionBlocker(None)

    def free_now(self, *, unload_models: bool, free_memory: bool) -> None:
        if unload_models:
            comfy.model_management.unload_all_models()
        if free_memory:
            gc.collect()
            comfy.model_management.soft_empty_cache()

    def free_when_done(self, *, unload_models: bool, free_memory: bool) -> None:
        queue = self._server.prompt_queue
        if free_memory:
            queue.set_flag("free_memory", True)
        # Where nobody says so, ComfyUI unloads models whenever it frees memory (main.py).
        if unload_models or "unload_models" not in queue.get_flags(reset=False):
            queue.set_flag("unload_models", unload_models)

    # Files.

    def read_workflow(self, workflow_path: str) -> Any:
        folder = Path(folder_paths.get_user_directory(), *_WORKFLOW_FOLDER).resolve()
        try:
            path = (folder / workflow_path).resolve()
            is_there = path.is_file()
        except (OSError, ValueError) as error:  # no file can have that name
            raise WorkflowError(
                f"workflow_path is {workflow_path!r:.200}: {error!s:.200}"
            ) from None
        if not workflow_path or not path.is_relative_to(folder):
            raise WorkflowError(
                f"workflow_path is {workflow_path!r}; expected a file below the workflow folder "
                f"{folder}"
            )
        if not is_there:
            there = sorted(str(each.relative_to(folder)) for each in folder.rglob("*.json"))
            named = ", ".join(there[:20]) or "no files"
            raise WorkflowError(
                f"there is no workflow {workflow_path!r} in {folder}; it has {named}"
            )
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise WorkflowError(f"{workflow_path} cannot be read as JSON: {error}") from None

    def image_names(self) -> Sequence[str]:
        return list(nodes.LoadImage.INPUT_TYPES()["required"]["image"][0])

    def check_image(self, name: str) -> str:
        if not folder_paths.exists_annotated_filepath(name):
            return f"there is no image {name!r} in the input folder"
        path = Path(folder_paths.get_annotated_filepath(name)).resolve()
        folders = (
            folder_paths.get_input_directory(),
            folder_paths.get_output_directory(),
            folder_paths.get_temp_directory(),
        )
        if not any(path.is_relative_to(Path(folder).resolve()) for folder in folders):
            return f"the image {name!r} is outside of ComfyUI's folders"
        return ""

    def load_image(self, name: str) -> tuple[Any, Any]:
        if trouble := self.check_image(name):
            raise WorkflowError(trouble)
        image, mask = nodes.LoadImage().load_image(name)
        return image, mask
