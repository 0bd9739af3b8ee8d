"""Sequences of different lengths without padding: packed, and as jagged NestedTensors."""

import pytest
import torch

import attnkern
from attnkern import AuxRequest, Problem, UnsupportedProblem
from attnkern.budget import Budget
from tests.cases import CPU, check_results

LENGTHS = ([1, 65, 0, 111, 20], [70, 1, 5, 63, 130])  # of queries and keys
BACKENDS = ["reference", "blocked", *CPU, "triton"]
CALLS = {
    "plain": {},
    "causal": {"is_causal": True, "query_offset": "end"},
    "offsets": {"is_causal": True, "query_offset": torch.tensor([0, -3, 4, 10, 120])},
    "dropout": {"dropout_p": 0.3, "seed": 5, "softcap": 8.0},
    "window": {"window": (9, 4)},
    "gaussian": {"window": (9, 4), "sigma": 3.0, "query_offset": 7},
    "renormalized": {"window": (90, 4), "sigma": 3.0, "query_offset": "end", "renormalize": True, "is_causal": True},
}


def cu_seqs(dtype=torch.int32):
    return [torch.tensor([0, *lengths]).cumsum(0).to(dtype) for lengths in LENGTHS]


def packed(heads=2, kv_heads=1, dim=16, value_dim=8, dtype=torch.float32):
    """Query, key, value, `(T, H, E)`, strided as slices of one projection are."""
    torch.manual_seed(0)
    queries, keys = map(sum, LENGTHS)
    query = torch.randn(queries, 2 * heads, dim, dtype=dtype)[:, ::2]
    key, value = torch.randn(keys, kv_heads, dim, dtype=dtype), torch.randn(keys, kv_heads, value_dim, dtype=dtype)
    return [tensor.detach().requires_grad_() for tensor in (query, key, value)]


def options(**more):
    cu_seq_q, cu_seq_k = cu_seqs()
    lengths = {"max_q": max(LENGTHS[0]), "max_k": max(LENGTHS[1])}
    return {"cu_seq_q": cu_seq_q, "cu_seq_k": cu_seq_k, "enable_gqa": True} | lengths | more


def attend(tensors, call, **more):
    function = attnkern.local_attention if "window" in call else attnkern.global_attention
    return function(*tensors, return_aux=AuxRequest(lse=True), **options(**(call | more)))


def one_by_one(tensors, call):
    """Each sequence a batch of its own, in the reference and float64; dropout cannot be told so."""
    found = []
    for number, (query, key, value) in enumerate(
        zip(*(torch.split(t, n) for t, n in zip(tensors, (*LENGTHS, LENGTHS[1]))))
    ):
        dense = [t.double().transpose(0, 1).unsqueeze(0) for t in (query, key, value)]
        own = dict(call)
        if isinstance(own.get("query_offset"), torch.Tensor):
            own["query_offset"] = own["query_offset"][number].item()
        function = attnkern.local_attention if "window" in own else attnkern.global_attention
        output, aux = function(*dense, enable_gqa=True, return_aux=AuxRequest(lse=True), backend="reference", **own)
        found.append((output[0].transpose(0, 1), aux.lse[0]))
    output, lse = zip(*found)
    return torch.cat(output), torch.cat(lse, 1)


def gradients(results, tensors):
    torch.manual_seed(1)
    losses = [(t.nan_to_num(neginf=0.0) * torch.randn(t.shape).to(t.dtype)).sum() for t in results]
    return torch.autograd.grad(sum(losses), tensors)


@pytest.mark.parametrize("name", [name for name in CALLS if name != "dropout"])
def test_packing_is_each_sequence_alone(name):
    tensors = packed(dtype=torch.float64)
    output, aux = attend(tensors, CALLS[name], backend="reference")
    expected = one_by_one(tensors, CALLS[name])
    torch.testing.assert_close(output, expected[0])
    torch.testing.assert_close(aux.lse, expected[1])


