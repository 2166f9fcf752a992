"""Nodes for tests only: photographs, faults, gates, and tiny random models.

ComfyUI loads this folder as a custom node pack; the tests themselves never import it. Node classes
are V1, as those of the product are.
"""

from __future__ import annotations

from typing import Any

from .control import CONTROL_NODES
from .images import IMAGE_NODES
from .saving import SAVING_NODES
from .shared import end_with_the_tests, instance_index
from .tiny import TINY_NODES
from .values import VALUE_NODES


class TestLeaderOnly:
    """An image node that only instance 0 has: a pack that somebody forgot to install elsewhere."""

    CATEGORY = "test"
    FUNCTION = "execute"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE",)}}

    def execute(self, images: Any) -> tuple[Any]:
        return (images,)


_NODES = (*CONTROL_NODES, *IMAGE_NODES, *SAVING_NODES, *TINY_NODES, *VALUE_NODES)
NODE_CLASS_MAPPINGS: dict[str, type] = {each.__name__: each for each in _NODES}
if instance_index() == 0:
    NODE_CLASS_MAPPINGS["TestLeaderOnly"] = TestLeaderOnly

end_with_the_tests()
