"""Counts against enumeration, against what torch counts, and against the products that kernels really do."""

import dataclasses
import random

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import attnkern
from attnkern import AuxRequest, Problem, mac
from attnkern.backends import tiles
from attnkern.philox import SAMPLE_BLOCK
from attnkern.problem import Inputs
from attnkern.reference import _allowed


def random_problem(seed: int) -> Problem:
    draw = random.Random(seed)
    side = lambda: draw.choice((-1, 0, 1, 7, 40))  # noqa: E731
    kv_heads, selector = draw.choice((1, 2)), draw.choice(("softmax", "softmax", "sample", "argmax"))
    return Problem(
        batch=draw.choice((1, 2)),
        kv_heads=kv_heads,
        heads=kv_heads * draw.choice((1, 3)),
        len_q=draw.choice((1, 5, 63, 65, 130)),
        len_k=draw.choice((1, 9, 64, 111, 150)),
        head_dim=draw.choice((1, 8, 40)),
        value_dim=draw.choice((3, 16)),
        dtype=draw.choice((torch.float32, torch.bfloat16)),
        causal=draw.random() < 0.4,
        window=(side(), side()),
        query_offset=draw.choice((0, 0, 3, -20, 100)),
        softcap=draw.choice((0.0, 3.0)),
        dropout_p=draw.choice((0.0, 0.1)) if selector == "softmax" else 0.0,
        weights=draw.choice((None, "mean", "heads")) if selector == "softmax" else None,
        selector=selector,
        num_samples=draw.choice((1, 5)) if selector == "sample" else 1,
        straight_through=draw.random() < 0.3,
    )


def seen(problem: Problem) -> torch.Tensor:
    """The mask, enumerated: bool `(Lq, Lk)`."""
    mask = _allowed(problem.len_q, problem.len_k, problem.causal, problem.window, problem.query_offset, None, "cpu")
    return mask.expand(1, 1, problem.len_q, problem.len_k)[0, 0]


def enumerated(problem: Problem, which: str) -> mac.Count:
    """The same numbers from the mask alone."""
    heads = problem.batch * problem.heads
    mask = seen(problem)
    pairs, rows = heads * mask.sum().item(), heads * problem.len_q
    keys, all_keys = (problem.batch * problem.kv_heads * n for n in (_span(mask), problem.len_k))
    score, value, draws = problem.head_dim, problem.value_dim, problem.num_samples * rows
    size, wide = problem.dtype.itemsize, 4
    per_pair = 2 if problem.softcap else 1
    weight_bytes = size * problem.len_q * problem.len_k * problem.batch
    weight_bytes *= {None: 0, "mean": 1, "heads": problem.heads}[problem.weights]
    if problem.selector == "softmax" and which == "forward":
        times = 2 if problem.weights else 1
        macs = pairs * (score + value + (score if problem.weights else 0))
        moved = size * (score + value) * (rows + keys) + wide * rows + weight_bytes
        return mac.Count(macs, 0, moved, times * per_pair * pairs, times * pairs if problem.dropout_p else 0)
    if problem.selector == "softmax":
        macs = pairs * (3 * score + 2 * value)
        moved = size * (score + value) * (2 * rows + keys + all_keys) + wide * rows
        return mac.Count(macs, 0, moved, per_pair * pairs, pairs if problem.dropout_p else 0)
    if which == "forward":
        blocks = sum(part.any(1).sum().item() for part in mask.split(SAMPLE_BLOCK, 1))
        words = heads * blocks * problem.num_samples if problem.selector == "sample" else 0
        moved = (
            size * (score * (rows + keys) + value * (min(draws, keys) + draws)) + draws * (8 + wide) + 2 * rows * wide
        )
        return mac.Count(pairs * score, 0, moved, per_pair * pairs, words)
    soft = value * problem.straight_through
    macs = draws * (2 * score + value) + pairs * (3 * score + soft)
    moved = draws * (8 + wide) + size * (score * (2 * rows + keys + all_keys) + value * (draws + all_keys))
    moved += size * soft * keys + 2 * rows * wide
    return mac.Count(macs, 0, moved, per_pair * pairs, 0)


def _span(mask: torch.Tensor) -> int:
    """Keys from the first to the last that any query sees."""
    where = mask.any(0).nonzero()
    return (where.max() - where.min() + 1).item() if len(where) else 0


