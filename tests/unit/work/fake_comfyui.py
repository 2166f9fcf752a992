"""A ComfyUI process in memory: `work.host.Host` with a queue, a prompt thread and a history.

It runs the product's node classes and those of `fake_nodes.py`, each bound to this instance.
Validation, and what follows the end of a prompt, happen on a thread of their own, as on the event
loop of ComfyUI's server.
"""

from __future__ import annotations

import asyncio
import copy
import random
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from comfy_cluster.comfyui.node_types import node_type_of
from comfy_cluster.comfyui.validation import validated_outputs
from comfy_cluster.errors import ClusterError, WorkflowError
from comfy_cluster.nodes import NODE_CLASS_MAPPINGS
from comfy_cluster.nodes.base import ClusterNode
from comfy_cluster.transport.handle import Handle
from comfy_cluster.work.host import NodeType, Phase, PromptState
from comfy_cluster.work.run import new_prompt_id
from comfy_cluster.work.work import Work
from comfy_cluster.workflows.prompt import Prompt, link_of
from tests.unit.work.fake_executor import Blocked, Cached, Execution, Interrupted, NodeError
from tests.unit.work.fake_nodes import FAKE_NODES
from tests.unit.work.gates import WAIT, Gate

_Nodes = dict[str, dict[str, Any]]
OnOver = Callable[[PromptState], object]
OnProgress = Callable[[float], object]
CASTS: Mapping[str, Callable[[Any], Any]] = {"INT": int, "FLOAT": float, "STRING": str}


@dataclass
class _Item:
    """A prompt in the queue."""

    prompt_id: str
    prompt: dict[str, dict[str, Any]]
    outputs: list[str]
    extra_data: Mapping[str, Any]
    is_first: bool
    is_interrupted: bool = False


@dataclass(frozen=True)
class Shown:
    """Progress on a node."""

    prompt_id: str
    node_id: str
    value: float
    maximum: float
    text: str


@dataclass
class _Watch:
    on_over: OnOver
    on_progress: OnProgress | None


@dataclass
class Record:
    """What happened in one prompt."""

    extra_data: Mapping[str, Any] = field(default_factory=dict)
    saved: dict[str, list[Any]] = field(default_factory=dict)
    """What output nodes got, by node id."""
    computed: list[tuple[str, int]] = field(default_factory=list)
    """Class and item count of each call of a node that computes."""


