"""Looks after prompts until they are over: ComfyUI tells of their end only to the page.

One task on the server's event loop looks at all of them; there is none while there is nothing to
look at. Asking the queue is the one way that works with every version (task_done has changed).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from comfy_cluster.work.host import Phase, PromptState

logger = logging.getLogger("comfy_cluster.comfyui")

INTERVAL = 0.05  # seconds
# A prompt may be watched from the moment before it is queued.
_LOOKS_BEFORE_GONE = 20


@dataclass
class _Watched:
    prompt_id: str
    on_over: Callable[[PromptState], object]
    on_progress: Callable[[float], object] | None
    fraction: float = -1.0  # what was told last
    looks_in_vain: int = 0


class Watcher:
    """`run_on_loop(coroutine)` runs it on the server's event loop. `watch` is thread-safe."""

    def __init__(
        self,
        *,
        state_of: Callable[[str], PromptState],
        progress_of: Callable[[str], float],
        cancel: Callable[[str], object],
        call_on_loop: Callable[[Callable[[], object]], object],
    ) -> None:
        self._state_of = state_of
        self._progress_of = progress_of
        self._cancel = cancel
        self._call_on_loop = call_on_loop
        # Touched on the event loop only.
        self._watched: list[_Watched] = []
        self._cancelled: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def watch(
        self,
        prompt_id: str,
        on_over: Callable[[PromptState], object],
        on_progress: Callable[[float], object] | None,
    ) -> None:
        """See `Host.watch`."""
        self._call_on_loop(lambda: self._add(_Watched(prompt_id, on_over, on_progress)))

    def cancel(self, prompt_id: str) -> None:
        """Cancels a prompt, and again while it is watched and still runs."""
        self._cancel(prompt_id)
        self._call_on_loop(lambda: self._cancelled.add(prompt_id))

    def _add(self, watched: _Watched) -> None:
        self._watched.append(watched)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        while self._watched:
            for watched in list(self._watched):
                if self._is_over_now(watched):
                    self._watched.remove(watched)
            self._cancelled &= {watched.prompt_id for watched in self._watched}
            await asyncio.sleep(INTERVAL)

    def _is_over_now(self, watched: _Watched) -> bool:
        try:
            return self._is_over(watched)
        except Exception:  # nodes of others write into what is read here
            logger.exception("! prompt %s could not be looked at", watched.prompt_id)
            return False

    def _is_over(self, watched: _Watched) -> bool:
        state = self._state_of(watched.prompt_id)
        if state.phase is Phase.GONE:
            watched.looks_in_vain += 1
            if watched.looks_in_vain < _LOOKS_BEFORE_GONE:
                return False
        if not state.phase.is_over:
            if watched.prompt_id in self._cancelled:
                self._cancel(watched.prompt_id)
            if state.phase is Phase.RUNNING:
                self._tell_progress(watched)
            return False
        _call(watched.on_over, state)
        return True

    def _tell_progress(self, watched: _Watched) -> None:
        if watched.on_progress is None:
            return
        fraction = self._progress_of(watched.prompt_id)
        if fraction > watched.fraction:
            watched.fraction = fraction
            _call(watched.on_progress, fraction)


def _call(fn: Callable[..., object], argument: object) -> None:
    try:
        fn(argument)
    except Exception:  # the top of what ComfyUI's loop runs of ours: others are watched too
        logger.exception("! what was to happen after a prompt failed")
