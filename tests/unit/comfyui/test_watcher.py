"""Prompts are watched until they are over, on the server's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from comfy_cluster.comfyui.watcher import Watcher
from comfy_cluster.work.host import Phase, PromptState

WAIT = 20.0  # seconds; a bound for a broken build, never waited for in a good one
RUNNING = PromptState(Phase.RUNNING)
DONE = PromptState(Phase.SUCCEEDED, {"1": {}})


@dataclass
class Prompts:
    """What the watcher sees."""

    states: dict[str, PromptState] = field(default_factory=dict)
    fractions: dict[str, float] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    looks: int = 0

    def state_of(self, prompt_id: str) -> PromptState:
        self.looks += 1
        return self.states.get(prompt_id, PromptState(Phase.GONE))

    def watcher(self) -> Watcher:
        return Watcher(
            state_of=self.state_of,
            progress_of=lambda prompt_id: self.fractions.get(prompt_id, 0.0),
            cancel=self.cancelled.append,
            call_on_loop=asyncio.get_running_loop().call_soon_threadsafe,
        )


async def until(is_so: Callable[[], bool]) -> None:
    async def look() -> None:
        while not is_so():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(look(), WAIT)


def test_the_end_is_told_once() -> None:
    async def run() -> list[Any]:
        prompts, ends = Prompts({"a": RUNNING}), list[PromptState]()
        watcher = prompts.watcher()
        watcher.watch("a", ends.append, None)
        await until(lambda: prompts.looks > 1)
        assert ends == []
        prompts.states["a"] = DONE
        await until(lambda: bool(ends))
        looks = prompts.looks
        watcher.watch("b", ends.append, None)  # wakes it up once more
        prompts.states["b"] = DONE
        await until(lambda: len(ends) == 2)
        assert prompts.looks == looks + 1  # nobody looks at what is over
        return ends

    assert asyncio.run(run()) == [DONE, DONE]


def test_several_may_watch_one_prompt_and_one_that_fails_hurts_nobody() -> None:
    async def run() -> list[Any]:
        prompts, ends = Prompts({"a": DONE}), list[PromptState]()
        watcher = prompts.watcher()

        def fail(_: PromptState) -> None:
            raise RuntimeError("a bug")

        watcher.watch("a", fail, None)
        watcher.watch("a", ends.append, None)
        await until(lambda: bool(ends))
        return ends

    assert asyncio.run(run()) == [DONE]


def test_a_prompt_that_cannot_be_looked_at_keeps_nobody_from_the_others() -> None:
    async def run() -> list[Any]:
        prompts, ends = Prompts({"a": RUNNING, "b": RUNNING}), list[PromptState]()
        watcher = prompts.watcher()
        told: list[float] = []
        prompts.fractions["a"] = cast(float, "half")  # what nodes of others may write
        watcher.watch("a", ends.append, told.append)
        watcher.watch("b", ends.append, None)
        await until(lambda: prompts.looks > 2)
        prompts.states["b"] = DONE
        await until(lambda: len(ends) == 1)
        prompts.states["a"] = DONE
        await until(lambda: len(ends) == 2)
        return told

    assert asyncio.run(run()) == []


def test_a_prompt_may_be_watched_a_moment_before_it_is_queued() -> None:
    async def run() -> list[Any]:
        prompts, ends = Prompts(), list[PromptState]()
        watcher = prompts.watcher()
        watcher.watch("a", ends.append, None)
        await until(lambda: prompts.looks > 1)
        prompts.states["a"] = RUNNING
        await until(lambda: prompts.looks > 3)
        assert ends == []
        del prompts.states["a"]  # deleted by its user
        await until(lambda: bool(ends))
        return ends

    assert asyncio.run(run()) == [PromptState(Phase.GONE)]


def test_progress_is_told_when_it_runs_and_when_it_grows() -> None:
    async def run() -> list[float]:
        prompts, told = Prompts({"a": PromptState(Phase.QUEUED)}), list[float]()
        ends = list[PromptState]()
        prompts.watcher().watch("a", ends.append, told.append)
        await until(lambda: prompts.looks > 1)
        assert told == []
        prompts.states["a"] = RUNNING
        await until(lambda: bool(told))
        for fraction in (0.25, 0.25, 0.1, 0.5):
            prompts.fractions["a"] = fraction
            looks = prompts.looks
            await until(lambda seen=looks: prompts.looks > seen + 1)  # type: ignore[misc]
        prompts.states["a"] = DONE
        await until(lambda: bool(ends))
        return told

    assert asyncio.run(run()) == [0.0, 0.25, 0.5]


def test_a_cancel_is_repeated_while_the_prompt_runs() -> None:
    async def run() -> list[str]:
        prompts, ends = Prompts({"a": RUNNING, "b": RUNNING}), list[PromptState]()
        watcher = prompts.watcher()
        for each in "ab":
            watcher.watch(each, ends.append, None)
        watcher.cancel("a")
        await until(lambda: len(prompts.cancelled) > 2)  # a start had cleared the flag
        prompts.states["a"] = PromptState(Phase.INTERRUPTED)
        await until(lambda: bool(ends))
        count = len(prompts.cancelled)
        looks = prompts.looks
        await until(lambda: prompts.looks > looks + 2)
        assert len(prompts.cancelled) == count
        prompts.states["b"] = DONE
        await until(lambda: len(ends) == 2)
        return prompts.cancelled

    assert set(asyncio.run(run())) == {"a"}
