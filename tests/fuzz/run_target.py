"""Fuzzes one target: `python -m tests.fuzz.run_target TARGET [libFuzzer's arguments] FOLDER...`.

Needs atheris, which measures what of the codec an input reaches: https://github.com/google/atheris
libFuzzer's arguments: https://llvm.org/docs/LibFuzzer.html#options
"""

from __future__ import annotations

import shlex
import sys

import atheris
import numcodecs.blosc

with atheris.instrument_imports(
    include=["comfy_cluster.codec", "stun_server.binding", "tests.fuzz"]
):
    import comfy_cluster.codec.sample  # noqa: F401  # all of the codec is loaded in here
    from tests.fuzz.fuzz_decode import TARGETS


def fuzz(name: str, arguments: list[str]) -> None:
    """Ends the process."""
    target = TARGETS[name]
    # As on the codec's threads. Threads of its own would work in memory that they keep.
    numcodecs.blosc.use_threads = False

    def run(data: bytes) -> None:
        target(data)

    # libFuzzer starts itself again by the first word, in a shell, for -merge and -fork.
    itself = f"{shlex.quote(sys.executable)} -m tests.fuzz.run_target {name}"
    atheris.Setup([itself, *arguments], run)
    atheris.Fuzz()


def main() -> None:
    name, *arguments = sys.argv[1:]
    fuzz(name, arguments)


if __name__ == "__main__":
    main()
