"""Runs prompts as ComfyUI's executor does, as far as the cluster's nodes can tell.

One event loop a prompt; nodes whose inputs are there run in any order; async ones are waited for
while others run. Nodes are called once for each element of their lists unless they take lists.
Lazy inputs, node expansion, blocked values and the cache follow ComfyUI 0.3.64, also where it is
odd: of lists that an expansion ends in, the elements become separate outputs.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from comfy_cluster.workflows.prompt import link_of, links_of

Outputs = list[list[Any]]


class Interrupted(BaseException):
    """As ComfyUI's own since April 2026: no Exception."""


class Blocked:
    """In place of a value: nodes that read it are skipped."""


class NodeError(Exception):
    """A node failed or was interrupted; `node_id` is one of the prompt as it was queued."""

    def __init__(self, node_id: str, error: BaseException) -> None:
        super().__init__(str(error))
        self.node_id = node_id
        self.error = error


@dataclass
class DynamicPrompt:
    """A prompt, and the nodes that others were expanded to."""

    original: dict[str, dict[str, Any]]
    ephemeral: dict[str, dict[str, Any]] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)

    def get_node(self, node_id: str) -> dict[str, Any]:
        found = self.ephemeral.get(node_id) or self.original.get(node_id)
        if found is None:
            raise KeyError(f"Node {node_id} not found")
        return found

    def all_node_ids(self) -> set[str]:
        return {*self.original, *self.ephemeral}

    def get_display_node_id(self, node_id: str) -> str:
        while node_id in self.parents:
            node_id = self.parents[node_id]
        return node_id

    def add(self, nodes: Mapping[str, dict[str, Any]], parent: str) -> None:
        for node_id, node in nodes.items():
            if node_id in self.all_node_ids():
                raise RuntimeError(f"Attempt to add duplicate node {node_id}")
            self.ephemeral[node_id] = node
            self.parents[node_id] = parent


@dataclass
class Cached:
    """What a node gave."""

    outputs: Outputs
    ui: dict[str, Any]