def test_counts_equal_enumeration():
    for seed in range(200):
        problem = random_problem(seed)
        for which in ("forward", "backward"):
            found = mac.count(problem, which, backend="blocked")
            assert dataclasses.replace(found, issued_macs=0) == enumerated(problem, which), (seed, which, problem)
        assert mac.count(problem, "training") == mac.count(problem) + mac.count(problem, "backward")


# documents, their words, a question's, features; a question of 130 words takes several tiles
AOA = [(3, 70, 9, 16), (1, 5, 1, 3), (1, 70, 130, 20), (1, 6, 4, 80), (2, 200, 30, 64)]


@pytest.mark.parametrize(("documents", "words", "asked", "features"), AOA)
def test_attention_over_attention_equals_enumeration(documents, words, asked, features):
    for dtype in (torch.float32, torch.bfloat16):
        problem = Problem(batch=documents, len_q=words, len_k=asked, head_dim=features, dtype=dtype, selector="aoa")
        matrices = torch.ones(documents, words, asked)
        entries, size, wide = int(matrices.sum()), dtype.itemsize, 4
        tensors = size * features * (matrices[:, :, 0].numel() + matrices[:, 0].numel())
        others = (size + wide) * matrices[:, :, 0].numel() + 2 * wide * matrices[:, 0].numel()
        forward = mac.Count(entries * (features + 1), 0, tensors + others, 2 * entries)
        backward = mac.Count(entries * (3 * features + 2), 0, 2 * tensors + others, 2 * entries)
        for which, expected in (("forward", forward), ("backward", backward), ("training", forward + backward)):
            found = mac.count(problem, which, backend="blocked")
            assert dataclasses.replace(found, issued_macs=0) == expected
            kept = entries * features * (which != "forward")  # by definition a backward makes its scores anew
            assert found.issued_macs >= expected.useful_macs - kept


@pytest.mark.parametrize("sizes", AOA, ids=str)
@pytest.mark.parametrize("backend", ["reference", "blocked"])
def test_the_products_of_attention_over_attention(backend, sizes, monkeypatch):
    """Every product of matrices that torch does, for documents of one tile and of several."""
    monkeypatch.setitem(tiles.TILE_BYTES, "cpu", 1 << 12)
    documents, words, asked, features = sizes
    problem = Problem(batch=documents, len_q=words, len_k=asked, head_dim=features, selector="aoa")
    pair = [torch.randn(documents, length, features, requires_grad=True) for length in (words, asked)]
    if backend == "reference":
        with _Products() as forward:
            output = attnkern.attention_over_attention(*pair, backend=backend)
        with _Products() as backward:
            output.sum().backward()
    else:
        module, tensors = attnkern.backends.choose.load("aoa_blocked"), [*(x.detach() for x in pair), None, None]
        keeps = module.keeps(asked, features, torch.float32, "cpu")
        kept = torch.empty(documents, words, asked) if keeps else None
        with _Products() as forward:
            module.forward(*tensors)
        output, *saved = module.forward(*tensors, kept)
        with _Products() as backward:
            module.backward(output, *saved, *tensors, kept)
    for which, found in (("forward", forward), ("backward", backward)):
        assert found.macs == mac.count(problem, which, backend=backend).issued_macs, which


class _Products(TorchDispatchMode):
    """Adds up the MACs of batched products, those in place included."""

    macs = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "bmm" in str(function):
            left, right = args[-2:]
            self.macs += left.numel() * right.shape[-1]
        return function(*args, **(kwargs or {}))


def test_what_tensors_decide_is_bounded():
    fixed = Problem(len_q=50, len_k=60, window=(5, 5), causal=True)
    for unknown in ({"center": True, "sigma": True}, {"query_offset": None}):
        bound = dataclasses.replace(fixed, **unknown)
        for offset in (-70, -3, 0, 20, 45):
            exact = dataclasses.replace(fixed, query_offset=offset, causal="center" not in unknown)
            assert exact.pairs() <= dataclasses.replace(bound, causal=exact.causal).pairs() <= 50 * 11
            assert mac.count(bound).issued_macs >= mac.count(bound).useful_macs > 0


