"""Bad input: an error that names the argument, what was expected and what came, before any work."""

import math

import numpy as np
import pytest
import torch
from torch.nn.attention.bias import causal_upper_left

import attnkern
from attnkern import AuxRequest, Problem, UnsupportedProblem

Q = torch.zeros(2, 4, 5, 16)
K = torch.zeros(2, 4, 7, 16)
V = torch.zeros(2, 4, 7, 8)


def call(function=attnkern.global_attention, query=Q, key=K, value=V, **options):
    return function(query, key, value, **options)


def local(**options):
    return call(attnkern.local_attention, **options)


class Own(torch.Tensor):
    """Its entries may mean anything."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs or {})


def hard(**options):
    return call(attnkern.hard_attention, **options)


WRONG = [
    (lambda: call(query=[1.0]), TypeError, "query"),
    (lambda: call(query=Q[0]), ValueError, "key must have the batch size and dimensions of query"),
    (lambda: call(query=Q[0, 0, 0], key=K[0, 0, 0]), ValueError, "query must have 2 dimensions or more"),
    (lambda: call(query=Q.int(), key=K.int(), value=V.int()), TypeError, "floating-point"),
    (lambda: call(key=K.double()), TypeError, "key must have the dtype of query"),
    (lambda: call(key=K.to("meta")), ValueError, "key must be on the device"),
    (lambda: call(key=K[:1]), ValueError, "key must have the batch size"),
    (lambda: call(key=K[..., :8]), ValueError, "key must have the features of query, 16"),
    (lambda: call(value=V[:, :, :3]), ValueError, "value must have the heads and length of key"),
    (lambda: call(key=K[:, :2], value=V[:, :2]), ValueError, "enable_gqa"),
    (lambda: call(key=K[:, :3], value=V[:, :3], enable_gqa=True), ValueError, "multiple of key's 3"),
    (lambda: call(attn_mask="causal"), TypeError, "attn_mask"),
    (lambda: call(attn_mask=torch.zeros(5, 7).int()), TypeError, "attn_mask must be bool"),
    (lambda: call(attn_mask=torch.zeros(5, 6)), ValueError, r"attn_mask must broadcast .* \(2, 4, 5, 7\)"),
    (lambda: call(attn_mask=torch.zeros(1, 2, 4, 5, 7)), ValueError, "at most 4"),
    (lambda: call(attn_mask=torch.zeros(5, 7, device="meta")), ValueError, "attn_mask must be on the device"),
    (lambda: call(dropout_p=1.5), ValueError, "dropout_p must be between 0 and 1, got 1.5"),
    (lambda: call(dropout_p=-0.1), ValueError, "dropout_p"),
    (lambda: call(scale=math.nan), ValueError, "scale must be finite"),
    (lambda: call(scale=-(10**400)), ValueError, "scale must be finite"),
    (lambda: call(softcap=10**400), ValueError, "softcap must be a finite number"),
    (lambda: call(softcap=1e300), ValueError, "softcap must be a finite number"),
    (lambda: call(scale=1e39), ValueError, "scale must be finite"),
    (lambda: hard(num_samples=10**20), ValueError, "num_samples must be below"),
    (lambda: call(dropout_p=10**400), ValueError, "dropout_p must be between 0 and 1"),
    (lambda: call(softcap=-1.0), ValueError, "softcap"),
    (lambda: call(softcap=math.inf), ValueError, "softcap"),
    (lambda: call(softcap=None), TypeError, "softcap must be a number"),
    (lambda: call(dropout_p="a"), TypeError, "dropout_p must be a number"),
    (lambda: call(scale="x"), TypeError, "scale must be a number"),
    (lambda: call(scale=True), TypeError, "scale must be a number"),
    (lambda: call(scale=torch.ones(1)), TypeError, "scale must be a number"),
    (lambda: call(scale=torch.ones((), requires_grad=True)), ValueError, "scale must be a number without gradient"),
    (lambda: call(attn_mask=torch.zeros(5, 7).double()), TypeError, "attn_mask must be bool"),
    (lambda: call(attn_mask=Own(torch.zeros(5, 7))), TypeError, "attn_mask must be a plain Tensor, got Own"),
    (lambda: call(attn_mask=causal_upper_left(5, 5)), ValueError, r"CausalBias of \(Lq, Lk\) = \(5, 7\), got \(5, 5\)"),
    (lambda: local(window=(1, 1), center=Own(torch.zeros(2, 4, 5))), TypeError, "center must be a plain Tensor"),
    (lambda: call(query=Q[:0], attn_mask=torch.zeros(2, 1, 5, 7)), ValueError, "key must have the batch size"),
    (lambda: call(query_offset=None), TypeError, "query_offset"),
    (lambda: call(seed=[1]), TypeError, "seed"),
    (lambda: local(window=(None, 3)), TypeError, "window must hold two ints"),
    (lambda: local(window={1, 2}), TypeError, "window must be a pair"),
    (lambda: local(window=(1, 1), sigma="a"), TypeError, "sigma must be a number"),
    (lambda: local(window=(1, 1), center=torch.zeros(2, 4, 5, device="meta")), ValueError, "center must be on"),
    (lambda: attnkern.global_attention(*[t.to(torch.float8_e4m3fn) for t in (Q, K, V)]), TypeError, "16 bits"),
    (lambda: call(backend="cuda"), UnsupportedProblem, "device cpu is not cuda|its kernels are not built"),
    (lambda: call(query_offset="start"), ValueError, "query_offset"),
    (lambda: call(query_offset=1.5), TypeError, "query_offset"),
    (lambda: call(query_offset=torch.zeros(3).long()), ValueError, r"query_offset must have shape \(2,\)"),
    (lambda: call(query_offset=torch.zeros(2)), TypeError, "query_offset"),
    (lambda: call(seed=1.0), TypeError, "seed"),
    (lambda: call(seed=2**70), ValueError, "seed"),
    (lambda: call(seed=torch.zeros(2).long()), ValueError, "seed"),
    (lambda: call(return_aux=True), TypeError, "return_aux"),
    (lambda: call(return_aux=AuxRequest(weights="sum")), ValueError, "weights"),
    (lambda: call(backend="cudnn"), ValueError, "backend must be None or one of"),
    (lambda: local(), TypeError, "window"),
    (lambda: local(window=None), TypeError, "window"),
    (lambda: local(window=3), TypeError, "window must be a pair"),
    (lambda: local(window=(1, 2, 3)), TypeError, "window"),
    (lambda: local(window=(-2, 0)), ValueError, "window"),
    (lambda: local(window=(1.0, 2)), TypeError, "window"),
    (lambda: local(window=(1, 1), center=torch.zeros(5)), ValueError, "center must have shape"),
    (lambda: local(window=(1, 1), center=torch.zeros(2, 4, 5).long()), TypeError, "center"),
    (lambda: local(window=(1, 1), sigma=0.0), ValueError, "sigma must be positive"),
    (lambda: local(window=(1, 1), renormalize=True), ValueError, "renormalize"),
    (lambda: hard(num_samples=0), ValueError, "num_samples must be at least 1, got 0"),
    (lambda: hard(num_samples=2.0), TypeError, "num_samples"),
    (lambda: hard(window=(1, -3)), ValueError, "window"),
    (lambda: Problem(len_q=-1), ValueError, "len_q"),
    (lambda: Problem(len_q=1, heads=4, kv_heads=3), ValueError, "kv_heads"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_bad_arguments(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()


@pytest.mark.parametrize("wrong", [{"key": K[..., :8]}, {"key": K.double()}, {"attn_mask": torch.zeros(5, 6)}])
def test_errors_are_torchs_own_too(wrong):
    with pytest.raises(RuntimeError):
        call(**wrong)


def test_an_unable_backend_says_why():
    with pytest.raises(UnsupportedProblem, match=r"backend 'triton' cannot run .*: dtype torch.float64"):
        call(query=Q.double(), key=K.double(), value=V.double(), backend="triton")
    with pytest.raises(UnsupportedProblem, match="head size 512 is above 256"):
        wide = torch.zeros(1, 1, 4, 512)
        attnkern.global_attention(wide, wide, wide, backend="triton")
    with pytest.raises(UnsupportedProblem, match="no attention weights around learned centres"):
        center, aux = torch.zeros(2, 4, 5), attnkern.AuxRequest(weights="mean")
        local(window=(1, 1), center=center, return_aux=aux, backend="blocked")


def test_explain():
    explanation = attnkern.explain(Problem(len_q=8, dtype=torch.float64))
    assert explanation.chosen == "blocked"
    assert explanation.reasons["blocked"] is None and explanation.reasons["reference"] is None
    assert "float64" in explanation.reasons["triton"] or "CPU" in explanation.reasons["triton"]
    assert "chosen" in str(explanation) and "float64" in str(explanation)
    assert attnkern.explain(Problem(len_q=8, window=(1, 1), center=True, weights="mean")).chosen == "reference"


def test_problem_kinds_bands_and_pairs():
    assert Problem(len_q=4).kind == "global"
    assert Problem(len_q=4, window=(1, 1)).kind == "local"
    assert Problem(len_q=4, selector="sample").kind == "hard"
    assert Problem(len_q=4, window=(3, 2), causal=True).band == (3, 0)
    assert Problem(len_q=4, causal=True).band == (-1, 0)
    for problem in (
        Problem(len_q=5, len_k=9, causal=True, query_offset=3),
        Problem(len_q=9, len_k=5, window=(2, 1), query_offset=-4),
        Problem(len_q=6, len_k=6, window=(-1, 2), batch=2, heads=3),
        Problem(len_q=3, len_k=0),
    ):
        left, right = problem.band
        offset = problem.query_offset
        seen = sum(
            (left < 0 or j >= i + offset - left) and (right < 0 or j <= i + offset + right)
            for i in range(problem.len_q)
            for j in range(problem.len_k)
        )
        assert problem.pairs() == seen * problem.batch * problem.heads


def test_torchs_own_aux_request_is_understood():
    from torch.nn.attention.flex_attention import AuxRequest as TorchRequest

    output, aux = call(return_aux=TorchRequest(lse=True))
    assert aux.lse.shape == (2, 4, 5) and aux.weights is None


@pytest.mark.parametrize(
    "choices, error, named",
    [
        *(({name: value}, TypeError, name)
          for name in ("len_q", "len_k", "batch", "heads", "kv_heads", "head_dim", "value_dim", "num_samples")
          for value in (2.5, True, "4", (4,), torch.ones(()))),
        ({"len_q": None}, TypeError, "len_q"),
        ({"len_q": -1}, ValueError, "len_q"),
        ({"len_k": 2**63}, ValueError, "len_k"),
        ({"window": (1, 2, 3)}, TypeError, "window"),
        ({"window": [1, 2]}, TypeError, "window"),
        ({"window": (1, 2.5)}, TypeError, "window"),
        ({"window": (1, -2)}, ValueError, "window"),
        ({"query_offset": 0.5}, TypeError, "query_offset"),
        ({"dtype": "float32"}, TypeError, "dtype"),
        ({"device": torch.device("cpu")}, TypeError, "device"),
        ({"causal": 1}, TypeError, "causal"),
        ({"center": "yes"}, TypeError, "center"),
        ({"softcap": "2"}, TypeError, "softcap"),
        ({"softcap": float("nan")}, ValueError, "softcap"),
        ({"dropout_p": 2}, ValueError, "dropout_p"),
        ({"scale": False}, TypeError, "scale"),
        ({"softcap": 10**400}, ValueError, "softcap"),
        ({"dtype": torch.int32}, ValueError, "dtype"),
        ({"dtype": torch.float8_e4m3fn}, ValueError, "dtype"),
        ({"device": "tpu"}, ValueError, "device"),
        ({"device": "cuda:0"}, ValueError, "device"),
        ({"scale": float("inf")}, ValueError, "scale"),
        ({"num_samples": 0}, ValueError, "num_samples"),
        ({"mask": "int"}, ValueError, "mask"),
        ({"selector": "hard"}, ValueError, "selector"),
        ({"weights": True}, ValueError, "weights"),
    ],
)  # fmt: skip
def test_a_problem_that_is_none(choices, error, named):
    with pytest.raises(error, match=f"Problem.{named} must"):
        attnkern.Problem(**{"len_q": 4} | choices)


def test_sizes_of_a_problem_may_be_numpys():
    """And count as Python's: theirs overflow."""
    assert attnkern.Problem(len_q=np.int64(4), dropout_p=np.float32(0.5)).pairs() == 16
    assert attnkern.Problem(len_q=np.uint8(200)).pairs() == 40_000
    sizes = {"len_q": 4096, "heads": 16, "batch": 8, "window": (100, 0), "query_offset": 3}
    theirs = {k: tuple(map(np.uint32, v)) if k == "window" else np.int32(v) for k, v in sizes.items()}
    assert attnkern.mac.count(attnkern.Problem(**theirs)) == attnkern.mac.count(attnkern.Problem(**sizes))
