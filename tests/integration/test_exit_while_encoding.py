"""A program may end while its tensors are encoded or decoded: without a core, without a word.

The program is this file itself: it loads torch, which takes longer than all the rest, and forks
once for each of the codec's functions in which the end has to come.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType

import pytest
import torch

from comfy_cluster.cluster.keys import CollectiveKey
from comfy_cluster.config import Codec, SharedMemory
from comfy_cluster.runtime import build_cluster
from comfy_cluster.transport.handle import Handle
from tests.integration.clusters import READY_TIMEOUT, configs

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
WAIT = 120.0  # seconds; a bound for a broken build, never waited for in a good one
BROADCAST_COUNT = 4

# Function, the codec that comes there, and items of a batch. Sixty are looked at for longer than an
# exit may take; few are soon on the other side.
MOMENTS = {
    "exact_levels": (Codec.RAW8, 60),
    "copy_of": (Codec.RAW, 60),
    "encode_packed": (Codec.BITPACK, 30),
    "decode_packed": (Codec.BITPACK, 30),
    "encode_bands": (Codec.ZSTD, 16),
    "decode_bands": (Codec.ZSTD, 16),
    "encode_png": (Codec.PNG, 8),
    "decode_png": (Codec.PNG, 8),
    "encode_webp": (Codec.WEBP, 8),
    "decode_webp": (Codec.WEBP, 8),
    "fill_values": (Codec.RAW8, 30),
}


def test_an_exit_during_codec_work_is_clean() -> None:
    environ = {name: text for name, text in os.environ.items() if "COMFY_CLUSTER" not in name}
    # Threads of a library that exist before the fork are missing after it.
    environ["OPENBLAS_NUM_THREADS"] = "1"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.integration.test_exit_while_encoding"],
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
        cwd=ROOT,
        env=environ,
    )
    assert (done.returncode, done.stderr) == (0, "")
    ends = {function: [0, f"inside {function}\n", ""] for function in MOMENTS}
    assert json.loads(done.stdout) == ends


def batch_of(count: int) -> torch.Tensor:
    """Images [count, 1024, 1024, 3] of 8 bits."""
    row = torch.arange(1024 * 3, dtype=torch.int32).remainder(256).to(torch.float32)
    return row.div_(torch.full((1,), 255.0)).reshape(1024, 3).repeat(count, 1024, 1, 1)


def called_on_a_codec_thread(function: str) -> threading.Event:
    """Is set when a thread that starts from now on comes to that function.

    Told by the thread itself: who looks at its frames from another one may find anything there
    (Python 3.11).
    """
    is_called = threading.Event()

    def note(frame: FrameType, event: str, _: object) -> None:
        is_it = event == "call" and frame.f_code.co_name == function
        if is_it and "codec" in threading.current_thread().name:
            is_called.set()

    threading.setprofile(note)
    return is_called


def run(function: str) -> None:
    """Ends as a script ends: without closing anything."""
    # With shared memory tensors are not encoded at all.
    codec, count = MOMENTS[function]
    settings = configs(2, shared_memory=SharedMemory.OFF, codec=codec)
    is_called = called_on_a_codec_thread(function)
    clusters = [build_cluster(each) for each in settings]
    for cluster in clusters:
        cluster.start()
    for cluster in clusters:
        cluster.wait_until_ready(READY_TIMEOUT)
    batch = batch_of(count)
    if function == "copy_of":
        batch = batch.transpose(1, 2)
    handles: list[Handle[torch.Tensor]] = []
    while not is_called.wait(0.0005):
        if all(each.done() for each in handles):
            keys = [CollectiveKey("job", f"{len(handles)} {n}") for n in range(BROADCAST_COUNT)]
            handles += [clusters[0].broadcast(key, batch) for key in keys]
            handles += [clusters[1].broadcast(key) for key in keys]
    print(f"inside {function}", flush=True)


def main() -> None:
    """Prints of each function's process how it ended, and what it wrote."""
    ends = {}
    for function in MOMENTS:
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            child = os.fork()
            if child == 0:
                os.dup2(output.fileno(), 1)
                os.dup2(errors.fileno(), 2)
                run(function)
                return
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            ends[function] = [code, *(file.seek(0) or file.read() for file in (output, errors))]
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