CALLS = {
    "global": (Problem(len_q=65, len_k=111, heads=4, kv_heads=2, head_dim=16), ("output",)),
    "causal": (Problem(len_q=65, heads=2, head_dim=16, causal=True, query_offset=3), ("output", "lse")),
    "lse": (Problem(len_q=65, heads=2, head_dim=16, value_dim=8), ("lse",)),
    "local": (Problem(len_q=65, heads=2, head_dim=16, value_dim=8, window=(9, 3)), ("output",)),
    "weights": (Problem(len_q=65, heads=2, head_dim=16, window=(9, 3), weights="mean"), ("output", "weights")),
    "dropout": (Problem(len_q=65, heads=2, head_dim=16, dropout_p=0.5), ("output",)),
    "hard": (Problem(len_q=65, heads=2, head_dim=16, selector="sample", num_samples=3), ("output", "score", "lse")),
    "sparse": (Problem(len_q=65, heads=2, head_dim=16, selector="sample", num_samples=3), ("score",)),
    "entropy": (Problem(len_q=65, heads=2, head_dim=16, selector="argmax", window=(9, 9)), ("entropy",)),
    "straight": (Problem(len_q=65, heads=2, head_dim=16, selector="sample", straight_through=True), ("output",)),
}


def call(problem: Problem, backend: str):
    """Results by name, of a call that the problem describes."""
    like, keys = {"device": problem.device, "requires_grad": True}, (problem.batch, problem.kv_heads, problem.len_k)
    query = torch.randn(problem.batch, problem.heads, problem.len_q, problem.head_dim, **like)
    key, value = (torch.randn(*keys, width, **like) for width in (problem.head_dim, problem.value_dim))
    options = {
        "enable_gqa": True,
        "is_causal": problem.causal,
        "query_offset": problem.query_offset,
        "backend": backend,
    }
    if problem.selector != "softmax":
        options |= {"num_samples": problem.num_samples, "straight_through": problem.straight_through, "seed": 1}
        options |= {"window": problem.window, "deterministic": problem.selector == "argmax"}
        return attnkern.hard_attention(query, key, value, **options)._asdict()
    request = AuxRequest(lse=True, weights=problem.weights)
    output, aux = attnkern.local_attention(
        query, key, value, window=problem.window, dropout_p=problem.dropout_p, return_aux=request, **options
    )
    return {"output": output, "lse": aux.lse, "weights": aux.weights}


@pytest.mark.parametrize("backend", ["reference", "blocked", "triton"])
@pytest.mark.parametrize("name", CALLS)
def test_torch_counts_the_same(name, backend, device):
    """The reference is plain torch, so that torch counts what it issues."""
    problem, through = CALLS[name]
    problem = dataclasses.replace(problem, device=device)
    with FlopCounterMode(display=False) as forward:
        results = call(problem, backend)
    with FlopCounterMode(display=False) as backward:
        sum(results[result].sum() for result in through).backward()
    for which, counted in (("forward", forward), ("backward", backward)):
        count = mac.count(problem, which, through=through, backend=backend)
        macs = count.issued_macs if backend == "reference" else count.useful_macs
        assert counted.get_total_flops() == 2 * macs, which


@pytest.mark.parametrize("need_weights", [False, True])
def test_torch_counts_the_same_through_a_module(need_weights):
    """The four projections and the attention, by name of module."""
    model = nn.Sequential(nn.Linear(32, 32), nn.MultiheadAttention(32, 4, batch_first=True))
    attnkern.swap_attention(model)
    sequence = torch.randn(2, 50, 32)
    with FlopCounterMode(display=False) as counter:
        hidden = model[0](sequence)
        model[1](hidden, hidden, hidden, need_weights=need_weights)
    problem = Problem(batch=2, heads=4, len_q=50, head_dim=8, weights="mean" if need_weights else None)
    projections = 2 * 50 * 32 * 32 * 4
    linear = 2 * 50 * 32 * 32
    assert counter.get_total_flops() == 2 * (linear + projections + mac.count(problem).useful_macs)


