"""Attention calls that hurt, and the comparison of a backend with the float64 reference."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from unittest import mock

import torch
from torch import Tensor

from attnkern import philox, reference
from attnkern.api import global_attention, hard_attention, local_attention, mac_attention
from attnkern.backends import choose
from attnkern.budget import Budget
from attnkern.results import AuxRequest

# where the tests' device is a CPU and the kernels for it are built
CPU = [] if torch.cuda.is_available() or isinstance(choose.load("cpu"), str) else ["cpu"]
NEAR = 4e-6  # of the whole mass: nearer to it than that, rounding may put a draw on either side of a key's bound


@dataclass(frozen=True)
class Case:
    """Sizes and options of one call; `tensors` makes its inputs."""

    lengths: tuple[int, int]
    dims: tuple[int, int] = (16, 16)
    batch: int = 1
    heads: tuple[int, int] = (1, 1)
    mask: str | None = None
    strided: bool = False
    seed: int = 0
    weights: str | None = "mean"  # asked for along with the output
    gradients: bool = True
    center: bool = False  # learned ones, scattered over the keys and past their ends
    sigma: float | None = None  # of Gaussians around them, at most
    options: dict = field(default_factory=dict)

    def __str__(self) -> str:
        options = " ".join(f"{k}={v}" for k, v in self.options.items())
        sizes = f"B{self.batch} H{self.heads} L{self.lengths} E{self.dims}"
        centers = f"centers sigma={self.sigma}" if self.center else None
        words = (sizes, self.mask, "strided" if self.strided else None, centers, options)
        return " ".join(word for word in words if word)

    def tensors(self, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
        """query, key, value and mask, float values exactly representable in `dtype`; center and sigma in float32."""
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        len_q, len_k = self.lengths
        shapes = {
            "query": (self.batch, self.heads[0], len_q, self.dims[0]),
            "key": (self.batch, self.heads[1], len_k, self.dims[0]),
            "value": (self.batch, self.heads[1], len_k, self.dims[1]),
        }
        made = {name: normal(*shape) for name, shape in shapes.items()}
        if self.strided:  # (batch, length, heads, features) in memory, features not contiguous for the query
            made = {name: t.transpose(1, 2).contiguous().transpose(1, 2) for name, t in made.items()}
            made["query"] = made["query"].mT.contiguous().mT
        made["attn_mask"] = self._mask(normal, generator, dtype)
        if self.center:
            made["center"] = torch.rand(shapes["query"][:3], generator=generator) * (len_k + 20) - 10
        if self.sigma:
            made["sigma"] = torch.rand(shapes["query"][:3], generator=generator) * self.sigma + 0.5
        return {name: None if t is None else t.to(device) for name, t in made.items()}

    def _mask(self, normal, generator, dtype):
        full = (self.batch, self.heads[0], *self.lengths)
        if self.mask is None:
            return None
        if self.mask == "padding":  # bool (B, 1, 1, Lk); the last batch element has nothing to look at
            lengths = torch.linspace(full[3] * 0.7, 0, full[0]).long()
            return (torch.arange(full[3]) < lengths[:, None])[:, None, None]
        if self.mask == "bool":
            allowed = torch.rand(full[2:], generator=generator) > 0.4
            allowed[len(allowed) // 2] = False  # an empty row
            return allowed
        keep = {"float": (0, 1, 2, 3), "float per head": (1, 2, 3), "float per key": (0, 3), "float per row": (2,)}
        shape = [size if d in keep[self.mask] else 1 for d, size in enumerate(full)]
        mask = normal(*shape)
        return mask.masked_fill(torch.rand(shape, generator=generator) < 0.2, float("-inf"))


def poison(case: Case, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keys and values that no query may look at become NaN."""
    names = ("is_causal", "window", "query_offset")
    prior = {name: case.options[name] for name in names if name in case.options}
    if prior.get("query_offset") == "end":
        prior["query_offset"] = case.lengths[1] - case.lengths[0]
    query, key = torch.zeros_like(tensors["query"]), torch.zeros_like(tensors["key"])
    seen = reference.scores(query, key, tensors["attn_mask"], center=tensors.get("center"), **prior) > float("-inf")
    group = case.heads[0] // case.heads[1]
    unseen = ~seen.any(2).unflatten(1, (-1, group)).any(2).unsqueeze(-1)
    changed = {name: tensors[name].masked_fill(unseen, float("nan")) for name in ("key", "value")}
    return tensors | changed


