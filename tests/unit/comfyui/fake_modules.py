"""Stand-ins for ComfyUI's modules, with the interfaces of two ages of it.

`OldQueue`: 0.3.48 to 0.3.65 (queue items of five). `NewQueue`: since October 2025 (a sixth element
with secrets, `task_done(..., process_item)`). Interrupts are exceptions, since April 2026 none
that `except Exception` catches. What is here has their names and shapes, and does the least.
"""

from __future__ import annotations

import heapq
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy_cluster

OURS = "comfy_cluster.comfyui"  # what has imported them


class OldQueue:
    """ComfyUI's PromptQueue."""

    def __init__(self) -> None:
        self.mutex = threading.RLock()
        self.queue: list[Any] = []
        self.currently_running: dict[int, Any] = {}
        self.history: dict[str, dict[str, Any]] = {}
        self.flags: dict[str, Any] = {}
        self._count = 0

    def put(self, item: Any) -> None:
        with self.mutex:
            heapq.heappush(self.queue, item)

    def get(self) -> tuple[Any, int]:
        with self.mutex:
            item = heapq.heappop(self.queue)
            self._count += 1
            self.currently_running[self._count] = item
            return item, self._count

    def task_done(self, item_id: int, history_result: dict[str, Any], status: Any) -> None:
        with self.mutex:
            item = self.currently_running.pop(item_id)
            self.history[item[1]] = {"prompt": item, "status": status, **history_result}

    def delete_queue_item(self, function: Callable[[Any], bool]) -> bool:
        with self.mutex:
            for item in self.queue:
                if function(item):
                    self.queue.remove(item)
                    heapq.heapify(self.queue)
                    return True
        return False

    def set_flag(self, name: str, data: Any) -> None:
        self.flags[name] = data

    def get_flags(self, reset: bool = True) -> dict[str, Any]:
        flags = dict(self.flags)
        if reset:
            self.flags.clear()
        return flags


class NewQueue(OldQueue):
    def task_done(
        self,
        item_id: int,
        history_result: dict[str, Any],
        status: Any,
        process_item: Callable[[Any], Any] | None = None,
    ) -> None:
        item = self.currently_running[item_id]
        self.currently_running[item_id] = process_item(item) if process_item else item
        super().task_done(item_id, history_result, status)


QUEUES = [OldQueue, NewQueue]


@dataclass
class FakeServer:
    """ComfyUI's PromptServer."""

    prompt_queue: Any = field(default_factory=OldQueue)
    number: int = 7
    loop: Any = None
    client_id: str | None = None
    shown: list[tuple[str, str, str]] = field(default_factory=list)
    routes: Any = None
    app: Any = None

    def send_progress_text(self, text: str, node_id: str, sid: str) -> None:
        self.shown.append((text, node_id, sid))


@dataclass
class Status:
    """What `history[id]["status"]` is made of."""

    status_str: str = "success"
    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "status_str": self.status_str,
            "completed": self.status_str == "success",
            "messages": self.messages,
        }


class OldInterrupt(Exception):
    pass


class NewInterrupt(BaseException):
    pass


class LoadImage:
    """ComfyUI's own node."""

    RETURN_TYPES = ("IMAGE", "MASK")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": (["cat.png", "dog.png"], {"image_upload": True})}}

    def load_image(self, image: str) -> tuple[str, str]:
        return f"image of {image}", f"mask of {image}"


class FakeComfyUI:
    """The modules, and what the tests look at in them."""

    def __init__(self, user_directory: str, *, is_new: bool) -> None:
        self.is_interrupted = False
        self.arguments = types.SimpleNamespace(cache_none=False)
        self.freed: list[str] = []
        self.context: Any = None
        self.progress = types.SimpleNamespace(prompt_id="", dynprompt=None, nodes={}, updates=[])
        self.progress.update_progress = lambda *each: self.progress.updates.append(each)
        self.interrupt_class = NewInterrupt if is_new else OldInterrupt
        self.validate: Any = self.accept_all
        self.server = FakeServer(NewQueue() if is_new else OldQueue())
        self.modules = self._modules(user_directory)

    async def accept_all(self, prompt_id: str, prompt: Any, partial: Any) -> tuple[Any, ...]:
        return True, None, sorted(prompt), {}

    def throw_if_interrupted(self) -> None:
        if self.is_interrupted:
            self.is_interrupted = False
            raise self.interrupt_class

    def _modules(self, user_directory: str) -> Mapping[str, Any]:
        def interrupt(value: bool = True) -> None:
            self.is_interrupted = value

        async def validate_prompt(prompt_id: str, prompt: Any, partial_execution_list: Any) -> Any:
            return await self.validate(prompt_id, prompt, partial_execution_list)

        model_management = _module(
            "comfy.model_management",
            processing_interrupted=lambda: self.is_interrupted,
            throw_exception_if_processing_interrupted=self.throw_if_interrupted,
            unload_all_models=lambda: self.freed.append("models"),
            soft_empty_cache=lambda: self.freed.append("cache"),
        )
        progress = _module("comfy_execution.progress", get_progress_state=lambda: self.progress)
        graph_utils = _module("comfy_execution.graph_utils", ExecutionBlocker=_Blocker)
        utils = _module("comfy_execution.utils", get_executing_context=lambda: self.context)
        cli_args = _module("comfy.cli_args", args=self.arguments)
        modules = [
            _module("comfy", model_management=model_management, cli_args=cli_args),
            cli_args,
            model_management,
            _module("comfy_execution", progress=progress, graph_utils=graph_utils, utils=utils),
            progress,
            graph_utils,
            utils,
            _module("execution", validate_prompt=validate_prompt),
            _module(
                "nodes",
                NODE_CLASS_MAPPINGS={"LoadImage": LoadImage},
                LoadImage=LoadImage,
                interrupt_processing=interrupt,
            ),
            _module(
                "folder_paths",
                get_user_directory=lambda: user_directory,
                get_input_directory=lambda: f"{user_directory}/input",
                get_output_directory=lambda: f"{user_directory}/output",
                get_temp_directory=lambda: f"{user_directory}/temp",
                get_annotated_filepath=lambda name: str(Path(user_directory, "input", name)),
                exists_annotated_filepath=lambda name: "mouse" not in name,
            ),
            _module("server", PromptServer=types.SimpleNamespace(instance=self.server)),
            *_web_modules(),
        ]
        return {module.__name__: module for module in modules}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While it is open, `import nodes` and the like find these."""
        ours = [name for name in sys.modules if name.startswith(OURS)]
        saved = {
            name: sys.modules.pop(name) for name in [*self.modules, *ours] if name in sys.modules
        }
        package = getattr(comfy_cluster, "comfyui", None)
        sys.modules.update(self.modules)
        try:
            yield
        finally:
            for name in list(sys.modules):
                if name in self.modules or name.startswith(OURS):
                    del sys.modules[name]
            sys.modules.update(saved)
            comfy_cluster.comfyui = package  # type: ignore[attr-defined]


@dataclass
class _Blocker:
    message: str | None


def _module(name: str, **members: Any) -> Any:
    module = types.ModuleType(name)
    vars(module).update(members)
    return module


@dataclass
class Response:
    """aiohttp's answer, as far as it is looked at."""

    body: Any
    status: int = 200


def _web_modules() -> list[Any]:
    """aiohttp is ComfyUI's; here it is not installed."""
    web = _module(
        "aiohttp.web",
        Request=object,
        Response=lambda text, content_type: Response(text),
        json_response=lambda body, status=200: Response(body, status),
    )
    return [_module("aiohttp", web=web), web]
