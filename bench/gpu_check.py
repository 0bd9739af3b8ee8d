"""What a GPU is for, in stages: each with its own limit and log, none stops the next. Installs nothing.

    python -m attnkern.bench.gpu_check --out out [--stage 3 | --stage 1-4,8] [--dry-run]

The most doubtful comes first. Stages 1 to 4, and any other alone, take ten minutes at most.
"""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from attnkern.bench import run
from attnkern.commands import CommandError
from attnkern.mac.counters import tool

ROOT = Path(__file__).resolve().parent.parent
GRACE = 10  # seconds between asking a command to end and ending it
FIRST = ("test_conformance", "test_cuda_kernels", "test_many_tiles", "test_cuda_contexts")  # stages of their own
ELSEWHERE = ("test_machine_code", "test_cuda_machine_code")  # need compilers, but no GPU
SANITIZERS = ("memcheck", "synccheck", "initcheck")
COUNTED = ("--kind global --causal", "--kind global --backward", "--kind local --window 256,0", "--kind hard")
CALL = "--device cuda --dtype bfloat16 --head-dim 128 --heads 16 --len-q 4096"
# without xdist these come first, as long as there is time: what a GPU computes otherwise than the interpreter
WORTH = ("budget", "sampling", "centered_triton", "extremes", "packed", "decoding_kernel", "aoa", "mac_attention")


@dataclass(frozen=True)
class Stage:
    """Commands that share a limit in seconds and a log."""

    name: str
    limit: int
    commands: tuple[tuple[str, ...], ...]


def stages(out: Path) -> dict[int, Stage]:
    """By number; results are appended to files in `out`."""
    first, worth = [f"tests/{name}.py" for name in FIRST], [f"tests/test_{name}.py" for name in WORTH]
    rest = [f"--ignore=tests/{name}.py" for name in FIRST + ELSEWHERE]
    tiles = ("--seconds", "360", "--out", str(out / "tiles.jsonl"))
    return {
        1: Stage("build and conformance", 420, (_python("csrc/build.py", "cuda"), _tests(first[0]))),
        2: Stage("kernels", 240, (_tests(first[1]),)),
        3: Stage("many tiles", 120, (_tests(first[2]),)),
        4: Stage("contexts", 60, (_tests(first[3]),)),
        5: Stage("global and local", 200, (_bench(out, "roofs,global,local", "roof|forward|backward", 150),)),
        6: Stage("the rest of the tests", 400, (_tests(*worth, "tests", *rest),)),
        7: Stage("extras, centres, heads of 256", 240, (_bench(out, "learned,extras,hard", "", 190),)),
        8: Stage("counters and sanitizers", 300, _inspections()),
        9: Stage("tuning", 400, (_module("attnkern.bench.tune_triton", *tiles),)),
    }


def _python(*arguments: str) -> tuple[str, ...]:
    return sys.executable, *arguments


def _module(*arguments: str) -> tuple[str, ...]:
    return _python("-m", *arguments)


