"""The compiled part: known_core/kernels/known.cpp, once for each instruction set of this kind of processor.

Everything else about the package stands in pyproject.toml. Where it cannot be compiled, the eager engine does the work.
"""

import platform

from setuptools import Extension, setup

OPTIMISE = ["-O2", "-funroll-loops"]  # -O3 of GCC 12 is a quarter slower: it spills registers (docs/experiments.md)
LEVELS = {"_x86_64_v3": ["-march=x86-64-v3"], "_x86_64_v4": ["-march=x86-64-v4"]}
if platform.machine() not in ("x86_64", "AMD64"):
    LEVELS = {"_generic": []}

setup(
    ext_modules=[
        Extension(
            f"known_core.kernels.{name}",
            ["known_core/kernels/known.cpp"],
            define_macros=[("MODULE_NAME", name)],
            extra_compile_args=["-std=c++17", "-Wno-psabi", *OPTIMISE, *flags],
            py_limited_api=True,
            optional=True,
        )
        for name, flags in LEVELS.items()
    ]
)
