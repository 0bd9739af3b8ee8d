"""Blocks of a persistent grid that take many tiles each, where rings, buffers and the counter are used again.

On a GPU that the CUDA C++ kernels are made for: all of it, and a few of its multiprocessors; else these, emulated.
"""

import pytest
import torch
from torch import Tensor
from torch.autograd import grad

import attnkern
from attnkern import AuxRequest
from tests.compiled import compiled

ON_GPU = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
BACKEND, DEVICE = ("cuda", "cuda") if ON_GPU else ("emulated", "cpu")
LARGE = pytest.mark.skipif(not ON_GPU, reason="needs a GPU of compute capability 9.0")
BF16 = torch.bfloat16
WIDTHS = (64, 128, 256)
DRAWN = ("sample", "samples")  # of hard attention
VARIANTS = ("dense", "causal", "window", "bool mask", "float mask", "soft cap", "dropout", "centers", *DRAWN)
TOLERANCE = 0.02  # relative, in norm, of each head
REPEATS = 50


@pytest.fixture(scope="module")
def module():
    return compiled(BACKEND)


@pytest.fixture
def few_multiprocessors(module):
    """Two, which take all tiles."""
    module.limit_multiprocessors(2)
    yield
    module.limit_multiprocessors(2**30 if ON_GPU else 3)


def inputs(batch: int, heads: int, kv_heads: int, length: int, width: int) -> list[Tensor]:
    """query, key, value and the output's gradient."""
    torch.manual_seed(0)
    shapes = [(batch, count, length, width) for count in (heads, kv_heads, kv_heads, heads)]
    return [torch.randn(shape, device=DEVICE).to(BF16) for shape in shapes]


def call(variant: str, query: Tensor, key: Tensor, value: Tensor, backend: str) -> dict[str, Tensor]:
    """Results by name."""
    length = query.shape[2]
    generator = torch.Generator(DEVICE).manual_seed(1)
    options = {"enable_gqa": query.shape[1] != key.shape[1], "backend": backend}
    if variant in DRAWN:
        draws = 1 if variant == "sample" else 6
        hard = attnkern.hard_attention(query, key, value, is_causal=True, num_samples=draws, seed=3, **options)
        return hard._asdict()
    function = attnkern.global_attention
    if variant == "causal":
        options["is_causal"] = True
    if variant == "window":
        function, options["window"] = attnkern.local_attention, (length // 5, length // 7)
    if variant == "bool mask":
        options["attn_mask"] = torch.rand(length, length, device=DEVICE, generator=generator) > 0.3
    if variant == "float mask":
        options["attn_mask"] = torch.randn(length, length, device=DEVICE, generator=generator)
    if variant == "soft cap":
        options["softcap"] = 2.0
    if variant == "dropout":
        options |= {"dropout_p": 0.3, "seed": 5}
    if variant == "centers":
        rows = torch.rand(query.shape[:3], device=DEVICE, generator=generator)
        function = attnkern.local_attention
        options |= {"window": (length // 6, length // 6), "center": rows * length, "sigma": 1 + length // 9 * rows}
    output, aux = function(query, key, value, return_aux=AuxRequest(lse=True), **options)
    return {"output": output, "lse": aux.lse}


def everything(variant: str, tensors: list[Tensor], backend: str) -> dict[str, Tensor]:
    """Results and gradients by name."""
    query, key, value, grad_output = tensors
    leaves = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
    found = call(variant, *leaves, backend)
    through = ("score", "lse", "entropy") if variant in DRAWN else ("output",)
    starts = [grad_output.to(found[name]) if name == "output" else torch.ones_like(found[name]) for name in through]
    leaves = leaves[: 2 if variant in DRAWN else 3]
    gradients = grad([found[name] for name in through], leaves, starts)
    return {name: result.detach() for name, result in found.items()} | dict(zip(("query", "key", "value"), gradients))


def reference(variant: str, tensors: list[Tensor]) -> dict[str, Tensor]:
    return everything(variant, [tensor.float() for tensor in tensors], "reference")


def check(variant: str, tensors: list[Tensor], exact: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every head by itself: that none hides behind the others."""
    found = everything(variant, tensors, BACKEND)
    index = found.pop("index", None)
    if index is not None:
        assert (index != exact["index"]).float().mean() < 0.002  # rounding tips a draw to its neighbour
    for name in found:
        if index is not None and name in ("output", "score", "query", "key"):
            continue  # they follow the draws
        wanted, got = (x[name].float().flatten(0, 1).flatten(1) for x in (exact, found))
        error = (got - wanted).norm(dim=1) / wanted.norm(dim=1)
        assert error.max() < TOLERANCE, f"{name}: head {error.argmax()} of {len(error)} is off by {error.max():.2g}"
    return found if index is None else found | {"index": index}


def in_order(variant: str) -> tuple[str, ...]:
    """Results whose sums have a fixed order: gradients of queries are added up as blocks come."""
    return ("output", "index", "score", "lse", "entropy") if variant in DRAWN else (
        "output", "lse", "key", "value",
    )  # fmt: skip


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_few_multiprocessors(variant, width, few_multiprocessors):
    """Several tiles for each of two blocks, forward and backward, heads that share keys."""
    kv_heads = 4 if variant == "centers" else 2
    tensors = inputs(1, 4, kv_heads, 200, width)
    check(variant, tensors, reference(variant, tensors))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("variant", ["dense", "causal", "window", "float mask", "samples"])
def test_any_number_of_multiprocessors_gives_the_same(variant, width, module, few_multiprocessors):
    tensors = inputs(1, 4, 4, 200, width)
    first = everything(variant, tensors, BACKEND)
    for count in (1, 5):
        module.limit_multiprocessors(count)
        again = everything(variant, tensors, BACKEND)
        assert all(torch.equal(first[name], again[name]) for name in in_order(variant))


@LARGE
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_whole_gpu(variant, width, module):
    """B8 H16 L1024: every head right, and the same bits fifty times over wherever sums have an order."""
    tensors = inputs(8, 16, 16, 1024, width)
    first = check(variant, tensors, reference(variant, tensors))
    for _ in range(REPEATS):
        again = everything(variant, tensors, BACKEND)
        different = [name for name in in_order(variant) if not torch.equal(first[name], again[name])]
        assert not different, f"{different} changed"