def _tests(*arguments: str) -> tuple[str, ...]:
    """In several processes, and with a limit for each test, where pytest has what that takes."""
    options = ["-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    options += ["-n", "8", "--dist", "worksteal"] if find_spec("xdist") else []
    options += ["--timeout=200"] if find_spec("pytest_timeout") else []
    return _module("pytest", *arguments, *options)


def _bench(out: Path, suites: str, rows: str, seconds: int) -> tuple[str, ...]:
    """Beside torch's own attention, and whatever else is installed of what is fastest."""
    peers = [name for name in ("sdpa", "flash-attn", "flash-attn-4") if name in run.peers_here()]
    which = ("--suite", suites, "--rows", rows, "--peers", ",".join(peers))
    return _module("attnkern", "bench", *which, "--seconds", str(seconds), "--out", str(out / "bench.jsonl"))


def _inspections() -> tuple[tuple[str, ...], ...]:
    """Nsight Compute's counters of calls, and each sanitizer over one small case of each kernel, where they are."""
    found = []
    if tool("ncu"):
        found += [_module("attnkern", "profile", "--counters", *case.split(), *CALL.split()) for case in COUNTED]
    if sanitizer := tool("compute-sanitizer"):
        # memory from the driver, whose bounds are seen; in one process
        options = ("env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", sanitizer, "--error-exitcode", "9", "--tool")
        few = ("tests/test_many_tiles.py", "-k", "test_few_multiprocessors and 128", "-q", "-p", "no:cacheprovider")
        found += [(*options, name, *_module("pytest", *few)) for name in SANITIZERS]
    return tuple(found)


def chosen(text: str | None, known: Sequence[int]) -> list[int]:
    """Numbers from such as "3" or "1-4,8".

    Raises:
        CommandError: it is no such list, or a stage does not exist.
    """
    if text is None:
        return list(known)
    found = []
    for part in text.split(","):
        if not (match := re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)):
            raise CommandError(f"--stage must be such as 3 or 1-4,8, got {text!r}")
        begin, end = int(match[1]), int(match[2] or match[1])
        found += range(begin, end + 1)
    if unknown := [number for number in found if number not in known]:
        raise CommandError(f"there is no stage {unknown[0]}: choose from {known[0]} to {known[-1]}")
    return found


def carry_out(number: int, stage: Stage, out: Path) -> list[str]:
    """Runs a stage's commands within its limit; what failed of them."""
    end, failed = time.monotonic() + stage.limit, []
    with (out / f"stage{number}.log").open("w") as log:
        for command in stage.commands:
            print(f"$ {shlex.join(command)}", file=log, flush=True)
            left = end - time.monotonic()
            code = _within(command, left, log) if left > 0 else "no time was left"
            print(f"[{code}]", file=log, flush=True)
            if code != 0:
                failed.append(f"{shlex.join(command)}: {code}")
    return failed


def _within(command: tuple[str, ...], seconds: float, log) -> int | str:
    """Exit status; a command that runs too long is interrupted, so that it still says what it found, then killed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = {"cwd": ROOT, "env": environment, "stdin": subprocess.DEVNULL, "start_new_session": True}
    try:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **options)
    except OSError as error:
        return f"cannot be run: {error}"
    for wait, sign in ((seconds, signal.SIGINT), (GRACE, signal.SIGKILL)):
        try:
            code = process.wait(wait)
            return code if sign == signal.SIGINT else f"ran past {seconds:.0f} s"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, sign)
    process.wait()
    return f"ran past {seconds:.0f} s"


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip() and line[0] not in "$["]
    return lines[-1].strip() if lines else ""


def device() -> str:
    """What logs and rows are of."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of logs and rows (default: %(default)s)")
    parser.add_argument("--stage", metavar="N", help="only some, such as 3 or 1-4,8")
    parser.add_argument("--dry-run", action="store_true", help="say what would be run")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    plan = stages(out)
    try:
        numbers = chosen(options.stage, list(plan))
    except CommandError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2
    if not options.dry_run:
        out.mkdir(parents=True, exist_ok=True)
    print(f"gpu-check: {device()}", flush=True)
    broken = []
    for number in numbers:
        stage = plan[number]
        print(f"{number} {stage.name}, {stage.limit} s at most, {out / f'stage{number}.log'}", flush=True)
        if options.dry_run:
            print(*(f"  {shlex.join(command)}" for command in stage.commands), sep="\n")
            continue
        begin = time.monotonic()
        failed = carry_out(number, stage, out)
        print(f"  {time.monotonic() - begin:.0f} s; {last_line(out / f'stage{number}.log')}", flush=True)
        print(*(f"  failed: {line}" for line in failed), sep="\n", end="\n" if failed else "", flush=True)
        broken += [number] * bool(failed)
    if broken:
        print(f"gpu-check: failed: {', '.join(map(str, broken))}")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