@pytest.mark.parametrize("backend", ["blocked", *CPU, "triton"])
@pytest.mark.parametrize("name", CALLS)
def test_backends(name, backend):
    tensors = packed()

    def results(dtype, backend):
        wide = [t.detach().to(dtype).requires_grad_() for t in tensors]
        output, aux = attend(wide, CALLS[name], backend=backend)
        found = (output, aux.lse, *gradients((output, aux.lse), wide))
        return dict(zip(("output", "lse", "query", "key", "value"), (t.detach() for t in found)))

    found = results(torch.float32, backend)
    assert found["output"].shape == (sum(LENGTHS[0]), 2, 8) and found["lse"].shape == (2, sum(LENGTHS[0]))
    check_results(Budget(lambda dtype: results(dtype, "reference"), torch.float32), found)


@pytest.mark.parametrize("backend", ["blocked", *CPU, "triton"])
@pytest.mark.parametrize(
    "call", [{"num_samples": 3}, {"window": (9, 4), "query_offset": "end"}, {"deterministic": True}]
)
def test_hard(call, backend):
    """The very draws of the reference, and every gradient: at the draws, and through lse and entropy."""
    tensors = packed()
    wide = [t.detach().double().requires_grad_() for t in tensors]
    found = attnkern.hard_attention(*tensors, **options(**call, seed=3, backend=backend))
    exact = attnkern.hard_attention(*wide, **options(**call, seed=3, backend="reference"))
    draws = (3,) if "num_samples" in call else ()
    assert found.output.shape == (*draws, sum(LENGTHS[0]), 2, 8) and found.index.shape == (*draws, 2, sum(LENGTHS[0]))
    assert torch.equal(found.index, exact.index)
    for got, expected in zip(found, exact):
        torch.testing.assert_close(got.double(), expected.double(), atol=1e-5, rtol=1e-5)
    results = [(hard.output, hard.score, hard.lse, hard.entropy) for hard in (found, exact)]
    for got, expected in zip(gradients(results[0], tensors), gradients(results[1], wide)):
        torch.testing.assert_close(got.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", ["blocked", *CPU, "triton"])
@pytest.mark.parametrize("shape", [(5, 1, 111, 130), (1, 2, 1, 130), (5, 2, 111, 1)])
def test_masks(shape, backend):
    """A float mask is one of padded sequences, its gradient too; drawn keys read it as well."""
    tensors = packed()
    found = []
    for dtype, name in ((torch.float32, backend), (torch.float64, "reference")):
        torch.manual_seed(2)
        mask = torch.randn(shape).masked_fill(torch.rand(shape) < 0.3, -torch.inf).to(dtype).requires_grad_()
        own = [t.detach().to(dtype).requires_grad_() for t in tensors]
        output, aux = attnkern.global_attention(
            *own, mask, return_aux=AuxRequest(lse=True, weights="mean"), **options(backend=name)
        )
        hard = attnkern.hard_attention(*own, mask, num_samples=2, **options(seed=1, backend=name))
        results = (output, aux.lse, aux.weights, hard.score)
        found.append([*results, *gradients(results, [*own, mask])])
    for got, expected in zip(*found):
        torch.testing.assert_close(got.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", ["blocked", *CPU, "triton"])
def test_weights(backend):
    """Those of padded sequences, 0 past each end."""
    tensors = packed()
    for kind, more in (("heads", {}), ("mean", {"dropout_p": 0.4, "seed": 9})):
        request = AuxRequest(weights=kind)
        weights, exact = (
            attnkern.global_attention(*own, return_aux=request, **options(backend=name, **more))[1].weights
            for own, name in ((tensors, backend), ([t.double() for t in tensors], "reference"))
        )
        assert weights.shape == ((5, 2, 111, 130) if kind == "heads" else (5, 111, 130))
        torch.testing.assert_close(weights.double(), exact, atol=1e-6, rtol=1e-5)


def test_poisoned_neighbours():
    """What stands in one sequence has no influence on another."""
    for backend in BACKENDS:
        tensors = packed()
        with torch.no_grad():
            clean = attnkern.global_attention(*tensors, **options(backend=backend))
            first, last = LENGTHS[0][0], sum(LENGTHS[1]) - LENGTHS[1][-1]
            tensors[1][LENGTHS[1][0] : last], tensors[2][LENGTHS[1][0] : last] = float("nan"), float("nan")
            found = attnkern.global_attention(*tensors, **options(backend=backend))
        assert torch.equal(found[:first], clean[:first]) and torch.equal(found[-20:], clean[-20:])


def test_nested():
    torch.manual_seed(0)
    lengths = (5, 1, 40)
    nested = torch.nested.nested_tensor([torch.randn(n, 96) for n in lengths], layout=torch.jagged)
    nested.requires_grad_()
    query, key, value = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in nested.chunk(3, -1))
    output, aux = attnkern.global_attention(query, key, value, is_causal=True, return_aux=AuxRequest(lse=True))
    assert output.shape == query.shape and aux.lse.shape == query.shape[:3]
    alone = torch.nn.functional.scaled_dot_product_attention
    expected = [alone(*parts, is_causal=True) for parts in zip(query.unbind(), key.unbind(), value.unbind())]
    for got, want in zip(output.unbind(), expected):
        torch.testing.assert_close(got, want)
    (gradient,) = torch.autograd.grad(sum(part.square().sum() for part in output.unbind()), nested, retain_graph=True)
    (wanted,) = torch.autograd.grad(sum(part.square().sum() for part in expected), nested)
    torch.testing.assert_close(gradient.values(), wanted.values())
    hard = attnkern.hard_attention(query, key, value, seed=1)
    assert hard.output.shape == query.shape and hard.index.shape == query.shape[:3]
    with pytest.raises(ValueError, match="num_samples must be None for nested"):
        attnkern.hard_attention(query, key, value, num_samples=2)
    with pytest.raises(ValueError, match="key must be nested where query is"):
        attnkern.global_attention(query, torch.randn(3, 4, 5, 8), torch.randn(3, 4, 5, 8))


def test_compiled():
    tensors = packed()

    def call(query, key, value, cu_seq_q, cu_seq_k):
        given = options() | {"cu_seq_q": cu_seq_q, "cu_seq_k": cu_seq_k}
        return attnkern.global_attention(query, key, value, is_causal=True, query_offset="end", **given)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    found, expected = (function(*tensors, *cu_seqs()) for function in (compiled, call))
    torch.testing.assert_close(found, expected)
    for got, wanted in zip(gradients((found,), tensors), gradients((expected,), tensors)):
        torch.testing.assert_close(got, wanted)


def test_second_derivatives():
    tensors = [t.double().detach().requires_grad_() for t in packed()]
    found = []
    for backend in ("blocked", "reference"):
        (first,) = torch.autograd.grad(
            attnkern.global_attention(*tensors, **options(backend=backend)).square().sum(),
            tensors[0],
            create_graph=True,
        )
        found.append(torch.autograd.grad(first.square().sum(), tensors))
    for got, expected in zip(*found):
        torch.testing.assert_close(got, expected)


def test_flops_are_of_each_sequence():
    tensors = packed(heads=2, kv_heads=2, value_dim=16)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        attnkern.local_attention(*tensors, **options(window=(9, 0), query_offset="end"))
    problems = [
        Problem(heads=2, len_q=q, len_k=k, head_dim=16, window=(9, 0), query_offset=k - q) for q, k in zip(*LENGTHS)
    ]
    assert counter.get_total_flops() == 2 * sum(attnkern.mac.count(problem).useful_macs for problem in problems)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cu_seq_k": None}, TypeError, "cu_seq_k must be a Tensor"),
        ({"cu_seq_q": None}, ValueError, "cu_seq_k needs cu_seq_q, got None"),
        ({"max_q": None}, TypeError, "max_q must be the length"),
        ({"max_k": 129}, ValueError, "max_k must be at least 130"),
        ({"cu_seq_q": torch.tensor([0, 3, 2, 9, 100, 197])}, ValueError, "cu_seq_q must begin with 0 and never fall"),
        ({"cu_seq_k": torch.tensor([0, 1, 2, 3, 4, 5])}, ValueError, "cu_seq_k must end with key's 269 tokens, got 5"),
        ({"cu_seq_k": torch.tensor([0, 269])}, ValueError, "cu_seq_k must have shape"),
        ({"cu_seq_q": torch.rand(6)}, TypeError, "cu_seq_q must be int32 or int64"),
        ({"query_offset": torch.zeros(4, dtype=torch.int64)}, ValueError, r"query_offset must have shape \(5,\)"),
        ({"attn_mask": torch.ones(112, 130, dtype=torch.bool)}, ValueError, "attn_mask must broadcast"),
        ({"backend": "cuda"}, UnsupportedProblem, "cuda"),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        attnkern.global_attention(*packed(), **options(**change))