def test_the_tiles_of_the_blocked_backend(monkeypatch):
    """Every product of a score tile, as the walk makes them."""
    made = []
    score_tile = tiles.Tile.__init__

    def recorded(self, block, keys):
        made.append(block.query.shape[0] * block.query.shape[1] * (keys[1] - keys[0]) * block.query.shape[2])
        score_tile(self, block, keys)

    monkeypatch.setattr(tiles.Tile, "__init__", recorded)
    for seed in range(40):
        problem = dataclasses.replace(random_problem(seed), len_k=random.Random(seed).choice((150, 1300)), weights=None)
        inputs = tensors(problem)
        backend = attnkern.backends.choose.load("blocked")
        made.clear()
        backend.sample(problem, inputs) if problem.selector != "softmax" else backend.softmax(problem, inputs)
        found = mac.passes(problem, backend="blocked")
        assert sum(made) == sum(each.pairs for each in found) * problem.head_dim, problem


def tensors(problem: Problem) -> Inputs:
    query = torch.randn(problem.batch, problem.heads, problem.len_q, problem.head_dim)
    key = torch.randn(problem.batch, problem.kv_heads, problem.len_k, problem.head_dim)
    value = torch.randn(problem.batch, problem.kv_heads, problem.len_k, problem.value_dim)
    return Inputs(query, key, value, seed=torch.tensor(1))


@pytest.fixture
def done(monkeypatch):
    """The MACs of every product of matrices that Triton's interpreter does."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    if torch.cuda.is_available():
        pytest.skip("without a GPU the kernels run in the interpreter")
    done = []
    dot = interpreter.InterpreterBuilder.create_dot

    def counted(self, a, b, *rest):
        done.append(a.data.shape[0] * a.data.shape[1] * b.data.shape[1])
        return dot(self, a, b, *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", counted)
    return done


@pytest.mark.parametrize("name", CALLS)
def test_the_products_of_the_triton_kernels(name, done):
    """Every product that the kernels do in the interpreter."""
    problem, through = CALLS[name]
    results = call(problem, "triton")
    forward = sum(done)
    sum(results[result].sum() for result in through).backward()
    assert forward == sum(each.macs for each in mac.passes(problem, backend="triton"))
    found = mac.passes(problem, "backward", through=through, backend="triton")
    assert sum(done) - forward == sum(each.macs for each in found if each.kernel != "sparse")


@pytest.mark.parametrize("sizes", AOA, ids=str)
def test_the_products_of_the_aoa_kernels(sizes, done):
    """Every product of matrices that the kernels do in the interpreter; their sums along one side are vectors'."""
    documents, words, asked, features = sizes
    problem = Problem(batch=documents, len_q=words, len_k=asked, head_dim=features, selector="aoa")
    pair = [torch.randn(documents, length, features, requires_grad=True) for length in (words, asked)]
    output = attnkern.attention_over_attention(*pair, backend="triton")
    forward = sum(done)
    output.sum().backward()
    for which, products in (("forward", forward), ("backward", sum(done) - forward)):
        passes = mac.passes(problem, which, backend="triton")
        assert products == sum(each.pairs * (each.features // 16 * 16) for each in passes), which


def test_the_tiles_of_the_cuda_kernels():
    """Their tables, for a GPU that need not be there: a causal forward computes whole tiles up to the diagonal."""
    problem = Problem(len_q=300, heads=2, head_dim=64, dtype=torch.bfloat16, device="cuda", causal=True)
    (only,) = mac.issued.PASSES["cuda"](problem, "softmax", mac.issued.Sources())
    assert only.pairs == 2 * (192 * 256 + 192 * 384)
    (only,) = mac.issued.PASSES["cuda"](problem, "backward", mac.issued.Sources(output=True))
    assert only.macs == 2 * 5 * 64 * (128 * 384 + 128 * 256 + 128 * 128)


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        (lambda: mac.count(7), TypeError, "problem must be"),
        (lambda: mac.count(Problem(len_q=4), "both"), ValueError, "which must be one of forward"),
        (lambda: mac.count(Problem(len_q=4), "backward", through=["score"]), ValueError, "through must name"),
        (lambda: mac.count(Problem(len_q=4), "backward", through=()), ValueError, "through must name"),
        (lambda: mac.count(Problem(len_q=4), backend="cublas"), ValueError, "backend must be"),
        (lambda: mac.count(Problem(len_q=4, scale=-1.0), backend="cuda"), attnkern.UnsupportedProblem, "cuda"),
    ],
)
def test_errors(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()
