"""What the work needs of the ComfyUI process that it runs in, as a Protocol.

`comfyui.host.ComfyHost` offers it. Everything here may be called on any thread unless it says
otherwise; nothing blocks for longer than a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from comfy_cluster.transport.handle import Handle
from comfy_cluster.workflows.prompt import Prompt
from comfy_cluster.workflows.widgets import Widget

# Keys of a prompt's extra_data that are somebody's secret, or ComfyUI's own affair: both stay on
# the instance where it was queued.
SECRETS = frozenset({"auth_token_comfy_org", "api_key_comfy_org"})
PRIVATE_EXTRA_DATA = SECRETS | {"client_id", "create_time"}


class Phase(Enum):
    """Where a prompt is in ComfyUI's queue."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    GONE = "gone"
    """Neither queued nor running nor in the history: deleted, or never there."""

    @property
    def is_over(self) -> bool:
        return self not in (Phase.QUEUED, Phase.RUNNING)


@dataclass(frozen=True, slots=True)
class PromptState:
    """What became of a prompt."""

    phase: Phase
    outputs: Mapping[str, Any] = field(default_factory=dict)
    """By node id what ComfyUI's history tells of it (file names, texts); JSON."""
    failed_node: str = ""
    """The node that failed or was interrupted, for people; empty if there is none."""
    message: str = ""
    """What it said."""
    error_type: str = ""
    """The full name of the type of what it raised; empty if it was interrupted."""


@dataclass(frozen=True, slots=True)
class NodeType:
    """What is known of a node class."""

    input_types: Mapping[str, str] = field(default_factory=dict)
    """By name; a choice of values is `COMBO`."""
    output_types: tuple[str, ...] = ()
    outputs_are_lists: tuple[bool, ...] = ()
    takes_lists: bool = False
    is_output: bool = False
    is_known: bool = True
    """Whether this ComfyUI has such a class."""
    widgets: tuple[Widget, ...] = ()
    """Those of the page, from `widgets_of(INPUT_TYPES())`; a file's values are in their order."""

    def makes_list(self, output: int) -> bool:
        """Whether that output is a list of values by itself."""
        return output < len(self.outputs_are_lists) and self.outputs_are_lists[output]


class Host(Protocol):
    """One ComfyUI process."""

    @property
    def is_leader(self) -> bool:
        """Whether this instance's settings make it the leader; True if there are none."""

    @property
    def can_expand(self) -> bool:
        """Whether this ComfyUI takes nodes that expand: not so with `--cache-none`."""

    def running_prompt_id(self) -> str:
        """The prompt of the node that asks. In nodes only."""

    def check(self, prompt: Prompt, prompt_id: str) -> Handle[None]:
        """Validates a prompt and does nothing else; see `submit`."""

    def submit(
        self,
        prompt: Prompt,
        prompt_id: str,
        *,
        extra_data: Mapping[str, Any],
        is_first: bool = True,
    ) -> Handle[None]:
        """Validates a prompt and queues it; done when it is there.

        `is_first`: before all that are not, and behind those that are and came before.
        Fails with WorkflowError, whose text says what is missing, before anything is computed.
        """

    def cancel(self, prompt_id: str) -> None:
        """Takes a prompt out of the queue, or interrupts it if it runs. No other is touched."""

    def state_of(self, prompt_id: str) -> PromptState:
        """Where a prompt is; what it made, once it is over."""

    def watch(
        self,
        prompt_id: str,
        *,
        on_over: Callable[[PromptState], object],
        on_progress: Callable[[float], object] | None = None,
    ) -> None:
        """Calls `on_over(state)` once, on any thread, soon after a prompt has ended.

        Until then `on_progress(fraction)`, once it runs and whenever that has grown: 0.0 to 1.0,
        the nodes that are done, and the running one in proportion.
        """

    def requested_outputs(self, prompt_id: str) -> Sequence[str] | None:
        """The output nodes that a running prompt was queued for; None: not known."""

    def extra_data(self, prompt_id: str) -> Mapping[str, Any]:
        """What a running prompt was queued with, without what ComfyUI keeps to itself."""

    def node_type(self, class_type: str) -> NodeType:
        """What is known of a node class; `is_known` is False if it is not there."""

    def is_interrupted(self) -> bool:
        """Whether the running prompt is to stop; asking changes nothing."""

    def raise_if_interrupted(self) -> None:
        """Raises ComfyUI's own exception if the running prompt is to stop. In nodes only."""

    def is_alone(self, prompt_id: str, node_ids: Collection[str]) -> bool:
        """Whether no other nodes of the running prompt than these are at work at this moment."""

    def show_progress(
        self, prompt_id: str, node_id: str, value: float, maximum: float, text: str
    ) -> None:
        """Shows progress on a node of the running prompt; nothing if another one runs."""

    def show_warning(self, text: str) -> None:
        """Shows it on the page, beside what runs; any thread."""

    def free_now(self, *, unload_models: bool, free_memory: bool) -> None:
        """Frees memory at once. In nodes only."""

    def free_when_done(self, *, unload_models: bool, free_memory: bool) -> None:
        """Frees memory when the running prompt has ended."""

    def read_workflow(self, workflow_path: str) -> Any:
        """The parsed file of ComfyUI's workflow folder. WorkflowError: no such file, no JSON."""

    def load_image(self, name: str) -> tuple[Any, Any]:
        """`image` [B,H,W,C] and `mask` [B,H,W] of a file in the input folder, as LoadImage does."""

    def image_names(self) -> Sequence[str]:
        """The image files of the input folder."""

    def check_image(self, name: str) -> str:
        """Empty, or what is wrong with the name of an image file."""

    def stop_blocked(self) -> Any:
        """The value that makes ComfyUI skip the nodes behind it, without an error."""