class Execution:
    """One prompt while it runs."""

    def __init__(
        self,
        prompt: dict[str, dict[str, Any]],
        *,
        class_of: Callable[[str], Any],
        raise_if_interrupted: Callable[[], object],
        on_node_done: Callable[[float], object],
        cache: dict[Any, Cached],
        runs_twice: Collection[str],
        rng: random.Random,
    ) -> None:
        """`runs_twice`: classes whose results get lost at once, as when memory is short."""
        self.dynprompt = DynamicPrompt(prompt)
        self.ui: dict[str, Any] = {}
        self._class_of = class_of
        self._raise_if_interrupted = raise_if_interrupted
        self._on_node_done = on_node_done
        self._cache = cache
        self._lost = {
            node_id for node_id, node in prompt.items() if node["class_type"] in runs_twice
        }
        self._rng = rng
        self._objects: dict[str, Any] = {}
        self._outputs: dict[str, Outputs] = {}
        self._needs: dict[str, set[str]] = {}  # of nodes that are not done: sources
        self._running: dict[str, asyncio.Task[list[Any]]] = {}
        self._expanded: dict[str, list[tuple[bool, Any]]] = {}
        self._signatures: dict[str, Any] = {}

    async def run(self, outputs: Sequence[str]) -> None:
        """Raises NodeError."""
        with torch.inference_mode():
            for node_id in outputs:
                self._add(node_id)
            while self._needs:
                node_id = await self._next()
                try:
                    await self._visit(node_id)
                except (Interrupted, Exception) as error:
                    top = self.dynprompt.get_display_node_id(node_id)
                    raise NodeError(top, error) from error

    @property
    def at_work(self) -> set[str]:
        """Nodes that run, or could."""
        ready = (each for each, sources in self._needs.items() if sources <= self._outputs.keys())
        return {*self._running, *ready}

    # Which node is next.

    def _class(self, node_id: str) -> Any:
        return self._class_of(self.dynprompt.get_node(node_id)["class_type"])

    def _add(self, node_id: str) -> None:
        """Makes a node run, and before it all that it reads."""
        if node_id in self._needs or self._is_done(node_id):
            return
        lazy = _lazy_inputs(self._class(node_id))
        links = links_of(self.dynprompt.get_node(node_id))
        sources = {source for name, (source, _) in links if name not in lazy}
        self._needs[node_id] = sources
        for source in sources:
            self._add(source)

    def _is_done(self, node_id: str) -> bool:
        if node_id not in self._outputs:
            cached = self._cache.get(self._signature(node_id))
            if cached is None:
                return False
            self._outputs[node_id] = cached.outputs
            if cached.ui:
                self.ui[node_id] = cached.ui
        return True

    async def _next(self) -> str:
        while True:
            done = [node_id for node_id, task in self._running.items() if task.done()]
            ready = [
                node_id
                for node_id, sources in self._needs.items()
                if node_id not in self._running and sources <= self._outputs.keys()
            ]
            if done or ready:
                return self._rng.choice(done + ready)
            if not self._running:
                raise RuntimeError(f"Dependency cycle detected: {sorted(self._needs)}")
            await asyncio.wait(self._running.values(), return_when=asyncio.FIRST_COMPLETED)

    # One node.

    async def _visit(self, node_id: str) -> None:
        if node_id in self._expanded:
            self._finish(node_id, self._joined(node_id, self._expanded.pop(node_id)), {})
            return
        returned = await self._returned(node_id)
        if returned is None:
            return
        results, ui, nodes = _parsed(returned, self._class(node_id))
        if any(is_expanded for is_expanded, _ in results):
            self._expand(node_id, results, nodes)
        else:
            self._finish(node_id, self._joined(node_id, results), ui)

    async def _returned(self, node_id: str) -> list[Any] | None:
        """What all calls of the node return; None: not yet."""
        if node_id in self._running:
            return self._running.pop(node_id).result()
        self._raise_if_interrupted()
        node = self._objects.setdefault(node_id, self._class(node_id)())
        inputs, missing = self._inputs_of(node_id)
        if hasattr(node, "check_lazy_status"):
            asked = await _call_all(node, inputs, "check_lazy_status", lambda: None)
            wanted = {name for each in asked if isinstance(each, list) for name in each}
            wanted &= missing
            if wanted:
                self._make_strong(node_id, wanted)
                return None
        work = _call_all(node, inputs, self._class(node_id).FUNCTION, self._raise_if_interrupted)
        task = asyncio.get_running_loop().create_task(work)
        await asyncio.sleep(0)
        if task.done():
            return task.result()
        self._running[node_id] = task
        return None

    def _make_strong(self, node_id: str, names: set[str]) -> None:
        for name, (source, _) in links_of(self.dynprompt.get_node(node_id)):
            if name in names:
                self._needs[node_id].add(source)
                self._add(source)

    def _inputs_of(self, node_id: str) -> tuple[dict[str, list[Any]], set[str]]:
        """Lists by input name, and the names of those that are not there yet."""
        declared = self._class(node_id).INPUT_TYPES()
        known = {name for section in declared.values() for name in section}
        inputs: dict[str, list[Any]] = {}
        missing = set()
        for name, value in self.dynprompt.get_node(node_id)["inputs"].items():
            link = link_of(value)
            if link is None:
                if name in known:
                    inputs[name] = [value]
            elif link[0] in self._outputs and link[1] < len(self._outputs[link[0]]):
                inputs[name] = self._outputs[link[0]][link[1]]
            else:
                inputs[name] = [None]
                missing.add(name)
        hidden = {
            "PROMPT": self.dynprompt.original,
            "DYNPROMPT": self.dynprompt,
            "UNIQUE_ID": node_id,
        }
        for name, kind in declared.get("hidden", {}).items():
            if kind in hidden:
                inputs[name] = [hidden[kind]]
        return inputs, missing

    def _expand(
        self, node_id: str, results: list[tuple[bool, Any]], nodes: dict[str, dict[str, Any]]
    ) -> None:
        self.dynprompt.add(nodes, node_id)
        for each, node in nodes.items():
            if getattr(self._class_of(node["class_type"]), "OUTPUT_NODE", False):
                self._add(each)
        for is_expanded, result in results:
            for value in result if is_expanded else ():
                if (link := link_of(value)) is not None:
                    self._needs[node_id].add(link[0])
                    self._add(link[0])
        self._expanded[node_id] = results

    def _joined(self, node_id: str, results: list[tuple[bool, Any]]) -> Outputs:
        """The results of all calls as a list for each output."""
        resolved = [
            self._resolved(result) if is_expanded else result for is_expanded, result in results
        ]
        if not resolved:
            return []
        count = len(resolved[0])
        are_lists = getattr(self._class(node_id), "OUTPUT_IS_LIST", [False] * count)
        joined: Outputs = []
        for index, is_list in zip(range(count), are_lists, strict=False):
            values: list[Any] = []
            for result in resolved:
                if is_list and not isinstance(result[index], Blocked):
                    values.extend(result[index])
                else:
                    values.append(result[index])
            joined.append(values)
        return joined

    def _resolved(self, result: Sequence[Any]) -> tuple[Any, ...]:
        values: list[Any] = []
        for value in result:
            link = link_of(value)
            values += [value] if link is None else self._outputs[link[0]][link[1]]
        return tuple(values)

    def _finish(self, node_id: str, outputs: Outputs, ui: dict[str, Any]) -> None:
        if node_id in self._lost:  # its inputs are there, so it runs once more
            self._lost.remove(node_id)
            return
        self._outputs[node_id] = outputs
        if ui:
            self.ui[node_id] = ui
        self._cache[self._signature(node_id)] = Cached(outputs, ui)
        del self._needs[node_id]
        self._on_node_done(len(self._outputs) / len(self.dynprompt.all_node_ids()))

    # What the cache knows a result by.

    def _signature(self, node_id: str) -> Any:
        if node_id not in self._signatures:
            node = self.dynprompt.get_node(node_id)
            node_class = self._class(node_id)
            is_alone = getattr(node_class, "NOT_IDEMPOTENT", False)
            self._signatures[node_id] = (
                node["class_type"],
                node_id if is_alone else "",
                self._is_changed(node, node_class),
                tuple(
                    (name, repr(value))
                    if link is None
                    else (name, self._signature(link[0]), link[1])
                    for name, value in sorted(node["inputs"].items())
                    for link in [link_of(value)]
                ),
            )
        return self._signatures[node_id]

    @staticmethod
    def _is_changed(node: dict[str, Any], node_class: Any) -> Any:
        """What the class says of it, which is noted in the prompt."""
        if not hasattr(node_class, "IS_CHANGED"):
            return None
        if "is_changed" not in node:
            constants = {k: v for k, v in node["inputs"].items() if link_of(v) is None}
            node["is_changed"] = [node_class.IS_CHANGED(**constants)]
        return tuple(node["is_changed"])


