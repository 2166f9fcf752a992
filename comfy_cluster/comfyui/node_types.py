"""What ComfyUI's node classes say of themselves, as values."""

from __future__ import annotations

import logging
from typing import Any

from comfy_cluster.work.host import NodeType
from comfy_cluster.workflows.widgets import widgets_of

logger = logging.getLogger("comfy_cluster.comfyui")

UNKNOWN = NodeType(is_known=False)


def node_type_of(node_class: Any) -> NodeType:
    """Of a class of NODE_CLASS_MAPPINGS, V1 or V3; None: there is no such class."""
    if node_class is None:
        return UNKNOWN
    try:
        input_types = node_class.INPUT_TYPES()
    except Exception:  # another pack's code: its node says so when it runs
        logger.warning("! INPUT_TYPES of %s fails", node_class.__name__, exc_info=True)
        input_types = {}
    return NodeType(
        input_types={
            name: _type_name(specification)
            for section in ("required", "optional")
            for name, specification in (input_types.get(section) or {}).items()
        },
        output_types=tuple(_text(each) for each in node_class.RETURN_TYPES),
        outputs_are_lists=tuple(getattr(node_class, "OUTPUT_IS_LIST", None) or ()),
        takes_lists=bool(getattr(node_class, "INPUT_IS_LIST", False)),
        is_output=bool(getattr(node_class, "OUTPUT_NODE", False)),
        widgets=widgets_of(input_types),
    )


def _type_name(specification: Any) -> str:
    return _text(specification[0])


def _text(kind: Any) -> str:
    return "COMBO" if isinstance(kind, list | tuple) else str(kind)
