"""How much work a call is, from its `Problem` alone: nothing is run."""

import dataclasses
from collections.abc import Iterable
from typing import Literal

from attnkern import products
from attnkern.backends.choose import choose
from attnkern.mac import issued, steps
from attnkern.mac.issued import HARD, Operation, Pass, Sources
from attnkern.philox import SAMPLE_BLOCK
from attnkern.problem import UNNORMALISED, Problem

Phase = Literal["forward", "backward", "training"]
PHASES = ("forward", "backward", "training")
SOFT_RESULTS = ("output", "lse", "weights")
HARD_RESULTS = ("output", "score", "lse", "entropy")
INDEX_BYTES = 8
SPARSE = "sparse"  # what runs at the draws: torch's own kernels


@dataclasses.dataclass(frozen=True)
class Count:
    """The work of one call; two add up.

    Attributes:
        useful_macs: multiply-accumulates of the operation's definition: one (query, key) pair that the prior admits
            counts its features once for every product that it takes part in. 1 MAC is 2 FLOPs.
        issued_macs: those that the backend's kernels do: every tile that they touch, padding and products computed
            a second time included; the gradient of a float mask is not.
        bytes: moved to and from memory at least: every operand read once, every result written once. A mask's
            own are left out, since a `Problem` does not know its shape.
        exps: exponentials of pairs that the prior admits, a soft cap's hyperbolic tangents among them.
        randoms: 32-bit random words: one for every weight that dropout may drop; one for every sample, query and
            block of 64 keys in its sight.
    """

    useful_macs: int = 0
    issued_macs: int = 0
    bytes: int = 0
    exps: int = 0
    randoms: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other))))


def count(
    problem: Problem, which: Phase = "forward", *, through: Iterable[str] | None = None, backend: str | None = None
) -> Count:
    """Counts the work of a problem.

    Exact wherever the prior is known in numbers. Windows around learned centres, and at offsets that differ in a
    batch, depend on a tensor, and so does what a mask hides: there the count is an upper bound.
    Torch's `FlopCounterMode` counts twice `useful_macs`; on the reference, plain torch, twice `issued_macs`.

    Args:
        which: "forward", "backward", or "training" for both.
        through: which results the backward's gradients come from: of "output", "lse" and "weights"; for hard
            attention of "output", "score", "lse" and "entropy". By default "output", and for hard attention what
            REINFORCE uses: "output", "score" and "lse".
        backend: whose tiles `issued_macs` counts; None for the one that would be chosen.

    Raises:
        TypeError: `problem` is no `Problem`.
        ValueError: `which`, `through` or `backend` is none of those.
        UnsupportedProblem: the backend, or every one, refuses the problem.
    """
    through = _checked(problem, which, through)
    if which == "training":
        options = {"through": through, "backend": backend}
        return count(problem, "forward", **options) + count(problem, "backward", **options)
    useful = COUNTERS[problem.selector](problem, which == "backward", through)
    macs = sum(one.macs for one in passes(problem, which, through=through, backend=backend))
    return dataclasses.replace(useful, issued_macs=macs)


