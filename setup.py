"""Builds the compiled packet engine; everything else is declared in pyproject.toml.

The engine is optional: where it does not compile, the installation goes on without it, and the
pure-Python engine runs in its place. COMFY_CLUSTER_REQUIRE_FASTPATH=1 makes that an error.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError, FileError

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # a build front end does not put the project on the path

from comfy_cluster.config import EngineChoice, engine_choice  # noqa: E402

try:
    from Cython.Compiler.Errors import CompileError as CythonError
except ImportError:  # then build_ext looks for a ready-made .c file, and fails in the usual way
    CythonError = CCompilerError  # type: ignore[misc]

FALLBACK_TEXT = """
********************************************************************************
comfy-cluster: the compiled packet engine was NOT built:
    {error}
The installation goes on with the pure-Python engine: same results, transfers
many times slower. To get the compiled engine install a C compiler (Debian and
Ubuntu: apt-get install build-essential; Windows: Visual Studio Build Tools) and
install comfy-cluster again. COMFY_CLUSTER_REQUIRE_FASTPATH=1 makes this an error.
********************************************************************************
"""


def compile_args(compiler: str) -> list[str]:
    """How fast the code is to be is asked of who builds, too: CFLAGS alone would come before ours.

    No fused multiply-add, whoever asks, so that both engines round RTTs and windows alike.
    """
    if compiler == "msvc":  # which takes no CFLAGS
        return ["/O2", "/fp:precise"]
    if compiler not in ("unix", "mingw32"):
        return []
    return ["-O3", *shlex.split(os.environ.get("CFLAGS", "")), "-ffp-contract=off"]


class BuildFastpath(build_ext):  # type: ignore[misc]
    """build_ext that knows each compiler's options and may do without the extension."""

    def build_extension(self, ext: Extension) -> None:
        # The root's __init__.py makes Cython look for _fastpath.pxd one folder too high.
        ext.cython_include_dirs = [str(ROOT)]
        ext.extra_compile_args = compile_args(self.compiler.compiler_type)
        ext.optional = engine_choice() is not EngineChoice.REQUIRE_COMPILED
        try:
            self.compile(ext)
        except (CCompilerError, BaseError, CythonError) as error:
            if not ext.optional:
                raise
            print(FALLBACK_TEXT.format(error=error), file=sys.stderr)

    def compile(self, ext: Extension) -> None:
        missing = [source for source in ext.sources if not (ROOT / source).exists()]
        if missing:
            raise FileError(f"{', '.join(missing)} is missing")
        super().build_extension(ext)


def fastpath_extension() -> Extension:
    parts = (ROOT / "comfy_cluster" / "_fastpath_parts").glob("*.px[id]")
    return Extension(
        "comfy_cluster._fastpath",
        ["comfy_cluster/_fastpath.pyx"],
        depends=sorted(str(part.relative_to(ROOT)) for part in parts),
        optional=True,
    )


setup(ext_modules=[fastpath_extension()], cmdclass={"build_ext": BuildFastpath})
