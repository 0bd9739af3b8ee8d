"""The operations as torch sees them: opcheck, compile, vmap, autocast, FLOPs, strides, addresses."""

import pytest
import torch
from torch.func import grad, vmap
from torch.utils.flop_counter import FlopCounterMode

import attnkern
from attnkern import AuxRequest
from attnkern.ops.library import like
from tests.cases import CPU

# cu_seq_q, cu_seq_k; scale, softcap, causal, left, right, query_offset, max_q, max_k
NO_SCORE_OPTIONS = (None, None, 0.25, 0.0, True, 5, -1, 2, 20, 30)


def tensors(batch=2, heads=4, kv_heads=2, len_q=20, len_k=30, dim=8, **kwargs):
    torch.manual_seed(0)
    shapes = ((batch, heads, len_q, dim), (batch, kv_heads, len_k, dim), (batch, kv_heads, len_k, dim))
    return [torch.randn(shape, requires_grad=True, **kwargs) for shape in shapes]


def mask_like(query, key):
    return torch.randn(1, 1, query.shape[2], key.shape[2], requires_grad=True)


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_opcheck_softmax(dropout_p):
    query, key, value = tensors()
    args = (query, key, value, mask_like(query, key), None, torch.tensor(3), *NO_SCORE_OPTIONS, dropout_p, None)
    torch.library.opcheck(torch.ops.attnkern.softmax_attention, args)


def test_opcheck_weights():
    query, key, value = tensors()
    lse = attnkern.global_attention(query, key, value, enable_gqa=True, return_aux=AuxRequest(lse=True))[1].lse
    for mean in (True, False):
        args = (query, key, lse.detach(), None, None, None, *NO_SCORE_OPTIONS, 0.0, mean, None)
        torch.library.opcheck(torch.ops.attnkern.attention_weights, args)


@pytest.mark.parametrize("straight_through", [False, True])
def test_opcheck_sample(straight_through):
    query, key, value = tensors()
    args = (query, key, value, None, None, torch.tensor(3), *NO_SCORE_OPTIONS, 3, False, straight_through, None)
    torch.library.opcheck(torch.ops.attnkern.sample_attention, args)


def test_opcheck_mac():
    query, key, value = tensors()
    args = (query, key, value, mask_like(query, key), None, None, *NO_SCORE_OPTIONS, "relu", None)
    torch.library.opcheck(torch.ops.attnkern.mac_attention, args)


