"""ComfyUI's prompt queue, whatever its version: putting in, taking out, looking after.

How versions are told apart: since October 2025 `task_done` takes `process_item`, and queue items
have a sixth element (ComfyUI execution.py). `validate_prompt` was not async before 0.3.45, and took
the id from then on. All methods may be called on any thread; those that change the queue hold its
mutex for a moment.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from typing import Any

from comfy_cluster.work.host import PRIVATE_EXTRA_DATA, SECRETS, Phase, PromptState

# Taken off the numbers of prompts that come before all others: ComfyUI takes the smallest first.
# Among themselves they keep their order: instances that took each other's workflows in different
# orders would wait for each other.
_BEFORE_ALL = 1_000_000_000
_INTERRUPTED = "execution_interrupted"
_FAILED = "execution_error"


class PromptQueue:
    """`server`: ComfyUI's PromptServer. `interrupt()` sets its flag for the running prompt."""

    def __init__(self, server: Any, interrupt: Callable[[], object]) -> None:
        self._server = server
        self._interrupt = interrupt

    @property
    def _queue(self) -> Any:
        return self._server.prompt_queue

    def put(
        self,
        prompt: Mapping[str, Any],
        prompt_id: str,
        *,
        extra_data: Mapping[str, Any],
        outputs: list[str],
        is_first: bool,
    ) -> float:
        """Queues a validated prompt; returns its number. `is_first`: before all that are not.

        On the server's event loop only, which is what hands out numbers.
        """
        number = self._server.number
        self._server.number += 1
        item: tuple[Any, ...] = (
            number - _BEFORE_ALL if is_first else number,
            prompt_id,
            prompt,
            dict(extra_data),
            outputs,
        )
        if self._has_sensitive_element:
            item[3]["create_time"] = int(time.time() * 1000)
            item = (*item, {key: item[3].pop(key) for key in SECRETS & item[3].keys()})
        self._queue.put(item)
        return float(item[0])

    @property
    def _has_sensitive_element(self) -> bool:
        return "process_item" in inspect.signature(self._queue.task_done).parameters

    def cancel(self, prompt_id: str) -> None:
        """Takes a prompt out, or interrupts it if it is the running one.

        A prompt that starts at this moment clears the flag: call again while it runs.
        """
        queue = self._queue
        with queue.mutex:  # the next prompt cannot begin meanwhile, so that no other is interrupted
            if queue.delete_queue_item(lambda item: item[1] == prompt_id):
                return
            if self.running_item(prompt_id) is not None:
                self._interrupt()

    def running_item(self, prompt_id: str) -> Any | None:
        """The queue item of a prompt that is running."""
        for item in list(self._queue.currently_running.values()):
            if item[1] == prompt_id:
                return item
        return None

    @property
    def running_id(self) -> str:
        """The prompt that runs; empty if there is none."""
        return next((str(item[1]) for item in list(self._queue.currently_running.values())), "")

    def extra_data(self, prompt_id: str) -> dict[str, Any]:
        """What a running prompt was queued with, but for secrets and addresses."""
        item = self.running_item(prompt_id)
        extra_data = {} if item is None else item[3]
        return {key: value for key, value in extra_data.items() if key not in PRIVATE_EXTRA_DATA}

    def outputs(self, prompt_id: str) -> list[str] | None:
        """The output nodes that a running prompt is for."""
        item = self.running_item(prompt_id)
        return None if item is None else list(item[4])

    def state_of(self, prompt_id: str) -> PromptState:
        """Where a prompt is."""
        queue = self._queue
        with queue.mutex:
            if self.running_item(prompt_id) is not None:
                return PromptState(Phase.RUNNING)
            if any(item[1] == prompt_id for item in queue.queue):
                return PromptState(Phase.QUEUED)
            entry = queue.history.get(prompt_id)
        return PromptState(Phase.GONE) if entry is None else _state_in(entry)


def _state_in(entry: Mapping[str, Any]) -> PromptState:
    """What an entry of the history tells."""
    status = entry.get("status") or {}
    outputs = entry.get("outputs") or {}
    for event, data in status.get("messages", ()):
        if event in (_INTERRUPTED, _FAILED):
            phase = Phase.INTERRUPTED if event == _INTERRUPTED else Phase.FAILED
            node = f"node {data.get('node_id')} ({data.get('node_type')})"
            message = str(data.get("exception_message", "")).strip()
            error_type = str(data.get("exception_type", ""))
            return PromptState(phase, outputs, node, message or event.replace("_", " "), error_type)
    if status.get("status_str", "success") == "success":
        return PromptState(Phase.SUCCEEDED, outputs)
    return PromptState(Phase.FAILED, outputs, "", "it failed, and ComfyUI does not say why")
