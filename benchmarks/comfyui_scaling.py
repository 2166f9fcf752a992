"""Scaling in real ComfyUI: one instance against several, with a sleep in the place of each GPU.

    python -m benchmarks.comfyui_scaling
    python -m benchmarks.comfyui_scaling --instances 2 --images 16 --json

Photographs are fanned out, each costs a sleep, and the results are fanned in. What is added to the
sleeps is all that the cluster costs: the orders, ComfyUI's queues, and the pictures' way there and
back. Needs a ComfyUI, as tests/comfyui do (COMFYUI_DIR). The photographs stay loaded: loading them
is the same on one instance and on many.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.comfyui.instances import ComfyCluster, ComfyInstance
from tests.comfyui.photographs import write_photographs
from tests.comfyui.place import ComfyUnavailable, find_comfyui
from tests.comfyui.prompts import Nodes, PromptBuilder, fan_in, fan_out, photographs

EXIT_UNAVAILABLE = 2
GOAL = 3.8  # times as fast on four instances
PREPARATIONS = 2  # runs that are not counted: photographs are loaded, codecs learn their data
# Seconds between runs: ComfyUI collects garbage after a prompt that took 10 s, for about a second.
PAUSE = 3.0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--instances", type=int, default=4)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--side", type=int, default=1024, help="pixels of an image's side")
    parser.add_argument("--seconds", type=float, default=0.5, help="of sleep for an image")
    parser.add_argument("--runs", type=int, default=3, help="of which the median counts")
    parser.add_argument("--json", action="store_true", help="JSON instead of text")
    options = parser.parse_args()
    try:
        find_comfyui()
    except ComfyUnavailable as error:
        print(error, file=sys.stderr)
        return EXIT_UNAVAILABLE
    result = measure(options)
    print(json.dumps(result) if options.json else text_of(result, options), flush=True)
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each counted run, and how many times as fast the cluster is."""
    prompt = slept(options.images, seconds=options.seconds)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scaling-")))
        single = stack.enter_context(ComfyInstance(folder / "single" / "instance"))
        cluster = stack.enter_context(ComfyCluster(options.instances, folder=folder / "cluster"))
        for each in (single, cluster.leader):
            pictures = each.folder / "input" / "photographs"
            write_photographs(pictures, options.images, height=options.side, width=options.side)
        cluster.wait_until_connected()
        alone, divided = (
            [run_time(each, prompt) for _ in range(PREPARATIONS + options.runs)][PREPARATIONS:]
            for each in (single, cluster.leader)
        )
    ratio = statistics.median(alone) / statistics.median(divided)
    return {"alone_s": alone, "divided_s": divided, "ratio": ratio}


def slept(count: int, *, seconds: float) -> Nodes:
    builder = PromptBuilder()
    part = fan_out(builder, photographs(builder, count))
    fan_in(builder, builder.add("TestSleep", images=part, seconds=seconds, show_progress=False))
    return builder.prompt


def run_time(instance: ComfyInstance, prompt: Nodes) -> float:
    """Seconds from the start to the end of a prompt, as ComfyUI itself tells them."""
    history = instance.client.run(prompt, timeout=600)
    started, ended = map(history.message, ("execution_start", "execution_success"))
    assert started is not None and ended is not None
    time.sleep(PAUSE)
    return float(ended["timestamp"] - started["timestamp"]) / 1000


def text_of(result: dict[str, Any], options: argparse.Namespace) -> str:
    alone, divided = (statistics.median(result[name]) for name in ("alone_s", "divided_s"))
    size = f"{options.side}x{options.side}"
    goal = f" (goal: {GOAL} on 4)" if options.instances == 4 else ""
    return "\n".join(
        [
            f"{options.images} photographs {size}, {options.seconds:g} s of sleep for each",
            f"one instance   {alone:7.2f} s",
            f"{options.instances} instances    {divided:7.2f} s",
            f"{result['ratio']:.2f} times as fast{goal}",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
