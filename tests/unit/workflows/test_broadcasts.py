"""Which broadcast a listening node hears."""

from __future__ import annotations

import pytest

from comfy_cluster.errors import WorkflowError
from comfy_cluster.workflows.broadcasts import broadcast_heard_by
from tests.unit.workflows.prompts import prompt_of


def heard(text: str, *listeners: str) -> list[str]:
    prompt = prompt_of(text)
    return [broadcast_heard_by(prompt, each) for each in listeners]


def test_one_broadcast_is_heard_by_all() -> None:
    text = """
        1 ClusterListenTensorBroadcast
        2 ClusterBroadcastTensor tensor=3.0
        3 LoadImage image=a
        4 ClusterListenTensorBroadcast
    """
    assert heard(text, "1", "4") == ["2", "2"]


def test_of_several_each_hears_the_one_of_its_place() -> None:
    text = """
        a ClusterListenTensorBroadcast
        b ClusterListenTensorBroadcast
        c ClusterBroadcastTensor tensor=e.0
        d ClusterBroadcastTensor tensor=e.0
        e LoadImage image=a
    """
    assert heard(text, "a", "b") == ["c", "d"]


def test_one_may_listen_to_what_depends_on_another_listener() -> None:
    text = """
        a ClusterListenTensorBroadcast
        b ClusterListenTensorBroadcast
        c ClusterBroadcastTensor tensor=e.0
        d ClusterBroadcastTensor tensor=a.0
        e LoadImage image=a
    """
    assert heard(text, "a", "b") == ["c", "d"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 ClusterListenTensorBroadcast", "the workflow has none"),
        (
            "1 ClusterListenTensorBroadcast\n2 ClusterBroadcastTensor tensor=1.0",
            r"waits for node 2 \(ClusterBroadcastTensor\), which depends on it",
        ),
        (
            "1 ClusterListenTensorBroadcast\n2 Blur images=1.0\n"
            "3 ClusterBroadcastTensor tensor=2.0",
            "which depends on it",
        ),
        (
            "1 ClusterListenTensorBroadcast\n"
            "2 ClusterBroadcastTensor tensor=0\n3 ClusterBroadcastTensor tensor=0",
            "2 ClusterBroadcastTensor nodes and 1 ClusterListenTensorBroadcast nodes",
        ),
    ],
)
def test_what_cannot_be_told(text: str, message: str) -> None:
    with pytest.raises(WorkflowError, match=message) as info:
        heard(text, "1")
    assert str(info.value).startswith("node 1 (ClusterListenTensorBroadcast)")
