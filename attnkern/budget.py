"""What a result may err: twice what a naive computation in the same dtype errs, plus one rounding of the result.

The naive computation adds and multiplies one term after the other, in several orders, and the largest error counts: no
library of products, width of vectors or number of cores moves it, and no luck where there are few results.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attnkern import reference

ORDERS = {0: 8, 512: 2}  # of the terms of a sum, of results with so many entries: forwards, backwards, shuffled
TRUST = 0.75  # share of what torch's own products err that counts
BLOCK = 128  # terms added one after the other, before their sum joins the others'
MEASURES = {  # how a tensor is measured; how often the naive error; what a rounding measures, in eps times the values
    "rms": (lambda x: x.square().mean().sqrt().item(), 2, 12**-0.5),
    "largest": (lambda x: x.amax().item(), 4, 0.5),  # a single entry's naive error may be small by luck
}
aten = torch.ops.aten
FUNCTIONS = {aten.exp, aten.log, aten.pow, aten.tanh}  # which differ between machines


class Budget:
    """Exact results by name, and what another computation of them may err.

    A gradient through a softmax is a difference, which may be 0 in one way of computing it and the rounding of its
    terms in another. So an error as large as that of one term is allowed too: of the gradient at a fixed denominator,
    with weights that are `exp(score - lse)`, as kernels have them.

    Args:
        compute: takes a dtype and returns the results by name, computed in it with `attnkern.reference`, on the CPU.
        dtype: of the computation that is judged.
    """

    def __init__(self, compute: Callable[[torch.dtype], dict[str, Tensor]], dtype: torch.dtype):
        self._compute, self._dtype = compute, dtype
        self._results = functools.cache(self._results)
        self.exact = self._results(False, torch.float64, None)

    def complaint(self, name: str, got: Tensor) -> str | None:
        """None if a result is within the budget, else what is wrong."""
        got, exact = got.cpu(), self.exact[name]
        if not torch.equal(got.isinf(), exact.isinf()) or got.isnan().any():
            return f"{int(got.isnan().sum())} NaN, or infinities in the wrong place"
        if not exact.numel():
            return None
        for measure, (size, *_) in MEASURES.items():
            error = size(_error(got, exact))
            if all(error > (allowed := budget) for budget in self._budgets(name, measure, got.dtype)):
                return f"{measure} error {error:.3g} exceeds the budget {allowed:.3g}"
        return None

    def allowed(self, name: str, measure: str, dtype: torch.dtype) -> float:
        """The budget of a result of some dtype."""
        return max(self._budgets(name, measure, dtype))

    def _budgets(self, name: str, measure: str, dtype: torch.dtype) -> Iterator[float]:
        """Ever larger ones, as more ways of computing are tried: most results need only the first.

        That is torch's own products: fast, and not trusted wholly, as their luck is the machine's.
        """
        size, factor, roundings = MEASURES[measure]
        eps, scale = torch.finfo(dtype).eps, size(_finite(self.exact[name]).abs())
        if dtype == torch.float64:  # the reference itself: only its rounding is left
            yield 100 * eps * max(scale, 1.0)
            return
        naive = 0.0
        orders = [count for least, count in ORDERS.items() if self.exact[name].numel() >= least][-1]
        for order in (None, *range(orders)):
            # at a fixed denominator it is one of two terms, and what twice its half errs is allowed
            for fixed in (False,) if order is None else (False, True):
                exact = self._results(fixed, torch.float64, None)[name]
                found = self._results(fixed, self._dtype, order)[name]
                share = TRUST if order is None else 0.5 if fixed else 1.0
                naive = max(naive, share * size(_error(found, exact)))
                scale = max(scale, size(_finite(exact).abs()))
                yield factor * naive + roundings * eps * scale

    def _results(self, fixed: bool, dtype: torch.dtype, order: int | None) -> dict[str, Tensor]:
        """As they are or at a fixed denominator, in a dtype, by torch's products or term by term in some order."""
        softmax = _softmax_at_a_fixed_denominator if fixed else reference.softmax
        with mock.patch.object(reference, "softmax", softmax), nullcontext() if order is None else _TermByTerm(order):
            return self._compute(dtype)


class _TermByTerm(TorchDispatchMode):
    """Products and sums made of single operations, in at least float32; functions as float64 rounds them."""

    def __init__(self, order: int):
        super().__init__()
        self.order = order

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (aten.bmm.default, aten.mm.default):
            left, right = (x.to(_wide(x.dtype)) for x in args)
            columns, rows = left.mT.contiguous().mT.unsqueeze(-1).unbind(-2), right.unsqueeze(-3).unbind(-2)
            total = left.new_zeros(*left.shape[:-1], right.shape[-1])
            return self._add(total, [*zip(columns, rows)]).to(args[0].dtype)
        if func is aten.sum.dim_IntList and args[0].is_floating_point():
            x, dims, *keep = args
            dims = [d % x.dim() for d in dims or range(x.dim())]
            terms = x.to(_wide(x.dtype)).movedim(dims, [*range(len(dims))]).flatten(0, len(dims) - 1)
            total = self._add(terms.new_zeros(terms.shape[1:]), [(term,) for term in terms.contiguous().unbind()])
            kept = [1 if d in dims else size for d, size in enumerate(x.shape)]
            return (total.reshape(kept) if any(keep) else total).to(x.dtype)
        if func.overloadpacket in FUNCTIONS:
            return func(*(x.double() if isinstance(x, Tensor) else x for x in args), **kwargs).to(args[0].dtype)
        return func(*args, **kwargs)

    def _add(self, total: Tensor, terms: list[tuple[Tensor, ...]]) -> Tensor:
        """The sum of terms, each a tensor or the product of two."""
        terms, product = self._ordered(terms), torch.empty_like(total)
        for begin in range(0, len(terms), BLOCK):
            part = torch.zeros_like(total)
            for term in terms[begin : begin + BLOCK]:
                part += torch.mul(*term, out=product) if len(term) == 2 else term[0]
            total += part
        return total

    def _ordered(self, terms: list) -> list:
        if self.order < 2:
            return terms[:: (1, -1)[self.order]]
        shuffled = torch.randperm(len(terms), generator=torch.Generator().manual_seed(self.order))
        return [terms[place] for place in shuffled]


_softmax = reference.softmax


def _softmax_at_a_fixed_denominator(score: Tensor) -> tuple[Tensor, Tensor]:
    """The same weights by way of the log-sum-exp, as one of the terms of their gradient has them."""
    wide = score.to(_wide(score.dtype))
    lse = _softmax(wide)[1].detach()[..., None]
    if wide.dtype != torch.float64:
        # rounded as far as it can be: in other units, as base two, the same lse has another rounding
        lse = lse.double() * (1 + torch.finfo(wide.dtype).eps / 2)
    weights = torch.exp(wide - torch.where(lse == reference.NEG_INF, 0.0, lse)).to(score.dtype)
    return weights, _softmax(score)[1]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _finite(tensor: Tensor) -> Tensor:
    return tensor.double().masked_fill(tensor.isinf(), 0.0)


def _error(found: Tensor, exact: Tensor) -> Tensor:
    return (_finite(found) - _finite(exact)).abs().nan_to_num()
