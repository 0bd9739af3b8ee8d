"""Show where the time of a model or of one attention call goes, and which share of the device's roofs it reaches.

Without --model and --kind it is a BERT-like encoder with attnkern's attention.
"""

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

import attnkern
from attnkern import mac
from attnkern.commands import CommandError, check_file, machine_code, problem_flags
from attnkern.commands.info import missing
from attnkern.mac import counters
from attnkern.mac.calls import call_of

FEATURES, HEADS, LAYERS = 768, 12, 2
NOT_USERS = [str(Path(package.__file__).parent) + os.sep for package in (attnkern, torch, importlib)]
TOKENS = {"cpu": (1, 128), "cuda": (32, 512)}  # batch and length


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--model", metavar="MODULE:NAME",
        help="a function without arguments that returns a model and its inputs, as a tuple; a dict at the end holds "
        "those by name",
    )  # fmt: skip
    add("--backward", action="store_true", help="the backward as well")
    add("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    add("--trace", type=Path, metavar="FILE", help="also write a trace for Perfetto (https://ui.perfetto.dev)")
    add("--fresh-roofs", action="store_true", help="measure the roofs again (they are kept for 30 days)")
    add("--counters", action="store_true", help="compare what is counted with the GPU's own counters (needs ncu)")
    add(
        "--machine-code", nargs="?", const=True, type=Path, metavar="FILE",
        help="read what each score costs off the machine code of the CUDA C++ kernels, or of a cubin or module in "
        "FILE, or with --kind of the Triton kernels compiled for sm_90; needs no GPU",
    )  # fmt: skip
    problem_flags.add_arguments(parser, kind=None)


def run(arguments: argparse.Namespace) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # read when torch's profiler first starts, which talks to itself
    files = {flag: file for flag in ("json", "trace") if (file := getattr(arguments, flag)) is not None}
    for flag, file in files.items():
        if arguments.counters or arguments.machine_code:
            raise CommandError(f"--{flag} goes with a profile, not with --counters or --machine-code")
        check_file(f"--{flag}", file)
    if len({os.path.realpath(file) for file in files.values()}) < len(files):
        raise CommandError(f"--json and --trace name the same file, {arguments.json}")
    if arguments.model and arguments.kind:
        raise CommandError("--model and --kind name two things to profile; leave one out")
    if arguments.counters and not arguments.kind:
        raise CommandError("--counters compares one attention call: describe it, beginning with --kind")
    if not arguments.kind and (given := problem_flags.given(arguments)):
        raise CommandError(f"{given[0]} describes one attention call: begin with --kind")
    problem = problem_flags.problem_of(arguments) if arguments.kind else None
    if arguments.counters:
        return _compare(problem, arguments)
    if arguments.machine_code:
        return machine_code.show(None if arguments.machine_code is True else arguments.machine_code, problem)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise CommandError("--device cuda: there is no GPU here")
    named = {}
    with _named_errors():
        if problem is not None:
            model, inputs = call_of(problem, arguments.backward, arguments.backend)
        else:
            model, inputs, named = _imported(arguments.model) if arguments.model else _encoder(arguments.device)
        roofs = mac.roofs(_device(model, inputs, named), fresh=arguments.fresh_roofs, progress=_bar)
        profile = mac.profile(model, *inputs, **named, backward=arguments.backward, roofs=roofs)
        floor = "" if problem is None else _against_floor(problem, profile, roofs, arguments)
    if arguments.json:
        profile.to_json(arguments.json)
    if arguments.trace:
        profile.to_chrome_trace(arguments.trace)
    print(f"{profile}\n{floor}".rstrip())
    return 0


def _against_floor(problem, profile: mac.Profile, roofs: mac.Roofs, arguments: argparse.Namespace) -> str:
    """What was counted, and the time below which it cannot be done here."""
    count = mac.count(problem, "training" if arguments.backward else "forward", backend=arguments.backend)
    floor = roofs.floor(count, problem.dtype)
    share = count.useful_macs / count.issued_macs if count.issued_macs else 1.0
    lines = [
        "",
        str(problem),
        f"useful MACs {count.useful_macs:,}, {share:.0%} of those in the tiles computed; bytes {count.bytes:,}; "
        f"exps {count.exps:,}; random words {count.randoms:,}",
        f"floor {1e3 * floor.seconds:.3f} ms, set by {floor.limit}: {profile.seconds / floor.seconds:.1f} times "
        "that is what the call takes",
    ]
    return "\n".join(lines)


def _compare(problem: attnkern.Problem, arguments: argparse.Namespace) -> int:
    if (reason := counters.missing(problem)) is not None:
        raise CommandError(reason)
    try:
        found = counters.read(problem, arguments.backward, arguments.backend)
    except (RuntimeError, ValueError) as error:
        raise CommandError(str(error)) from None
    print(f"{'':<8} {'counted':>20} {'by the chip':>20} {'difference':>11}")
    for row in found:
        print(f"{row.name:<8} {row.counted:>20,} {row.measured:>20,.0f} {row.relative:>+11.2%}")
    return 0


Call = tuple[Callable, tuple, Mapping[str, object]]  # a model, its inputs by place and by name


def _encoder(device: str) -> Call:
    """Some layers of BERT-base's size, without its vocabulary."""
    layer = nn.TransformerEncoderLayer(FEATURES, HEADS, 4 * FEATURES, 0.0, "gelu", batch_first=True)
    model = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
    attnkern.swap_attention(model)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return model.to(device, dtype), (torch.randn(*TOKENS[device], FEATURES, device=device, dtype=dtype),), {}


def _imported(name: str) -> Call:
    module, _, function = name.partition(":")
    if not module or not function or module.startswith("."):
        raise CommandError(f"--model expects MODULE:NAME, got {name!r}")
    sys.path.insert(0, "")  # as `python -m` has it
    try:
        make = getattr(importlib.import_module(module), function, None)
        if make is None:
            raise CommandError(f"--model {name}: there is no {function} in {module}")
        made = make() if callable(make) else None
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):  # something that it imports
            raise
        raise CommandError(f"--model {name}: {error}") from None
    finally:
        sys.path.remove("")
    if not isinstance(made, tuple) or not made or not callable(made[0]):
        raise CommandError(f"--model {name} must return a model and its inputs, as a tuple")
    model, *inputs = made
    named = inputs.pop() if inputs and isinstance(inputs[-1], Mapping) else {}
    if not all(isinstance(key, str) for key in named):
        raise CommandError(
            f"--model {name}: the dict at the end holds inputs by name; add another, {{}}, to pass it on"
        )
    if own := {"model", "backward", "roofs"} & named.keys():
        raise CommandError(f"--model {name}: an input by the name of {min(own)} cannot be passed on; wrap the model")
    return model, tuple(inputs), named


@contextmanager
def _named_errors() -> Iterator[None]:
    """An error in a user's code is one line, which begins with the place; our own errors of use are a line, too."""
    try:
        yield
    except CommandError:
        raise
    except (Exception, SystemExit) as error:
        said = (str(error).splitlines() or [""])[0]
        if (place := _place(error)) is not None:
            raise CommandError(f"{place}: {type(error).__name__}: {said}") from None
        if isinstance(error, (RuntimeError, ValueError, TypeError, SyntaxError)):
            raise CommandError(said) from None
        if not _is_ours(error):  # torch's, given what it cannot take
            raise CommandError(f"{type(error).__name__}: {said}") from None
        raise


def _is_ours(error: BaseException) -> bool:
    *_, innermost = traceback.extract_tb(error.__traceback__)
    return innermost.filename.startswith(NOT_USERS[0])


def _place(error: BaseException) -> str | None:
    """File and line of the innermost code that is neither ours, torch's nor Python's."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    others = [frame for frame in frames if not frame.filename.startswith(("<", *NOT_USERS))]
    return f"{others[-1].filename}:{others[-1].lineno}" if others else None


def _device(model: Callable, inputs: tuple, named: Mapping[str, object]) -> torch.device:
    """Of the first tensor that is on a GPU; else the CPU."""
    tensors = [tensor for tensor in (*inputs, *named.values()) if isinstance(tensor, torch.Tensor)]
    tensors += model.parameters() if isinstance(model, nn.Module) else ()
    return next((tensor.device for tensor in tensors if tensor.is_cuda), torch.device("cpu"))


def _bar(names: list) -> Iterator:
    """The names, with a progress bar where rich is installed."""
    if missing("rich"):
        return iter(names)
    from rich.progress import track

    return iter(track(names, "measuring the roofs of this device", transient=True))