CALLS = {
    "global": lambda q, k, v, m: attnkern.global_attention(q, k, v, m, enable_gqa=True, is_causal=True),
    "dropout": lambda q, k, v, m: attnkern.global_attention(q, k, v, m, dropout_p=0.2, enable_gqa=True),
    "weights": lambda q, k, v, m: (
        attnkern.local_attention(
            q, k, v, m, window=(3, 4), enable_gqa=True, return_aux=AuxRequest(lse=True, weights="mean")
        )[1].weights
    ),
    "end": lambda q, k, v, m: attnkern.local_attention(
        q, k, v, window=(3, 0), enable_gqa=True, query_offset="end", softcap=4.0
    ),
    "hard": lambda q, k, v, m: attnkern.hard_attention(q, k, v, m, num_samples=2, enable_gqa=True).log_prob,
    "gaussian": lambda q, k, v, m: attnkern.local_attention(
        q, k, v, m, window=(3, 4), enable_gqa=True, center=torch.arange(20.0).view(1, 1, 20) + 0.5, sigma=2.0
    ),
    "mac": lambda q, k, v, m: attnkern.mac_attention(q, k, v, m, activation="relu", window=(3, 4), enable_gqa=True),
    "scale": lambda q, k, v, m: attnkern.global_attention(q, k, v, m, scale=m.shape[2] * 0.013, enable_gqa=True),
    "reference": lambda q, k, v, m: attnkern.local_attention(
        q, k, v, m, window=(3, 4), enable_gqa=True, backend="reference"
    ),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_compiles_without_a_graph_break(name, dynamic):
    query, key, value = tensors()
    mask = mask_like(query, key)
    compiled = torch.compile(CALLS[name], fullgraph=True, backend="aot_eager", dynamic=dynamic)
    results = []
    for function in (CALLS[name], compiled):
        torch.manual_seed(1)
        output = function(query, key, value, mask)
        gradients = torch.autograd.grad(output.square().sum(), (query, key, value, mask), allow_unused=True)
        results.append([output, *(g for g in gradients if g is not None)])
    for eager, graph in zip(*results):
        torch.testing.assert_close(graph, eager)


def test_inductor_compiles_a_training_step(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # what it keeps of another capability does not compile
    query, key, value = tensors()

    def step(query, key, value):
        return attnkern.local_attention(query * 2, key, value, window=(4, 4), enable_gqa=True).relu().sum()

    expected = torch.autograd.grad(step(query, key, value), query)
    got = torch.autograd.grad(torch.compile(step, fullgraph=True)(query, key, value), query)
    torch.testing.assert_close(got, expected)


def test_vmap_and_per_sample_gradients():
    query, key, value = (torch.randn(3, 2, 4, 10, 8, dtype=torch.float64) for _ in range(3))
    mask = torch.randn(1, 1, 10, 10, dtype=torch.float64)

    def loss(query, key, value, mask):
        output, aux = attnkern.local_attention(
            query, key, value, mask, window=(3, 2), return_aux=AuxRequest(lse=True, weights="mean")
        )
        mac = attnkern.mac_attention(query, key, value, mask, activation="exp", is_causal=True)
        return output.square().sum() + aux.lse.sin().sum() + aux.weights.square().sum() + mac.square().sum()

    gradient = grad(loss, argnums=(0, 1, 2, 3))
    got = vmap(gradient, in_dims=(0, 0, None, None))(query, key, value[0], mask)
    for i in range(3):
        for mapped, single in zip(got, gradient(query[i], key[i], value[0], mask)):
            torch.testing.assert_close(mapped[i], single)


def test_vmap_hard():
    query, key, value = (torch.randn(3, 2, 4, 10, 8) for _ in range(3))
    hard = vmap(lambda q, k, v: attnkern.hard_attention(q, k, v, num_samples=2, seed=1)[:5])(query, key, value)
    assert [tuple(t.shape) for t in hard[:3]] == [(3, 2, 2, 4, 10, 8), (3, 2, 2, 4, 10), (3, 2, 2, 4, 10)]


def _dropped(x, seed=None):
    aux = AuxRequest(weights="mean")
    return attnkern.global_attention(x, x, x, dropout_p=0.5, seed=seed, return_aux=aux)[1].weights


def _drawn(x, seed=None):
    return attnkern.hard_attention(x, x, x, num_samples=2, seed=seed).index


@pytest.mark.parametrize("function", [_dropped, _drawn])
def test_random_choices_of_a_mapped_slice_are_those_of_a_call_with_its_seed(function):
    query, one = torch.randn(3, 2, 4, 30, 8), torch.randn(1, 2, 4, 30, 8).expand(3, -1, -1, -1, -1)
    for slices in (query, one):
        expected = torch.stack([function(x, 7) for x in slices])
        torch.testing.assert_close(vmap(lambda x: function(x, 7))(slices), expected)
        seeds = torch.tensor([5, 7, 9])
        expected = torch.stack([function(x, seed) for x, seed in zip(slices, seeds)])
        torch.testing.assert_close(vmap(function)(slices, seeds), expected)
    same, different = (vmap(function, randomness=name)(one) for name in ("same", "different"))
    assert torch.equal(same[0], same[2]) and not torch.equal(different[0], different[2])
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(function)(query)
    if function is _dropped:
        gradient = grad(lambda x: function(x, 7).square().sum())
        torch.testing.assert_close(vmap(gradient)(query), torch.stack([gradient(x) for x in query]))


FORWARD_MODE = {
    "dual numbers": lambda f, x: _dual(f, x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "hessian": lambda f, x: torch.func.hessian(lambda x: f(x).sum())(x),
    "linearize": lambda f, x: torch.func.linearize(f, x),
    "jacobian": lambda f, x: torch.autograd.functional.jacobian(f, x, vectorize=True, strategy="forward-mode"),
    "vmap of jvp": lambda f, x: vmap(lambda x: torch.func.jvp(f, (x,), (x,)))(x[None]),
    "jvp of vmap": lambda f, x: torch.func.jvp(vmap(f), (x[None],), (x[None],)),
    "compiled": lambda f, x: _dual(torch.compile(f, backend="eager"), x),
}


def _dual(function, x):
    with torch.autograd.forward_ad.dual_level():
        return torch.autograd.forward_ad.unpack_dual(function(torch.autograd.forward_ad.make_dual(x, x))).tangent


def _through(argument):
    """A function of one tensor that reaches the output through that argument alone."""
    still, linear = torch.randn(1, 2, 4, 4), attnkern.as_attention(torch.nn.Linear(4, 3))
    aux = AuxRequest(lse=True, weights="heads")
    return {
        "query": lambda x: attnkern.global_attention(x, still, still),
        "key": lambda x: attnkern.global_attention(still, x, still, dropout_p=0.5, seed=1),
        "value": lambda x: attnkern.local_attention(still, still, x, window=(1, 1)),
        "mask": lambda x: attnkern.global_attention(still, still, still, x),
        "center": lambda x: attnkern.local_attention(still, still, still, window=(2, 2), center=x[..., 0], sigma=1.0),
        "sigma": lambda x: attnkern.local_attention(still, still, still, window=(2, 2), sigma=x[..., 0].exp()),
        "weights": lambda x: attnkern.global_attention(x, still, still, return_aux=aux)[1].weights,
        "score": lambda x: attnkern.hard_attention(x, still, still, seed=1).score,
        "mac": lambda x: attnkern.mac_attention(x, still, still, activation="relu"),
        "document": lambda x: attnkern.attention_over_attention(x, still),
        "input": linear,
    }[argument]


ARGUMENTS = ["query", "key", "value", "mask", "center", "sigma", "weights", "score", "mac", "document", "input"]


@pytest.mark.parametrize("mode", FORWARD_MODE)
@pytest.mark.parametrize("argument", ARGUMENTS)
def test_forward_mode_is_refused_and_not_lost(argument, mode):
    x = torch.randn(1, 2, 4, 4)
    for requires_grad in (False, True):
        with pytest.raises(NotImplementedError, match="attnkern's kernels have no forward-mode"):
            FORWARD_MODE[mode](_through(argument), x.requires_grad_(requires_grad))


def test_the_reference_has_forward_mode():
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)

    def function(x):
        return attnkern.global_attention(x, x, x, backend="reference")

    expected = torch.func.jacrev(function)(x)
    for got in (torch.func.jacfwd(function)(x), FORWARD_MODE["jacobian"](function, x)):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", ["global", "end", "hard", "weights", "mac"])
def test_autocast(name):
    query, key, value = tensors()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = CALLS[name](query, key.bfloat16(), value, None)
    assert output.dtype == (torch.float32 if name == "hard" else torch.bfloat16)
    output.float().sum().backward()
    assert query.grad.dtype == torch.float32


def test_flops_count_the_pairs_of_the_window():
    query, key, value = tensors(batch=1, heads=2, kv_heads=2, len_q=50, len_k=50, dim=8)
    pairs = 2 * (50 * 7 - 3 * 4)  # algorithms.md: N(2D+1) - D(D+1), two heads
    with FlopCounterMode(display=False) as forward:
        output = attnkern.local_attention(query, key, value, window=(3, 3))
    with FlopCounterMode(display=False) as backward:
        output.sum().backward()
    assert forward.get_total_flops() == 2 * pairs * 16
    assert backward.get_total_flops() == 2 * pairs * 40
    with FlopCounterMode(display=False) as linear:
        attnkern.mac_attention(query, key, value, activation="linear", window=(3, 3)).sum().backward()
    assert linear.get_total_flops() == 2 * pairs * 56
    with FlopCounterMode(display=False) as sampled:
        hard = attnkern.hard_attention(query, key, value, num_samples=3)
    assert sampled.get_total_flops() == 2 * 2 * 50 * 50 * 8
    with FlopCounterMode(display=False) as sparse:
        hard.score.sum().backward()
    assert sparse.get_total_flops() == 2 * (3 * 2 * 50) * 2 * 8


@pytest.mark.parametrize("backend", ["blocked", *CPU, "triton"])
@pytest.mark.parametrize("function", [attnkern.global_attention, attnkern.hard_attention])
def test_merging_the_heads_is_a_view(backend, function, device):
    query, key, value = (t.to(device) for t in tensors(kv_heads=4, dim=16))
    for layout in (query, query.transpose(1, 2).contiguous().transpose(1, 2)):
        result = function(layout, key, value, backend=backend)
        output = result.output if function is attnkern.hard_attention else result
        assert output.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("backend", ["blocked", *CPU, "triton"])
def test_broadcast_and_overlapping_inputs(backend, device):
    """Stride 0 and sliding views: read as they are, gradients summed by autograd."""
    base = torch.randn(1, 1, 60, 16, device=device, requires_grad=True)
    query = base.expand(2, 3, 60, 16)
    key = base.unfold(2, 5, 1)[..., 2].expand(2, 3, 56, 16)
    output = attnkern.local_attention(query, key, key, window=(9, 9), backend=backend)
    (got,) = torch.autograd.grad(output.sin().sum(), base)
    expected = attnkern.local_attention(query, key, key, window=(9, 9), backend="reference")
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(got, torch.autograd.grad(expected.sin().sum(), base)[0], rtol=1e-4, atol=1e-4)


def test_gradients_take_no_memory_twice(monkeypatch):
    """One in its input's dtype and layout is handed on, and nothing as large is made beside it."""
    tensors = torch.randn(2, 4, 5, 16), torch.randn(2, 5, 4, 16).transpose(1, 2)
    gradients = [torch.empty_like(tensor) for tensor in tensors]
    wide = torch.randn(2, 4, 5, 32)[..., :16]
    assert like(gradients[0], wide).stride() == torch.empty_like(wide).stride()
    monkeypatch.delattr(torch, "empty_like")
    assert all(like(gradient, tensor) is gradient for gradient, tensor in zip(gradients, tensors))


def test_masks_are_not_expanded(monkeypatch):
    """A key-padding mask reaches the backend as (B, 1, 1, Lk), even if it was expanded before."""
    module = attnkern.backends.choose.load("blocked")
    seen = []
    original = module.softmax
    monkeypatch.setattr(
        module, "softmax", lambda p, inputs: (seen.append(inputs.attn_mask.shape), original(p, inputs))[1]
    )
    query, key, value = tensors(kv_heads=4)
    padding = torch.ones(2, 1, 1, 30, dtype=torch.bool)
    for mask in (padding, padding.expand(2, 4, 20, 30)):
        attnkern.global_attention(query, key, value, mask, backend="blocked")
    assert seen == [(2, 1, 1, 30)] * 2


def test_addresses_are_64_bit(device):
    """Heads, then rows, that lie beyond 2^31 elements, in memory that was never touched in between."""
    storage = torch.empty(2**31 + 4096, dtype=torch.float16, device=device)
    for shape, strides in (((1, 2, 8, 16), (0, 2**31, 16, 1)), ((1, 1, 64, 16), (0, 0, 2**25, 1))):
        far = storage.as_strided(shape, strides)
        far.copy_(torch.randn(shape))
        for backend in ("blocked", "triton"):
            got = attnkern.global_attention(far, far, far, backend=backend)
            torch.testing.assert_close(got, attnkern.global_attention(*[far.contiguous()] * 3, backend=backend))


SECOND = {
    "global": lambda q, k, v, m: attnkern.global_attention(q, k, v, m, enable_gqa=True, softcap=3.0),
    "local": lambda q, k, v, m: attnkern.local_attention(
        q, k, v, m, window=(3, 2), dropout_p=0.3, seed=1, enable_gqa=True
    ),
    "weights": CALLS["weights"],
    "mac": lambda q, k, v, m: attnkern.mac_attention(q, k, v, m, activation="exp", softcap=2.0, enable_gqa=True),
    "hard": lambda q, k, v, m: attnkern.hard_attention(q, k, v, m, seed=2, num_samples=2, enable_gqa=True)[:5:2],
}


@pytest.mark.parametrize("name", SECOND)
def test_second_derivatives(name):
    query, key, value = tensors(batch=1, heads=2, kv_heads=1, len_q=4, len_k=6, dim=3, dtype=torch.float64)
    mask = torch.randn(1, 1, 1, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *t: torch.autograd.grad(_square(SECOND[name](*t)), t, create_graph=True, materialize_grads=True),
        (query, key, value, mask),
    )


def test_second_derivatives_in_half_precision_with_a_float32_mask():
    query, key, value = tensors(dtype=torch.bfloat16)
    mask = mask_like(query, key)
    output = attnkern.global_attention(query, key, value, mask, enable_gqa=True)
    gradients = torch.autograd.grad(output.sum(), (query, mask), create_graph=True)
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float32]
    assert torch.autograd.grad(sum(g.float().square().sum() for g in gradients), key)[0].isfinite().all()


def test_hessian_by_func():
    query, key, value = (t.detach() for t in tensors(batch=1, heads=1, kv_heads=1, len_q=2, len_k=3, dim=2))

    def loss(query, **options):
        return attnkern.global_attention(query, key, value, **options).square().sum()

    got = torch.func.jacrev(torch.func.grad(loss))(query)
    torch.testing.assert_close(got, torch.func.hessian(lambda q: loss(q, backend="reference"))(query))


def _square(results):
    return sum(r.square().sum() for r in results) if isinstance(results, tuple) else results.square().sum()