def passes(
    problem: Problem, which: Phase = "forward", *, through: Iterable[str] | None = None, backend: str | None = None
) -> list[Pass]:
    """What the kernels of the backend do, each with its name: `count`'s `issued_macs` in parts."""
    through = _checked(problem, which, through)
    found = []
    for phase in ("forward", "backward") if which == "training" else (which,):
        call = dataclasses.replace(problem, weights=None, requires_grad=phase == "backward")
        if choose(call, backend) == "reference":  # plain torch: one graph for all results
            found += issued.passes(call, *_whole(call, through), "reference")
            continue
        for operation, part, sources in _steps(problem, call, through):
            found += issued.passes(part, operation, sources, choose(part, backend))
        if phase == "backward" and problem.selector in HARD:
            macs = products.hard_at_draws(problem, output="output" in through, score="score" in through)
            draws = problem.num_samples * problem.batch * problem.heads * problem.len_q
            found += [Pass(SPARSE, draws, macs // draws)] if macs else []
    return found


def _whole(call: Problem, through: set[str]) -> tuple[Operation, Sources]:
    """A phase as one operation."""
    if not call.requires_grad:
        return "sample" if call.selector in HARD else "softmax", Sources()
    rows = not through.isdisjoint(("score", "lse", "entropy"))
    return "backward", Sources(output="output" in through, row=rows, weights="weights" in through)


def _steps(problem: Problem, call: Problem, through: set[str]) -> list[tuple[Operation, Problem, Sources]]:
    """The operations of a phase as `attnkern.ops` calls them, one backend each; `call` is without weights."""
    backward = call.requires_grad
    if problem.selector in HARD:
        soft = problem.straight_through and "output" in through
        dense = not through.isdisjoint(("lse", "entropy"))
        if not backward:
            return [("sample", call, Sources())]
        return [("backward", call, Sources(output=soft, row=dense))] if soft or dense else []
    of_weights = dataclasses.replace(problem, value_dim=problem.head_dim, requires_grad=backward)
    if not backward:
        return [("softmax", call, Sources())] + ([("weights", of_weights, Sources())] if problem.weights else [])
    steps = []
    if not through.isdisjoint(("output", "lse")):
        steps.append(("backward", call, Sources(output="output" in through, row="lse" in through)))
    if "weights" in through:
        steps.append(("backward", of_weights, Sources(weights=True)))
    return steps


class _Sizes:
    """Rows and bytes of a problem's tensors, over batch and heads."""

    def __init__(self, problem: Problem):
        self.queries = problem.batch * problem.heads * problem.len_q
        self.keys = problem.batch * problem.kv_heads * problem.len_k
        self.seen = problem.batch * problem.kv_heads * _keys_seen(problem)
        self.draws = problem.num_samples * self.queries
        self.score, self.value = (problem.dtype.itemsize * width for width in (problem.head_dim, problem.value_dim))
        self.sum = problem.compute_dtype.itemsize  # lse, entropy or score
        planes = 1 if problem.weights == "mean" else problem.heads
        self.weights = problem.dtype.itemsize * problem.batch * planes * problem.len_q * problem.len_k


def _softmax(problem: Problem, backward: bool, through: set[str]) -> Count:
    sizes, pairs = _Sizes(problem), problem.pairs()
    if backward:
        output, weights = "output" in through, "weights" in through
        softmax = output or "lse" in through
        macs = softmax * products.softmax_backward(problem, output) + weights * products.weights_backward(problem)
    else:
        softmax = output = True
        weights = problem.weights is not None
        macs = products.softmax(problem) + weights * products.weights(problem)
    features = sizes.score + sizes.value * output
    moved = features * (sizes.queries + sizes.seen) + sizes.sum * sizes.queries + weights * sizes.weights
    if backward:  # gradients: of output and lse, read; of query, key and value, written
        moved += features * (sizes.queries + sizes.keys) + sizes.sum * sizes.queries * ("lse" in through)
    passed = pairs * (softmax + weights)  # two operations, each of which makes weights of scores
    gaussian = problem.sigma and not problem.renormalize
    return Count(
        useful_macs=macs,
        bytes=moved,
        exps=passed * (1 + bool(problem.softcap) + gaussian),
        randoms=passed if problem.dropout_p else 0,
    )


def _unnormalised(problem: Problem, backward: bool, through: set[str]) -> Count:
    sizes, features = _Sizes(problem), problem.dtype.itemsize * (problem.head_dim + problem.value_dim)
    macs = products.softmax_backward(problem) if backward else products.softmax(problem)
    moved = features * (sizes.queries + sizes.seen + backward * (sizes.queries + sizes.keys))
    exps = problem.pairs() * ((problem.selector == "exp") + bool(problem.softcap))
    return Count(useful_macs=macs, bytes=moved, exps=exps)


def _hard(problem: Problem, backward: bool, through: set[str]) -> Count:
    sizes = _Sizes(problem)
    exps = problem.pairs() * (1 + bool(problem.softcap))
    if not backward:
        moved = sizes.score * (sizes.queries + sizes.seen) + sizes.value * (min(sizes.draws, sizes.seen) + sizes.draws)
        moved += (INDEX_BYTES + sizes.sum) * sizes.draws + 2 * sizes.sum * sizes.queries  # lse and entropy
        words = problem.num_samples * _sample_blocks(problem) if problem.selector == "sample" else 0
        return Count(useful_macs=products.hard(problem), bytes=moved, exps=exps, randoms=words)
    output, score, rows = "output" in through, "score" in through, len(through & {"lse", "entropy"})
    dense = bool(rows) or problem.straight_through and output
    moved = (INDEX_BYTES + sizes.sum * score) * sizes.draws + sizes.sum * sizes.queries * (rows + dense)
    if score or dense:
        moved += sizes.score * (2 * sizes.queries + sizes.seen + sizes.keys)
    if output:
        moved += sizes.value * (sizes.draws + sizes.keys + sizes.seen * problem.straight_through)
    macs = products.hard_backward(problem, output=output, score=score, distribution=bool(rows))
    return Count(useful_macs=macs, bytes=moved, exps=exps * dense)


def _aoa(problem: Problem, backward: bool, through: set[str]) -> Count:
    sizes, pairs, size = _Sizes(problem), problem.pairs(), problem.dtype.itemsize
    moved = sizes.score * (sizes.queries + sizes.keys) * (1 + backward)  # backward, their gradients
    moved += size * sizes.queries + sizes.sum * (sizes.queries + 2 * sizes.keys)  # attention; lse of both, and beta
    macs = products.aoa_backward(problem) if backward else products.aoa(problem)
    return Count(useful_macs=macs, bytes=moved, exps=2 * pairs)


# A line for each selector: (problem, whether backward, which results have gradients) -> Count without issued MACs,
# which are the backends' own (issued.py).
COUNTERS = {"softmax": _softmax, "sample": _hard, "argmax": _hard, "aoa": _aoa}
COUNTERS |= dict.fromkeys(UNNORMALISED, _unnormalised)


def _keys_seen(problem: Problem) -> int:
    if problem.center or problem.query_offset is None:
        return problem.len_k
    begin, end = problem.key_range(0, problem.len_q)
    return end - begin


def _sample_blocks(problem: Problem) -> int:
    """Blocks of 64 keys that a query has in sight, summed over all queries."""
    rows = problem.batch * problem.heads
    left, right = problem.band
    if problem.query_offset is None:
        width = problem.len_k if -1 in (left, right) else min(problem.len_k, left + right + SAMPLE_BLOCK)
        return rows * problem.len_q * -(-width // SAMPLE_BLOCK)

    def blocks(row: int) -> int:
        begin, end = problem.key_range(row, row + 1)
        return -(-end // SAMPLE_BLOCK) - begin // SAMPLE_BLOCK if begin < end else 0

    return rows * steps.total(blocks, problem.len_q, 1, SAMPLE_BLOCK, steps.query_bends(problem))


def _checked(problem: Problem, which: str, through: Iterable[str] | None) -> set[str]:
    """The results that gradients come through."""
    if not isinstance(problem, Problem):
        raise TypeError(f"problem must be an attnkern.Problem, got {type(problem).__name__}")
    if which not in PHASES:
        raise ValueError(f"which must be one of {', '.join(PHASES)}, got {which!r}")
    if problem.selector not in COUNTERS:
        raise ValueError(f"problem.selector must be one of {', '.join(COUNTERS)}, got {problem.selector!r}")
    if through is None:
        return {"output", "score", "lse"} if problem.selector in HARD else {"output"}
    through = {through} if isinstance(through, str) else set(through)
    allowed = {"hard": HARD_RESULTS, "mac": ("output",), "aoa": ("output",)}.get(problem.kind, SOFT_RESULTS)
    if not through or not through <= set(allowed):
        raise ValueError(f"through must name some of {', '.join(allowed)}, got {sorted(through)}")
    return through
