"""The tiles of the score matrix that each backend's kernels compute, and what that costs: padding included.

One function per backend lists the passes of an operation, which is one of those that a backend's module offers.
"""

import dataclasses
from functools import partial
from typing import Literal, NamedTuple

import torch

from attnkern.backends import hopper, tiles, tuning
from attnkern.backends.choose import load
from attnkern.mac import steps
from attnkern.philox import SAMPLE_BLOCK
from attnkern.problem import UNLIMITED, Problem

HOPPER = 90  # the compute capability that is taken for granted where there is no GPU
HARD = ("sample", "argmax")  # selectors; all others weigh every value
Operation = Literal["softmax", "weights", "sample", "backward"]


class Pass(NamedTuple):
    """One walk of a kernel over the score matrix.

    kernel: its name.
    pairs: (query, key) pairs of all tiles it computes, over batch and heads.
    features: multiply-accumulates for each of them.
    """

    kernel: str
    pairs: int
    features: int

    @property
    def macs(self) -> int:
        return self.pairs * self.features


class Sources(NamedTuple):
    """Which results a backward's gradients come from; `row` stands for lse, entropy and scores at the draws."""

    output: bool = False
    row: bool = False
    weights: bool = False


def passes(problem: Problem, operation: Operation, sources: Sources, backend: str) -> list[Pass]:
    """What the backend's kernels do of an operation, but for the gradient of a float mask."""
    if 0 in (problem.batch, problem.heads, problem.len_q, problem.len_k):
        return []
    if problem.kind == "aoa":
        return AOA_PASSES[backend](problem, operation == "backward")
    return PASSES[backend](problem, operation, sources)


def _reference(problem: Problem, operation: Operation, sources: Sources) -> list[Pass]:
    """The whole matrix; the scores are stored for the backward."""
    pairs = problem.batch * problem.heads * problem.len_q * problem.len_k
    score, value = problem.head_dim, problem.value_dim
    soft = problem.selector not in HARD or problem.straight_through
    forward = score + value * soft  # draws are gathered
    through_scores = soft and sources.output or sources.row or sources.weights
    backward = 2 * score * through_scores + 2 * value * soft * sources.output
    if problem.straight_through:  # its values take no gradient
        backward -= value * sources.output
    return [Pass("reference", pairs, backward if operation == "backward" else forward)]


def _blocked(problem: Problem, operation: Operation, sources: Sources) -> list[Pass]:
    score, value = problem.head_dim, problem.value_dim
    pairs, again = _walked(problem, SAMPLE_BLOCK if operation == "sample" else 1)
    if operation != "backward":
        return [Pass("tiles", pairs, score + value * (operation == "softmax"))]
    found = [Pass("tiles", pairs, 3 * score + 2 * value * sources.output)]
    if problem.kind == "mac":  # whose rows have no mean
        return found
    # of the gradients of a row's weights; an output that was not rounded tells it
    told = problem.selector not in HARD and not sources.weights and problem.dtype == problem.compute_dtype
    mean = again and (sources.output or sources.weights) and not told
    return [Pass("tiles, mean", again, score + value * sources.output), *found] if mean else found


def _walked(problem: Problem, align: int) -> tuple[int, int]:
    """Pairs that the blocked backend's walk computes, and those of them in rows that take several tiles."""
    rows = tiles.block_sizes(problem)[2]

    def area(first: int, fewest: int) -> int:
        """Where a row takes so many tiles."""
        last = min(first + rows, problem.len_q)
        begin, end = _key_range(problem, first, last, align)
        found = tiles.key_tiles(begin, end, align)
        return (last - first) * (end - found.start) if begin < end and len(found) >= fewest else 0

    bends, heads = steps.query_bends(problem), problem.batch * problem.heads
    pairs, again = (
        steps.total(partial(area, fewest=fewest), problem.len_q, rows, align, bends, room=2 * tiles.KEYS)
        for fewest in (1, 2)
    )
    return heads * pairs, heads * again