def _lazy_inputs(node_class: Any) -> set[str]:
    return {
        name
        for section in ("required", "optional")
        for name, (_, *options) in node_class.INPUT_TYPES().get(section, {}).items()
        if options and options[0].get("lazy")
    }


async def _call_all(
    node: Any, inputs: dict[str, list[Any]], name: str, before: Callable[[], object]
) -> list[Any]:
    """One call for each element of the lists, of which short ones repeat their last; or one."""
    if getattr(node, "INPUT_IS_LIST", False):
        blocked = any(isinstance(each, Blocked) for values in inputs.values() for each in values)
        return [Blocked() if blocked else await _call(node, inputs, name, before)]
    count = max(map(len, inputs.values()), default=1)
    calls = [
        {key: values[min(index, len(values) - 1)] for key, values in inputs.items()}
        for index in range(count)
    ]
    return list(
        await asyncio.gather(
            *(
                _blocked()
                if any(isinstance(value, Blocked) for value in call.values())
                else _call(node, call, name, before)
                for call in calls
            )
        )
    )


async def _blocked() -> Blocked:
    return Blocked()


async def _call(
    node: Any, inputs: Mapping[str, Any], name: str, before: Callable[[], object]
) -> Any:
    before()
    returned = getattr(node, name)(**inputs)
    return await returned if inspect.isawaitable(returned) else returned


def _parsed(
    returned: list[Any], node_class: Any
) -> tuple[list[tuple[bool, Any]], dict[str, Any], dict[str, dict[str, Any]]]:
    """Whether each call was expanded and its result; what is shown; the nodes of all expansions."""
    results: list[tuple[bool, Any]] = []
    ui: dict[str, Any] = {}
    nodes: dict[str, dict[str, Any]] = {}
    for each in returned:
        if isinstance(each, dict):
            for key, values in each.get("ui", {}).items():
                ui[key] = [*ui.get(key, ()), *values]
            nodes.update(each.get("expand", {}))
            if "result" in each:
                results.append(("expand" in each, each["result"]))
        elif isinstance(each, Blocked):
            results.append((False, tuple(each for _ in node_class.RETURN_TYPES)))
        else:
            results.append((False, each))
    return results, ui, nodes
