"""Coverage-guided fuzzing with atheris: ``make fuzz``, or ``python -m tests.fuzz --seconds 60 --target header``.

Each target runs in a process of its own. What it finds is written below ``--out`` with how to run it again.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

MAX_BYTES = 8192  # of an input


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--target", action="append", help="only these")
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--again", type=Path, help="run one finding with the only --target, without a fuzzer")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments, rest = parser.parse_known_args()
    if arguments.child:
        fuzz(arguments.target[0], [sys.argv[0], *rest])
    from tests.fuzz.targets import TARGETS, run, seeds

    if arguments.again:
        print(run(arguments.target[0], arguments.again.read_bytes()) or "no error")
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = False
    for name in arguments.target or TARGETS:
        with tempfile.TemporaryDirectory() as corpus:
            for index, seed in enumerate(seeds(name)):
                (Path(corpus) / str(index)).write_bytes(seed)
            prefix = arguments.out / f"{name}-"
            command = [
                sys.executable, "-m", "tests.fuzz", "--child", "--target", name, f"-max_total_time={arguments.seconds}",
                f"-max_len={MAX_BYTES}", "-timeout=20", "-rss_limit_mb=4096", "-print_final_stats=1", "-verbosity=0",
                f"-artifact_prefix={prefix}", corpus,
            ]  # fmt: skip
            print(f"{name}: {arguments.seconds} s", flush=True)
            found |= subprocess.run(command, check=False).returncode != 0
    for path in sorted(arguments.out.iterdir()):
        print(f"found: python -m tests.fuzz --target {path.name.partition('-')[0]} --again {path}")
    return int(found)


def fuzz(name: str, arguments: list[str]) -> None:
    """Fuzz in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=["known_core.checkpoint", "known_core.data", "known_core.models", "zipfile",
                                             "json", "csv", "PIL"]):  # fmt: skip
        from tests.fuzz.targets import run

    def one(data: bytes) -> None:
        run(name, data)

    atheris.Setup(arguments, one)
    atheris.Fuzz()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    raise SystemExit(main())
