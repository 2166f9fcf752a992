"""ComfyUI's HTTP interface as tests use it: queue a prompt, wait for its end, read what it made.

Polls instead of listening to events: what counts is what the history says. Needs no ComfyUI code.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import requests

Prompt = Mapping[str, Mapping[str, Any]]
RUN_TIMEOUT = 90.0  # seconds; a bound for what hangs, never waited for in a good run
_POLL_INTERVAL = 0.03  # seconds
_HTTP_TIMEOUT = 30.0


class PromptError(Exception):
    """A prompt did not succeed."""


class PromptRefused(PromptError):
    """ComfyUI did not accept a prompt; the text has all that it said."""

    def __init__(self, status: int, answer: Any) -> None:
        super().__init__(f"HTTP {status}: {answer}")
        self.status = status
        self.answer = answer


class PromptFailed(PromptError):
    """A node raised."""

    def __init__(self, details: Mapping[str, Any], context: str) -> None:
        self.node_id = str(details.get("node_id"))
        self.node_type = str(details.get("node_type"))
        self.message = str(details.get("exception_message")).strip()
        trace = "".join(details.get("traceback") or ())
        super().__init__(
            f"node {self.node_id} ({self.node_type}): {self.message}\n{trace}\n{context}"
        )


class PromptInterrupted(PromptError):
    """A prompt was interrupted, or taken out of the queue."""


@dataclass(frozen=True, slots=True)
class History:
    """What ComfyUI's history tells of a prompt that has ended."""

    prompt_id: str
    outputs: Mapping[str, Mapping[str, Any]]
    """By node id."""
    messages: tuple[tuple[str, Mapping[str, Any]], ...]

    def message(self, name: str) -> Mapping[str, Any] | None:
        """The details of one event, such as `execution_error`; None if it did not happen."""
        return next((details for event, details in self.messages if event == name), None)

    @property
    def cached_nodes(self) -> frozenset[str]:
        """Nodes whose earlier results were used."""
        details = self.message("execution_cached") or {}
        return frozenset(map(str, details.get("nodes", ())))


class ComfyClient:
    """One ComfyUI process, over HTTP."""

    def __init__(self, url: str, *, describe: Callable[[], str] = lambda: "") -> None:
        self.url = url
        self._describe = describe
        """Tells what the process wrote last, for the texts of failures."""

    def is_up(self) -> bool:
        try:
            return requests.get(f"{self.url}/system_stats", timeout=2).ok
        except requests.RequestException:
            return False

    def get(self, path: str) -> Any:
        answer = requests.get(f"{self.url}{path}", timeout=_HTTP_TIMEOUT)
        answer.raise_for_status()
        return answer.json()

    def post(
        self, path: str, body: object, *, headers: Mapping[str, str] | None = None
    ) -> requests.Response:
        """Whatever the answer is; `Response.ok` tells."""
        return requests.post(
            f"{self.url}{path}", json=body, headers=dict(headers or {}), timeout=_HTTP_TIMEOUT
        )

    def run(self, prompt: Prompt, *, timeout: float = RUN_TIMEOUT) -> History:
        """Queues a prompt and waits for its end. PromptError says why it did not succeed."""
        return self.wait(self.queue(prompt), timeout=timeout)

    def queue(self, prompt: Prompt, *, client_id: str = "") -> str:
        """The prompt id. PromptRefused: it does not pass ComfyUI's validation."""
        body = {"prompt": prompt, "client_id": client_id or f"test-{uuid4()}"}
        return str(self._accepted(self.post("/prompt", body))["prompt_id"])

    def cluster_queue(self, prompt: Prompt, *, origin: str | None = None) -> Mapping[str, Any]:
        """Queues a prompt on every instance; the answer has its `job_id` and `prompt_id`."""
        body = {"prompt": prompt, "client_id": f"test-{uuid4()}"}
        headers = {} if origin is None else {"Origin": origin}
        answer: Mapping[str, Any] = self._accepted(
            self.post("/cluster/queue", body, headers=headers)
        )
        return answer

    def run_on_cluster(self, prompt: Prompt, *, timeout: float = RUN_TIMEOUT) -> History:
        """`run`, on every instance; ends when this instance has ended."""
        return self.wait(str(self.cluster_queue(prompt)["prompt_id"]), timeout=timeout)

    def wait(self, prompt_id: str, *, timeout: float = RUN_TIMEOUT) -> History:
        """Waits for the end of a prompt. PromptError says why it did not succeed."""
        history = self.wait_for_end(prompt_id, timeout=timeout)
        if (details := history.message("execution_error")) is not None:
            raise PromptFailed(details, self._describe())
        if history.message("execution_interrupted") is not None:
            raise PromptInterrupted(f"prompt {prompt_id} was interrupted")
        return history

    def wait_for_end(self, prompt_id: str, *, timeout: float = RUN_TIMEOUT) -> History:
        """Waits for the end of a prompt, good or bad. PromptInterrupted: it was taken away."""
        deadline = time.monotonic() + timeout
        while True:
            pending = self.pending_ids()  # asked before: what has ended since is in the history
            if (history := self.history_of(prompt_id)) is not None:
                return history
            if prompt_id not in pending and self.history_of(prompt_id) is None:
                raise PromptInterrupted(f"prompt {prompt_id} is neither queued nor in the history")
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"prompt {prompt_id} has not ended after {timeout:.0f} s; queue: {pending}\n"
                    f"{self._describe()}"
                )
            time.sleep(_POLL_INTERVAL)

    def history_of(self, prompt_id: str) -> History | None:
        """None as long as the prompt has not ended."""
        entry = self.get(f"/history/{prompt_id}").get(prompt_id)
        if entry is None:
            return None
        messages = tuple((event, details) for event, details in entry["status"]["messages"])
        return History(prompt_id, entry["outputs"], messages)

    def pending_ids(self) -> list[str]:
        """Prompts that run or wait, the running one first."""
        queue = self.get("/queue")
        return [str(each[1]) for each in queue["queue_running"] + queue["queue_pending"]]

    def interrupt(self) -> None:
        """What the page's button does."""
        self.post("/interrupt", {}).raise_for_status()

    def forget(self) -> None:
        """Frees models and all cached results once the queue is empty."""
        self.post("/free", {"unload_models": True, "free_memory": True}).raise_for_status()

    @staticmethod
    def _accepted(answer: requests.Response) -> Any:
        is_json = "json" in answer.headers.get("Content-Type", "")
        content = answer.json() if is_json else answer.text
        if not answer.ok:
            raise PromptRefused(answer.status_code, content)
        return content