def run(
    kind: str, tensors: dict[str, Tensor], case: Case, backend: str, index: Tensor | None = None
) -> dict[str, Tensor]:
    """Every output and every gradient of one call, by name; two backward passes for hard attention.

    index: forces the draws; only the reference takes it.
    """
    inputs = {
        name: t.detach().clone(memory_format=torch.preserve_format) for name, t in tensors.items() if t is not None
    }
    for tensor in inputs.values():
        tensor.requires_grad_(case.gradients and tensor.dtype.is_floating_point)
    mask = inputs.pop("attn_mask", None)
    gaussian = {name: inputs.pop(name) for name in ("center", "sigma") if name in inputs}
    query, key, value = inputs.values()
    gqa = case.heads[0] != case.heads[1]
    if kind == "hard":
        if index is None:
            hard = hard_attention(query, key, value, mask, enable_gqa=gqa, backend=backend, **case.options)
        else:
            hard = _reference_hard(query, key, value, mask, case, index)
        found = {
            "output": hard.output,
            "index": hard.index,
            "score": hard.score,
            "lse": hard.lse,
            "entropy": hard.entropy,
        }
        losses = {"sparse": ("output", "score"), "dense": ("output", "score", "lse", "entropy")}
    elif kind == "mac":
        found = {"output": mac_attention(query, key, value, mask, enable_gqa=gqa, backend=backend, **case.options)}
        losses = {"output": ("output",)}
    else:
        function = local_attention if kind == "local" else global_attention
        aux = AuxRequest(lse=True, weights=case.weights)
        options = case.options | gaussian
        output, aux = function(query, key, value, mask, enable_gqa=gqa, return_aux=aux, backend=backend, **options)
        found = {"output": output, "lse": aux.lse} | ({"weights": aux.weights} if case.weights else {})
        losses = {"output": ("output",), "all": tuple(found)}

    leaves = {"query": query, "key": key, "value": value, "mask": mask} | gaussian
    leaves = {name: t for name, t in leaves.items() if t is not None and t.requires_grad}
    for loss_name, parts in losses.items() if case.gradients else ():
        loss = sum(_projection(found[part], place) for place, part in enumerate(parts))
        gradients = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
        for (name, tensor), gradient in zip(leaves.items(), gradients):
            found[f"{loss_name} grad_{name}"] = torch.zeros_like(tensor) if gradient is None else gradient
    return {name: t.detach() for name, t in found.items()}


def _projection(tensor: Tensor, place: int) -> Tensor:
    """A fixed random functional of a tensor, the same whatever its layout and dtype."""
    generator = torch.Generator().manual_seed(1000 + place)
    direction = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    direction = direction.to(torch.float16).to(tensor)  # exact in every dtype but bfloat16
    return (torch.where(tensor == float("-inf"), 0.0, tensor) * direction).sum()


def _reference_hard(query, key, value, mask, case: Case, index: Tensor):
    options = dict(case.options)
    draws = options.pop("num_samples", None)
    options.pop("seed", None)
    if options.get("query_offset") == "end":
        options["query_offset"] = key.shape[2] - query.shape[2]
    forced = index if draws is not None else index[None]
    hard = reference.hard_attention(query, key, value, mask, num_samples=len(forced), index=forced, **options)
    if draws is None:
        hard = hard._replace(output=hard.output[0], index=hard.index[0], score=hard.score[0])
    return hard


def check(kind: str, case: Case, backend: str, dtype: torch.dtype, device: str, runs: Iterable = range(1)) -> None:
    """Every result within its budget.

    backend: a name, or several with commas.
    runs: what the results must hold for; drawing the next one may set something up.
    """
    tensors, budget = case.tensors(dtype, device), None
    draws = _draws(widened(tensors, torch.float64), case) if kind == "hard" else ()
    for name in backend.split(","):
        for _ in runs:
            got = run(kind, poison(case, tensors), case, name)
            drawn = got.pop("index", torch.empty(0)).cpu()
            wrong = torch.stack([drawn != index for index in draws]).all(0).sum() if draws else 0
            assert not wrong, f"{wrong} of {drawn.numel()} draws of {name} differ"
            budget = budget or Budget(partial(run_naive, kind, tensors, case, drawn), dtype)
            check_results(budget, got)


def _draws(tensors: dict[str, Tensor], case: Case) -> list[Tensor]:
    """What may be drawn: where rounding decides between two keys, either."""
    found, uniforms = [], philox.sample_uniforms
    for shift in (-NEAR, NEAR):
        with mock.patch.object(philox, "sample_uniforms", lambda *args, by=shift: uniforms(*args).double() + by):
            found.append(run("hard", tensors, case, "reference")["index"])
    return found


def check_results(budget: Budget, got: dict[str, Tensor]) -> None:
    """Every result is within its budget."""
    for name, result in got.items():
        complaint = budget.complaint(name, result)
        assert complaint is None, f"{name}: {complaint}"


def widened(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """On the CPU, where the naive computation is the same for every device; floats in float64 where that is asked."""
    found = {name: t.cpu() for name, t in tensors.items() if t is not None}
    wide = dtype == torch.float64
    return {name: t.double() if wide and t.is_floating_point() else t for name, t in found.items()}


def run_naive(
    kind: str, tensors: dict[str, Tensor], case: Case, index: Tensor | None, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The reference in the tensors' own dtype, without widening, or in float64 if `dtype` is that."""

    def unwidened(function, *args, packing, **options):
        return function(*args, **options)

    with mock.patch.object(reference, "widened", unwidened):
        return run(kind, widened(tensors, dtype), case, "reference", index)


def check_extreme_centers(backend: str, dtype: torch.dtype, device: str, renormalize: bool) -> None:
    """Around centres that see no key the output is 0, and everything is finite."""
    center = torch.tensor([-1e30, -5, -1e-9, 0, 3, 4 - 1e-6, 4, 19.5, 20, 1e30, math.inf, math.nan], device=device)
    center = center.expand(1, 1, 12)
    query, key = (torch.randn(1, 1, length, 16, device=device, dtype=dtype) for length in (12, 20))
    for sigma in (1e-30, 1e30):
        leaves = [x.clone().requires_grad_() for x in (query, key, key, center, torch.full_like(center, sigma))]
        output = local_attention(
            *leaves[:3], window=(2, 2), center=leaves[3], sigma=leaves[4], renormalize=renormalize, backend=backend
        )
        assert output.isfinite().all() and not output[..., [0, 1, 9, 10, 11], :].any()
        gradients = torch.autograd.grad(output.sum(), leaves)
        assert all(gradient.isfinite().all() for gradient in gradients)
