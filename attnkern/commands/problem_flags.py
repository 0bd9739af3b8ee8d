"""Flags that describe one attention call, for the commands that take one."""

import argparse

import torch

import attnkern
from attnkern import checks
from attnkern.backends.choose import PREFERENCE
from attnkern.commands import CommandError

KINDS = ("global", "local", "hard")
DTYPES = ("float16", "bfloat16", "float32", "float64")


def add_arguments(parser: argparse.ArgumentParser, kind: str | None) -> None:
    """Declares them; `kind` is the kind of attention by default."""
    add = parser.add_argument
    default = "" if kind is None else f" (default: {kind})"
    add("--kind", choices=KINDS, default=kind, help=f"kind of attention{default}")
    add("--batch", type=int, default=1, metavar="B", help="batch size (default: 1)")
    add("--heads", type=int, default=8, metavar="H", help="query heads (default: 8)")
    add("--kv-heads", type=int, metavar="H", help="key and value heads (default: as --heads)")
    add("--len-q", type=int, default=1024, metavar="L", help="number of queries (default: 1024)")
    add("--len-k", type=int, metavar="L", help="number of keys (default: as --len-q)")
    add("--head-dim", type=int, default=64, metavar="E", help="features of a head (default: 64)")
    add("--dtype", choices=DTYPES, default="float32", help="of query, key and value (default: float32)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where they are (default: cpu)")
    add("--causal", action="store_true", help="query i looks at keys up to i")
    add("--window", type=_window, metavar="L,R", help="keys to the left and right of a query, -1 for all")
    add("--mask", choices=("bool", "float"), help="kind of attention mask, if there is one")
    add("--softcap", type=float, default=0.0, metavar="C", help="soft cap of the scores (default: none)")
    add("--dropout", type=float, default=0.0, metavar="P", help="dropout probability (default: 0)")
    add("--backend", choices=PREFERENCE, help="ask for this backend instead of the first that can")


def given(arguments: argparse.Namespace) -> list[str]:
    """Flags that describe a call and are not as they are by default."""
    parser = argparse.ArgumentParser()
    add_arguments(parser, kind=None)
    defaults = vars(parser.parse_args([]))
    names = [name for name, default in defaults.items() if name != "device" and getattr(arguments, name) != default]
    return [f"--{name.replace('_', '-')}" for name in names]


def problem_of(arguments: argparse.Namespace) -> attnkern.Problem:
    """The problem that the flags describe."""
    for name in ("batch", "heads", "kv_heads", "len_q", "len_k", "head_dim"):
        if (size := getattr(arguments, name)) is not None and size < 1:
            raise CommandError(f"--{name.replace('_', '-')} must be at least 1, got {size}")
    if arguments.kind == "local" and arguments.window is None:
        raise CommandError("--kind local needs --window L,R, for example --window 128,128")
    if arguments.kind == "global" and arguments.window is not None:
        raise CommandError("--window goes with --kind local or hard, not global")
    if arguments.kind == "hard" and arguments.dropout:
        raise CommandError("--dropout goes with --kind global or local: hard attention has none")
    try:
        checks.check_scalars(1.0, arguments.softcap, arguments.dropout, None)
        return attnkern.Problem(
            batch=arguments.batch,
            heads=arguments.heads,
            kv_heads=arguments.kv_heads,
            len_q=arguments.len_q,
            len_k=arguments.len_k,
            head_dim=arguments.head_dim,
            dtype=getattr(torch, arguments.dtype),
            device=arguments.device,
            causal=arguments.causal,
            window=checks.check_window(arguments.window),
            mask=arguments.mask,
            softcap=arguments.softcap,
            dropout_p=arguments.dropout,
            selector="sample" if arguments.kind == "hard" else "softmax",
        )
    except ValueError as error:
        raise CommandError(str(error)) from None


def _window(text: str) -> tuple[int, int]:
    try:
        left, right = (int(side) for side in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected two whole numbers L,R, got {text!r}") from None
    return left, right