def _cpu(problem: Problem, operation: Operation, sources: Sources) -> list[Pass]:
    """Lanes without a query are computed too; short heads that share keys fill them together."""
    score, value = problem.head_dim, problem.value_dim
    backend = load("cpu")
    rows = min(backend.tile_rows(problem), problem.len_q)
    together = min(backend.tile_rows(problem) // rows, problem.group) if problem.len_q == rows else 1

    def area(first: int) -> int:
        last = min(first + rows, problem.len_q)
        begin, end = _key_range(problem, first, last, 1)
        queries = together * (last - first)
        if operation != "softmax" or queries > backend.FEW:
            queries = -(-queries // backend.lanes()) * backend.lanes()
        return queries * max(0, end - begin)

    tiles = problem.batch * problem.kv_heads * -(-problem.group // together)
    pairs = tiles * steps.total(area, problem.len_q, rows, 1, steps.query_bends(problem))
    if operation != "backward":
        return [Pass("forward", pairs, score + value * (operation == "softmax"))]
    return [Pass("backward", pairs, 3 * score + 2 * value * sources.output)]


def _triton(problem: Problem, operation: Operation, sources: Sources) -> list[Pass]:
    from attnkern.backends import launching  # imports Triton

    score, value = launching.padded_widths(problem)

    def one(kernel: str, features: int, by: str = "query", keys: int | None = None, times: int = 1, name: str = ""):
        config = _triton_config(kernel, problem)
        area = {"query": _by_query, "key": _by_key}[by]
        return Pass(name or kernel, times * area(problem, config.block_m, keys or config.block_n), features)

    if operation == "softmax":
        return [one("softmax_forward", score + value)]
    if operation == "weights":
        return [one("attention_weights", score)]
    if operation == "sample":
        return [one("sample_forward", score, keys=SAMPLE_BLOCK, times=-(-problem.num_samples // 4))]
    output = value * sources.output
    found = [
        one("backward_query", 2 * score + output),
        one("backward_key_value", 2 * score + 2 * output, by="key"),
    ]
    by_output = sources.output and problem.kind != "hard" and problem.dtype.itemsize == 2
    if (sources.output or sources.weights) and not by_output and problem.kind != "mac":
        found.insert(0, one("backward_query", score + output, name="backward_query, mean"))
    return found


def _triton_config(kernel: str, problem: Problem) -> tuning.Config:
    if problem.device == "cpu":
        return tuning.INTERPRETER
    if not torch.cuda.is_available():
        return tuning.candidates(kernel, problem, HOPPER)[0]
    major, minor = torch.cuda.get_device_capability()
    return tuning.settled(kernel, problem, torch.cuda.get_device_name(), 10 * major + minor)


def _cuda(problem: Problem, operation: Operation, sources: Sources) -> list[Pass]:
    """But for one product of scores that a block starts, in vain, when its last tile is done."""
    width = hopper.width_of(problem)
    extras = problem.mask or problem.softcap or problem.dropout_p or problem.center
    if operation == "sample":
        rounds = -(-problem.num_samples // hopper.SAMPLES_AT_ONCE)
        table = hopper.SAMPLE_TILE if problem.num_samples == 1 else hopper.SAMPLES_TILE
        return [Pass("sample_forward", rounds * _by_query(problem, *table[width], least=1), width)]
    seen = hopper.keys_in_sight(problem)  # the kernels get no other keys
    if seen.start == seen.stop:
        return []
    cut = dataclasses.replace(problem, len_k=seen.stop - seen.start, query_offset=problem.query_offset - seen.start)
    if operation == "softmax":
        dense = problem.band == (UNLIMITED, UNLIMITED)
        table = hopper.DENSE_FORWARD_TILE if dense else hopper.FORWARD_TILE
        tile = (hopper.EXTRAS_FORWARD_TILE if extras else table)[width]
        return [Pass("softmax_forward", _by_query(cut, *tile, least=1), 2 * width)]
    features = (3 if problem.selector in HARD else 5) * width
    if extras or width not in hopper.BACKWARD_TILE:
        return [Pass("softmax_backward_by_columns", _by_key(cut, *hopper.BACKWARD_BY_COLUMNS_TILE[width]), features)]
    return [Pass("softmax_backward", _by_key(cut, *hopper.BACKWARD_TILE[width]), features)]


PASSES = {
    "reference": _reference,
    "cpu": _cpu,
    "blocked": _blocked,
    "triton": _triton,
    "cuda": _cuda,
    "emulated": _cuda,
}


def _aoa_reference(problem: Problem, backward: bool) -> list[Pass]:
    return [Pass("reference", problem.pairs(), 2 * problem.head_dim + 2 if backward else problem.head_dim + 1)]


def _aoa_blocked(problem: Problem, backward: bool) -> list[Pass]:
    """A document and its question that fit one tile keep its scores for the second sweep; few scores are all kept.

    On a CPU as long as one exponential serves both softmaxes (`backends/aoa_shared.py`).
    """
    pairs, score, shared, module = problem.pairs(), problem.head_dim, problem.device == "cpu", load("aoa_blocked")
    words, _ = module.tile(problem.len_q, problem.len_k, problem.dtype, problem.device)
    kept = backward and module.keeps(problem.len_k, score, problem.dtype, problem.device)
    again = score * (words < problem.len_q and not kept)
    found = [Pass("first words", problem.batch * problem.len_k, score)] * (shared and not kept)
    if backward:
        gradient = 2 * score + 1 + 4 * shared  # times a matrix of rank four
        first = score * (not kept) + 1
        return [*found, Pass("tiles, columns", pairs, first), Pass("tiles", pairs, again + gradient)]
    return [*found, Pass("tiles, columns", pairs, score), Pass("tiles", pairs, again + 1)]


def _aoa_cpu(problem: Problem, backward: bool) -> list[Pass]:
    """Scores that take no more memory than the document are kept, for the other sweep and for the backward."""
    backend, blocked = load("cpu"), load("aoa_blocked")
    pairs = problem.batch * problem.len_q * -(-problem.len_k // backend.lanes()) * backend.lanes()
    kept = blocked.keeps(problem.len_k, problem.head_dim, problem.dtype, problem.device)
    score = problem.head_dim
    if backward:
        return [Pass("aoa_backward", pairs, (2 if kept else 4) * score + 2)]
    return [Pass("aoa_forward", pairs, (1 if kept else 2) * score + 1)]


def _aoa_triton(problem: Problem, backward: bool) -> list[Pass]:
    """Every kernel makes the scores anew; those of a gradient's chunks of features, for each chunk."""
    backend = load("aoa_triton")
    lengths, like = (problem.len_q, problem.len_k), {"dtype": problem.dtype, "device": "meta"}
    call = backend.Call(*(torch.empty(problem.batch, length, problem.head_dim, **like) for length in lengths))
    sizes, one = call.arguments, call.arguments["ONE_TILE"]
    tile = sizes["BLOCK_M"] * sizes["BLOCK_N"]
    pairs = call.row_tiles * tile * -(-problem.len_k // sizes["BLOCK_N"])
    chunk, score = sizes["BLOCK_E"], call.chunks * sizes["BLOCK_E"]
    if not backward:
        found = [Pass("aoa_rows", pairs, score), Pass("aoa_columns", pairs, score)]
        return found[one:] + [Pass("aoa_attention", pairs, score + 1)]
    found = [Pass("aoa_grad_columns", pairs, score + 1), Pass("aoa_row_mean", pairs, score + 1)]
    gradients = ("aoa_backward_document", "aoa_backward_question")
    return found[: 2 - one] + [Pass(name, call.chunks * pairs, score + chunk + one) for name in gradients]


AOA_PASSES = {"reference": _aoa_reference, "cpu": _aoa_cpu, "blocked": _aoa_blocked, "triton": _aoa_triton}


def _by_query(problem: Problem, rows: int, keys: int, *, least: int = 0) -> int:
    """Pairs in the tiles that a kernel computes whose programs own `rows` queries each, over batch and heads.

    Tiles of keys begin at multiples of their size; the last ones are computed as if they were whole.
    least: tiles that a program computes, even if it sees nothing.
    """

    def area(first: int) -> int:
        last = min(first + rows, problem.len_q)
        begin, end = _key_range(problem, first, last, keys)
        return rows * max(_covered(begin, end, keys), least * keys)

    bends = steps.query_bends(problem)
    return problem.batch * problem.heads * steps.total(area, problem.len_q, rows, keys, bends)


def _by_key(problem: Problem, rows: int, keys: int) -> int:
    """The same where programs own `keys` keys each, and tiles of queries begin at multiples of their size."""
    left, right = problem.band
    offset = problem.query_offset

    def area(first: int) -> int:
        last = min(first + keys, problem.len_k)
        if offset is None or problem.center:
            begin, end = _somewhere(left, right, keys, problem.len_q, rows)
        else:
            begin = 0 if right < 0 else min(max(0, first - offset - right), problem.len_q)
            end = problem.len_q if left < 0 else min(max(0, last - offset + left), problem.len_q)
        return keys * _covered(begin, end, rows)

    bends = steps.key_bends(problem)
    return problem.batch * problem.heads * steps.total(area, problem.len_k, keys, rows, bends)


def _key_range(problem: Problem, first: int, last: int, tile: int) -> tuple[int, int]:
    """Keys that the rows look at; as many as neighbours may at most, for tiles of this size, if a tensor says where."""
    if problem.query_offset is None or problem.center:
        left, right = problem.band
        return _somewhere(left, right, last - first, problem.len_k, tile)
    return problem.key_range(first, last)


def _somewhere(left: int, right: int, size: int, length: int, tile: int) -> tuple[int, int]:
    """A range that touches as many tiles as what `size` neighbours see by a window can, wherever it is."""
    return 0, length if UNLIMITED in (left, right) else min(length, size + left + right + tile - 1)


def _covered(begin: int, end: int, tile: int) -> int:
    """Length of the tiles, aligned to their size, that hold `[begin, end)`."""
    return 0 if begin >= end else -(-end // tile) * tile - begin // tile * tile
