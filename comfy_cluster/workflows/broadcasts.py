"""Which broadcast a listening node belongs to. Pure."""

from __future__ import annotations

from comfy_cluster.errors import WorkflowError
from comfy_cluster.workflows.prompt import Prompt, ancestors_of, name_of

BROADCAST = "ClusterBroadcastTensor"
LISTEN = "ClusterListenTensorBroadcast"


def broadcast_heard_by(prompt: Prompt, listener: str) -> str:
    """The broadcast node whose value a listening node gets; the same on every instance.

    One broadcast is heard by all; of several, each listener hears the one of its own place when
    both are ordered by id. `WorkflowError`: there is none, their numbers differ, or what it would
    hear depends on it.
    """
    source = _source_of(prompt, listener)
    if listener in ancestors_of(prompt, [source], stops=frozenset()):
        raise WorkflowError(
            f"{name_of(prompt, listener)} waits for {name_of(prompt, source)}, which depends on it"
        )
    return source


def _source_of(prompt: Prompt, listener: str) -> str:
    senders = _of_class(prompt, BROADCAST)
    listeners = _of_class(prompt, LISTEN)
    if len(senders) == 1:
        return senders[0]
    if not senders:
        raise WorkflowError(
            f"{name_of(prompt, listener)} waits for a {BROADCAST} node, and the workflow has none"
        )
    if len(senders) != len(listeners):
        raise WorkflowError(
            f"{name_of(prompt, listener)} cannot tell what to wait for: the workflow has "
            f"{len(senders)} {BROADCAST} nodes and {len(listeners)} {LISTEN} nodes. Use one "
            "broadcast, or as many of one as of the other"
        )
    return senders[listeners.index(listener)]


def _of_class(prompt: Prompt, class_type: str) -> list[str]:
    return sorted(each for each, node in prompt.items() if node.get("class_type") == class_type)
