"""Sequences of different lengths without padding: packed, and as jagged NestedTensors."""

import pytest
import torch

import attnkern
from attnkern import AuxRequest
from tests.cases import compare

LENGTHS = ([1, 65, 0, 111, 20], [70, 1, 5, 63, 130])  # of queries and keys
BACKENDS = ["reference", "blocked", "triton"]
CALLS = {
    "plain": {},
    "causal": {"is_causal": True, "query_offset": "end"},
    "offsets": {"is_causal": True, "query_offset": torch.tensor([0, -3, 4, 10, 120])},
    "dropout": {"dropout_p": 0.3, "seed": 5, "softcap": 8.0},
    "window": {"window": (9, 4)},
    "gaussian": {"window": (9, 4), "sigma": 3.0, "query_offset": 7},
}


def cu_seqs(dtype=torch.int32):
    return [torch.tensor([0, *lengths]).cumsum(0).to(dtype) for lengths in LENGTHS]


def packed(heads=4, kv_heads=2, dim=16, value_dim=8, dtype=torch.float32):
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


@pytest.mark.parametrize("backend", ["blocked", "triton"])
@pytest.mark.parametrize("name", CALLS)
def test_backends(name, backend):
    tensors = packed()
    results = attend(tensors, CALLS[name], backend=backend)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    expected = attend(wide, CALLS[name], backend="reference")
    naive = attend(tensors, CALLS[name], backend="reference")
    found = (results[0], results[1].lse, *gradients((results[0], results[1].lse), tensors))
    exact = (expected[0], expected[1].lse, *gradients((expected[0], expected[1].lse), wide))
    plain = (naive[0], naive[1].lse, *gradients((naive[0], naive[1].lse), tensors))
    assert found[0].shape == (sum(LENGTHS[0]), 4, 8) and found[1].shape == (4, sum(LENGTHS[0]))
    for what in zip(("output", "lse", "query", "key", "value"), found, plain, exact):
        name, got, naive, exact = what
        assert (error := compare(got, exact, naive)) is None, f"{name}: {error}"