class FakeComfyUI:
    """See `work.host.Host`. A context manager: its threads end with it."""

    def __init__(
        self,
        index: int,
        *,
        seed: int = 0,
        lacks: Sequence[str] = (),
        models: Sequence[str] = ("a", "b"),
        files: Mapping[str, Any] | None = None,
        images: Mapping[str, tuple[torch.Tensor, torch.Tensor]] | None = None,
    ) -> None:
        """`lacks`: node classes that are not installed here."""
        self.index = index
        self.is_leader = index == 0
        self.models = list(models)
        self.files = files or {}
        self.images = images or {}
        self.validation = Gate("validation")
        self.computing = Gate("computing")
        self.shown: list[Shown] = []
        self.freed: list[tuple[str, bool, bool]] = []
        self.records: dict[str, Record] = {}
        self.started: list[str] = []
        self.runs_twice: Collection[str] = ()
        """Classes whose nodes run twice in a prompt."""
        self.fails = False
        """Whether FailHere nodes fail."""
        self._lacks = frozenset(lacks)
        self._rng = random.Random(seed)
        self._cache: dict[Any, Cached] = {}
        self._classes: dict[str, Any] = {}
        self._queue: list[_Item] = []
        self._running: _Item | None = None
        self._states: dict[str, PromptState] = {}
        self.warnings: list[str] = []
        self._execution: Execution | None = None
        self._watches: dict[str, list[_Watch]] = {}
        self._is_closed = False
        self._changed = threading.Condition()
        self._server = ThreadPoolExecutor(1, f"fake-server-{index}")
        self._thread = threading.Thread(target=self._work, name=f"fake-prompts-{index}")

    def install(self, work: Work) -> None:
        """Loads the nodes, which talk to that."""
        for name, node_class in {**NODE_CLASS_MAPPINGS, **FAKE_NODES}.items():
            if name not in self._lacks:
                self._classes[name] = _bound(node_class, self, work)

    def __enter__(self) -> FakeComfyUI:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_closed = True
            self._queue.clear()
            if self._running is not None:
                self._running.is_interrupted = True
            self._changed.notify_all()
        self._thread.join(WAIT)
        self._server.shutdown()
        assert not self._thread.is_alive()

    # The user's side.

    def queue(
        self,
        prompt: Prompt,
        *,
        outputs: Sequence[str] | None = None,
        extra_data: Mapping[str, Any] | None = None,
        prompt_id: str = "",
    ) -> str:
        """Presses Run; `outputs`: only those nodes. Returns the prompt's id."""
        prompt_id = prompt_id or new_prompt_id()
        self._states.pop(prompt_id, None)  # some clients use an id again
        handle = self._submit(prompt, prompt_id, extra_data or {}, False, outputs)
        handle.result(WAIT)
        return prompt_id

    def wait_for(self, prompt_id: str) -> PromptState:
        """The prompt, once it is over."""
        with self._changed:
            is_over = self._changed.wait_for(lambda: prompt_id in self._states, WAIT)
            assert is_over, f"instance {self.index}: prompt {prompt_id} does not end"
            return self._states[prompt_id]

    def run(self, prompt: Prompt, *, outputs: Sequence[str] | None = None) -> PromptState:
        """Presses Run, and waits."""
        return self.wait_for(self.queue(prompt, outputs=outputs))

    def interrupt(self) -> None:
        """Presses the button that interrupts what runs."""
        with self._changed:
            if self._running is not None:
                self._running.is_interrupted = True

    def delete_what_waits(self) -> None:
        """Clears the queue, once something is in it."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._queue, WAIT)
            waiting = [each.prompt_id for each in self._queue]
        for prompt_id in waiting:
            self.cancel(prompt_id)

    def settle(self) -> None:
        """Until what was begun on the server's thread is done."""
        self._server.submit(lambda: None).result(WAIT)

    def wait_for_queue(self, count: int) -> None:
        """Until so many prompts wait behind the one that runs."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._queue) >= count, WAIT)

    @property
    def last(self) -> Record:
        """What happened in the prompt that was started last."""
        return self.records[self.started[-1]]

    @property
    def is_idle(self) -> bool:
        return self._running is None and not self._queue and not self._watches

    # Host: prompts.

    can_expand = True

    def running_prompt_id(self) -> str:
        assert self._running is not None
        return self._running.prompt_id

    @property
    def record(self) -> Record:
        """That of the prompt that runs."""
        return self.records[self.running_prompt_id()]

    def check(self, prompt: Prompt, prompt_id: str) -> Handle[None]:
        checked: Handle[None] = Handle(f"prompt {prompt_id}")
        nodes = _copy_of(prompt)

        def check() -> None:
            self._validated(nodes, prompt_id, checked)
            checked.set_result(None)

        self._server.submit(check)
        return checked

    def submit(
        self,
        prompt: Prompt,
        prompt_id: str,
        *,
        extra_data: Mapping[str, Any],
        is_first: bool = True,
    ) -> Handle[None]:
        return self._submit(prompt, prompt_id, extra_data, is_first, None)

    def _submit(
        self,
        prompt: Prompt,
        prompt_id: str,
        extra_data: Mapping[str, Any],
        is_first: bool,
        outputs: Sequence[str] | None,
    ) -> Handle[None]:
        submitted: Handle[None] = Handle(f"prompt {prompt_id}")
        nodes = _copy_of(prompt)

        def submit() -> None:
            found = self._validated(nodes, prompt_id, submitted)
            if submitted.done():
                return
            wanted = [each for each in found if outputs is None or each in outputs]
            self._put(_Item(prompt_id, nodes, wanted, extra_data, is_first))
            submitted.set_result(None)

        self._server.submit(submit)
        return submitted

    def _validated(self, nodes: _Nodes, prompt_id: str, handle: Handle[None]) -> list[str]:
        """The outputs that can run; the handle fails if something is wrong."""
        self.validation.pass_through(lambda: self._is_closed)
        outputs = validated_outputs(
            nodes, prompt_id, validate_prompt=self._validate, node_classes=self._classes
        )
        try:
            return asyncio.run(outputs)
        except Exception as error:
            is_told = isinstance(error, ClusterError)
            handle.set_exception(error if is_told else WorkflowError(repr(error)))
            return []

    def _put(self, item: _Item) -> None:
        with self._changed:
            count = sum(each.is_first for each in self._queue)
            self._queue.insert(count if item.is_first else len(self._queue), item)
            self._changed.notify_all()

    async def _validate(
        self, prompt_id: str, prompt: dict[str, dict[str, Any]], partial: object
    ) -> tuple[bool, Any, list[str], dict[str, Any]]:
        """As ComfyUI does it: also turns constants into what the inputs want."""
        errors = {}
        for node_id, node in prompt.items():
            found = list(_errors_of(node, self._classes[node["class_type"]]))
            if found:
                errors[node_id] = {"errors": found}
        outputs = [
            node_id
            for node_id, node in prompt.items()
            if getattr(self._classes[node["class_type"]], "OUTPUT_NODE", False)
        ]
        return bool(outputs), {"message": "Prompt has no outputs"}, outputs, errors

    def cancel(self, prompt_id: str) -> None:
        with self._changed:
            if self._running is not None and self._running.prompt_id == prompt_id:
                self._running.is_interrupted = True
            found = [each for each in self._queue if each.prompt_id == prompt_id]
            self._queue = [each for each in self._queue if each.prompt_id != prompt_id]
        if found:
            self._end(prompt_id, PromptState(Phase.GONE))

    def state_of(self, prompt_id: str) -> PromptState:
        with self._changed:
            if self._running is not None and self._running.prompt_id == prompt_id:
                return PromptState(Phase.RUNNING)
            if any(each.prompt_id == prompt_id for each in self._queue):
                return PromptState(Phase.QUEUED)
            return self._states.get(prompt_id, PromptState(Phase.GONE))

    def watch(
        self, prompt_id: str, *, on_over: OnOver, on_progress: OnProgress | None = None
    ) -> None:
        with self._changed:
            self._watches.setdefault(prompt_id, []).append(_Watch(on_over, on_progress))
            state = self._states.get(prompt_id)
        if state is not None:
            self._tell(prompt_id, state)

    def requested_outputs(self, prompt_id: str) -> Sequence[str] | None:
        running = self._running
        return None if running is None else running.outputs

    def extra_data(self, prompt_id: str) -> Mapping[str, Any]:
        running = self._running
        return {} if running is None else running.extra_data

    def node_type(self, class_type: str) -> NodeType:
        return node_type_of(self._classes.get(class_type))

    # Host: while a node runs.

    def is_interrupted(self) -> bool:
        return self._running is not None and self._running.is_interrupted

    def raise_if_interrupted(self) -> None:
        running = self._running
        if running is not None and running.is_interrupted:
            running.is_interrupted = False
            raise Interrupted

    def is_alone(self, prompt_id: str, node_ids: Collection[str]) -> bool:
        return self._execution is not None and self._execution.at_work <= set(node_ids)

    def show_progress(
        self, prompt_id: str, node_id: str, value: float, maximum: float, text: str
    ) -> None:
        self.shown.append(Shown(prompt_id, node_id, value, maximum, text))

    def show_warning(self, text: str) -> None:
        self.warnings.append(text)

    def free_now(self, *, unload_models: bool, free_memory: bool) -> None:
        self.freed.append(("now", unload_models, free_memory))

    def free_when_done(self, *, unload_models: bool, free_memory: bool) -> None:
        self.freed.append(("when done", unload_models, free_memory))

    def stop_blocked(self) -> Any:
        return Blocked()

    # Host: files.

    def read_workflow(self, workflow_path: str) -> Any:
        if workflow_path not in self.files:
            raise WorkflowError(f"there is no workflow {workflow_path!r}")
        return copy.deepcopy(self.files[workflow_path])

    def load_image(self, name: str) -> tuple[Any, Any]:
        return self.images[name]

    def image_names(self) -> Sequence[str]:
        return list(self.images)

    def check_image(self, name: str) -> str:
        return "" if name in self.images else f"there is no image {name!r} in the input folder"

    # The prompt thread.

    def _work(self) -> None:
        while (item := self._take()) is not None:
            state = self._execute(item)
            with self._changed:
                self._running = None
            self._end(item.prompt_id, state)

    def _take(self) -> _Item | None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._queue)
            if self._is_closed:
                return None
            item = self._running = self._queue.pop(0)
            self.records[item.prompt_id] = Record(item.extra_data)
            self.started.append(item.prompt_id)
            return item

    def _execute(self, item: _Item) -> PromptState:
        self._tell_progress(item.prompt_id, 0.0)
        execution = Execution(
            item.prompt,
            class_of=self._classes.__getitem__,
            raise_if_interrupted=self.raise_if_interrupted,
            on_node_done=lambda fraction: self._tell_progress(item.prompt_id, fraction),
            cache=self._cache,
            runs_twice=self.runs_twice,
            rng=self._rng,
        )
        state = PromptState(Phase.SUCCEEDED)
        self._execution = execution
        try:
            asyncio.run(execution.run(item.outputs))
        except NodeError as error:
            node = f"node {error.node_id} ({item.prompt[error.node_id]['class_type']})"
            if isinstance(error.error, Interrupted):
                state = PromptState(Phase.INTERRUPTED, {}, node, "execution interrupted")
            else:
                kind = type(error.error)
                name = f"{kind.__module__}.{kind.__qualname__}"
                state = PromptState(Phase.FAILED, {}, node, str(error), name)
        return replace(state, outputs=execution.ui)

    def _tell_progress(self, prompt_id: str, fraction: float) -> None:
        for watch in self._watches.get(prompt_id, ()):
            if watch.on_progress is not None:
                watch.on_progress(fraction)

    def _end(self, prompt_id: str, state: PromptState) -> None:
        with self._changed:
            self._states[prompt_id] = state
            self._changed.notify_all()
        self._tell(prompt_id, state)

    def _tell(self, prompt_id: str, state: PromptState) -> None:
        def tell() -> None:
            for watch in self._watches.pop(prompt_id, ()):
                watch.on_over(state)

        self._server.submit(tell)


def _copy_of(prompt: Prompt) -> _Nodes:
    return {node_id: copy.deepcopy(dict(node)) for node_id, node in prompt.items()}


def _bound(node_class: Any, host: FakeComfyUI, work: Work) -> Any:
    """The class, whose nodes talk to this instance."""
    if not issubclass(node_class, ClusterNode):
        return type(node_class.__name__, (node_class,), {"comfy": host})

    def make(self: Any) -> None:
        node_class.__init__(self, work)

    members = {"__init__": make, "_host": classmethod(lambda cls: host)}
    return type(node_class.__name__, (node_class,), members)


def _errors_of(node: dict[str, Any], node_class: Any) -> Any:
    sections = node_class.INPUT_TYPES()
    for section in ("required", "optional"):
        for name, (kind, *_) in sections.get(section, {}).items():
            if name not in node["inputs"]:
                if section == "required":
                    yield {"type": "required_input_missing", "message": "Required input is missing"}
                continue
            value = node["inputs"][name]
            if link_of(value) is not None:
                continue
            if isinstance(kind, str) and kind in CASTS:
                node["inputs"][name] = CASTS[kind](value)
            is_checked = hasattr(node_class, "VALIDATE_INPUTS")
            if isinstance(kind, list) and not is_checked and value not in kind:
                extra = {"input_name": name, "received_value": value}
                yield {"type": "value_not_in_list", "extra_info": extra}
