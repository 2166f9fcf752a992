"""Fuzzes all targets, one after the other: `python -m tests.fuzz.run_all FOLDER [arguments]`.

FOLDER has a folder for each target, with its corpus in `corpus`; beside that go what it prints
(`log`) and the inputs that it finds. Prints the exit codes as JSON. Loading torch and measuring the
codec's code takes longer than a short run: so it is done once, and each target is a fork.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.fuzz.fuzz_decode import TARGETS
from tests.fuzz.run_target import fuzz


def main() -> None:
    folder, arguments = Path(sys.argv[1]), sys.argv[2:]
    codes = {}
    for name in TARGETS:
        child = os.fork()
        if child == 0:
            log = os.open(folder / name / "log", os.O_WRONLY | os.O_CREAT)
            os.dup2(log, 1)
            os.dup2(log, 2)
            own = [f"-artifact_prefix={folder / name}/found-", str(folder / name / "corpus")]
            fuzz(name, [*arguments, *own])
            os._exit(1)  # it does not come back
        codes[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps(codes))


if __name__ == "__main__":
    main()
