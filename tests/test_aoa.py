"""Attention-over-Attention: every backend against the float64 definition, and as torch sees it."""

import itertools
import os
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import attnkern
from attnkern import UnsupportedProblem, attention_over_attention, mac, reference
from attnkern.backends import aoa_shared
from attnkern.budget import Budget
from tests.cases import CPU, check_results

HALF, BF16, FP32, FP64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
# batch, words of the document and the question, features, masks, strided
CASES = [
    (1, 1, 1, 1, False, False),
    (2, 63, 65, 64, False, True),
    (3, 111, 17, 40, True, False),
    (2, 65, 128, 130, True, True),
    (1, 130, 200, 16, True, False),
    (1, 1000, 30, 24, False, False),
    (2, 130, 20, 48, True, False),
    (3, 70, 16, 64, True, True),
]
BACKENDS = ["reference", "blocked", *CPU, "triton"]


def tensors(batch, len_d, len_q, features, masked=False, strided=False, dtype=FP32, device="cpu"):
    """document, question and their masks; the first element of a larger masked batch has an empty document."""
    generator = torch.Generator().manual_seed(len_d)
    made = [torch.randn(batch, words, features, generator=generator).to(dtype) for words in (len_d, len_q)]
    if strided:
        made[0], made[1] = made[0].mT.contiguous().mT, made[1].transpose(0, 1).contiguous().transpose(0, 1)
    masks = [torch.rand(batch, words, generator=generator) > 0.3 for words in (len_d, len_q)] if masked else [None] * 2
    if masked and batch > 1:
        masks[0][0] = False
        masks[1][1] = False
    return [None if t is None else t.to(device) for t in (*made, *masks)]


def results(function, document, question, document_mask, question_mask):
    """Output and both gradients."""
    document, question = (t.detach().clone().requires_grad_() for t in (document, question))
    output = function(document, question, document_mask, question_mask)
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(output.shape, generator=generator).to(torch.float16).to(output)
    gradients = torch.autograd.grad((output * direction).sum(), (document, question))
    return dict(zip(("output", "document", "question"), (output.detach(), *gradients)))


def on(backend):
    return lambda *tensors: attention_over_attention(*tensors, backend=backend)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        *itertools.product(["blocked"], [FP32, FP64, BF16]),
        *itertools.product([*CPU, "triton"], [FP32, HALF, BF16]),
    ],
)
def test_budget(backend, dtype, case, device, poisoned_memory, monkeypatch):
    if case[1] == 130:  # tiles shorter than the document, and more than one pass over the batch
        monkeypatch.setattr("attnkern.backends.aoa_blocked.TILE_BYTES", {"cpu": 8 * 50 * case[2]})
    document, question, *masks = tensors(*case, dtype, device)
    poisoned = [
        words if mask is None else words.masked_fill(~mask[..., None], float("nan"))
        for words, mask in zip((document, question), masks)
    ]
    check_results(budget_of(document, question, *masks), results(on(backend), *poisoned, *masks))


def budget_of(document, question, *masks):
    document, question, *masks = (None if t is None else t.cpu() for t in (document, question, *masks))
    return Budget(
        lambda dtype: results(reference.attention_over_attention, document.to(dtype), question.to(dtype), *masks),
        document.dtype,
    )


def far_below(place, distance, device="cpu", features=8):
    """A pair; the scores of one of its words lie that far below the others', high as they are."""
    pair = dict(zip(("document", "question"), tensors(2, 70, 9, features, device=device)))
    pair["document"][..., 1] = pair["question"][..., 1] = 10.0
    one = {"document": "question", "question": "document"}[place]
    pair[one][..., 0], pair[place][..., 0], pair[place][:, 3, 0] = 1.0, 0.0, -distance
    return *pair.values(), None, None


@pytest.mark.parametrize("distance", [0.0, 30.0, 90.0])
@pytest.mark.parametrize("place", ["document", "question"])
@pytest.mark.parametrize("features", [8, 32])
@pytest.mark.parametrize("backend", ["blocked", *CPU, "triton"])
def test_a_word_far_below_the_others(backend, features, place, distance, device):
    document, question, *masks = far_below(place, distance, device, features)
    check_results(budget_of(document, question, *masks), results(on(backend), document, question, *masks))


@pytest.mark.parametrize(("distance", "shares"), [(0.0, True), (30.0, True), (90.0, False), (3e4, False)])
@pytest.mark.parametrize("place", ["document", "question"])
def test_softmaxes_that_share_exponentials(place, distance, shares, monkeypatch):
    """Where no row or column of scores lies too far below."""
    taken = []
    for name in ("forward", "backward"):
        function = getattr(aoa_shared, name)
        monkeypatch.setattr(aoa_shared, name, lambda *given, run=function: taken.append(run(*given)) or taken[-1])
    results(on("blocked"), *far_below(place, distance))
    assert taken == [shares, shares]


@pytest.mark.parametrize("backend", ["blocked", *CPU, "triton"])
@pytest.mark.parametrize("held", [3.0, 1e30, float("inf"), float("nan")])
def test_hidden_words_hold_anything(held, backend, device):
    document, question, *masks = tensors(2, 70, 9, 8, masked=True, device=device)
    masks[0][0, ::2] = masks[1][1, 1:4] = True
    expected = results(on(backend), document, question, *masks)
    filled = [words.masked_fill(~mask[..., None], held) for words, mask in zip((document, question), masks)]
    for name, result in results(on(backend), *filled, *masks).items():
        torch.testing.assert_close(result, expected[name], msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_a_distribution(backend, device):
    document, question, *masks = tensors(3, 70, 9, 8, masked=True, device=device)
    result = attention_over_attention(document, question, *masks, backend=backend)
    torch.testing.assert_close(result.sum(1), torch.tensor([0.0, 0.0, 1.0], device=device))
    assert (result[~masks[0]] == 0).all()
    only = torch.zeros_like(masks[0])
    only[:, 5] = True
    torch.testing.assert_close(attention_over_attention(document, question, only, backend=backend), only.float())


@pytest.mark.parametrize("backend", BACKENDS)
def test_huge_and_infinite_scores(backend, device):
    document, question, *_ = (t.abs() for t in tensors(1, 70, 9, 8, device=device)[:2])
    for factor in (1e15, 1e18, 1e30):
        result = attention_over_attention(document * factor, question * factor, backend=backend)
        torch.testing.assert_close(result.sum(1), torch.ones(1, device=device))
        expected = reference.attention_over_attention(document.double() * factor, question.double() * factor)
        if factor < 1e30:
            torch.testing.assert_close(result, expected.float())
    torch.testing.assert_close(result, torch.full_like(result, 1 / 70))  # all are infinite: all count alike


def test_gradcheck():
    document, question, *masks = tensors(3, 5, 4, 3, masked=True, dtype=FP64)
    inputs = (document.requires_grad_(), question.requires_grad_())
    assert torch.autograd.gradcheck(lambda d, q: reference.attention_over_attention(d, q, *masks), inputs)
    assert torch.autograd.gradgradcheck(lambda d, q: attention_over_attention(d, q, *masks), inputs)


def test_opcheck():
    document, question, *masks = tensors(2, 20, 6, 8, masked=True)
    for keep in (False, True):
        args = (document.requires_grad_(), question.requires_grad_(), *masks, keep, None)
        torch.library.opcheck(torch.ops.attnkern.attention_over_attention, args)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", [None, "reference"])
def test_compiles_without_a_graph_break(backend, dynamic):
    inputs = tensors(2, 20, 6, 8, masked=True)
    compiled = torch.compile(on(backend), fullgraph=True, backend="aot_eager", dynamic=dynamic)
    got, expected = results(compiled, *inputs), results(on(backend), *inputs)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name])


def test_vmap_and_leading_dimensions():
    document, question, *masks = tensors(6, 10, 4, 8, masked=True)
    folded = [t.unflatten(0, (2, 3)) for t in (document, question, *masks)]
    expected = results(on("reference"), document, question, *masks)
    for function in (attention_over_attention, torch.func.vmap(attention_over_attention)):
        got = results(function, *folded)
        for name in expected:
            torch.testing.assert_close(got[name].flatten(0, 1), expected[name])
    single = attention_over_attention(document[2], question[2], masks[0][2], masks[1][2])
    torch.testing.assert_close(single, expected["output"][2])
    shared = torch.func.vmap(torch.func.grad(lambda d, q: attention_over_attention(d, q)[0]), (0, None))
    torch.testing.assert_close(
        shared(document, question[0])[4],
        torch.func.grad(lambda d: reference.attention_over_attention(d[None], question[:1])[0, 0])(document[4]),
    )
    assert attention_over_attention(document[:0], question[:0]).shape == (0, 10)


def test_autocast():
    document, question, *_ = tensors(2, 20, 6, 8)
    document.requires_grad_()
    with torch.autocast("cpu", dtype=BF16):
        result = attention_over_attention(document, question.bfloat16())
    assert result.dtype == BF16
    result.float().square().sum().backward()
    assert document.grad.dtype == FP32


def test_flops():
    document, question, *_ = (t.requires_grad_() for t in tensors(2, 50, 6, 8)[:2])
    with FlopCounterMode(display=False) as forward:
        result = attention_over_attention(document, question)
    with FlopCounterMode(display=False) as backward:
        result.sum().backward()
    problem = attnkern.Problem(batch=2, len_q=50, len_k=6, head_dim=8, selector="aoa")
    for which, counted in (("forward", forward), ("backward", backward)):
        assert counted.get_total_flops() == 2 * mac.count(problem, which).useful_macs


@pytest.mark.parametrize(
    ("len_q", "launched"),
    [
        (128, ["columns", "attention", "grad_columns", "backward_document", "backward_question"]),
        (129, ["rows", "columns", "attention", "grad_columns", "row_mean", "backward_document", "backward_question"]),
    ],
)
def test_a_question_of_one_tile_takes_fewer_sweeps(len_q, launched, device, monkeypatch):
    from attnkern.backends import aoa_triton

    seen, launch = [], aoa_triton.Call.launch

    def record(call, kernel, *args, **tensors):
        seen.append(kernel.__name__.removeprefix("aoa_"))
        launch(call, kernel, *args, **tensors)

    monkeypatch.setattr(aoa_triton.Call, "launch", record)
    results(on("triton"), *tensors(1, 20, len_q, 8, device=device))
    assert seen == launched


@pytest.mark.parametrize(("len_q", "keeps"), [(32, True), (33, False)])
def test_exponentials_are_kept_where_they_are_few(len_q, keeps):
    """Then, and only where a gradient is wanted, the backward has them, as large as the document at most."""
    document, question, *masks = tensors(2, 300, len_q, 32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        attention_over_attention(document.requires_grad_(), question, *masks, backend="blocked")
    own = document.data_ptr(), question.data_ptr()
    (kept,) = (tensor for tensor in saved if tensor.dim() == 3 and tensor.data_ptr() not in own)
    assert kept.shape == (2, 300 if keeps else 0, len_q)
    if keeps:
        torch.testing.assert_close(kept / kept.sum(2, keepdim=True), (document @ question.mT).softmax(2))


def test_a_long_question_is_never_stored():
    """Peak memory above the inputs', forward and backward, in a fresh process: the matrix alone would take 256 MiB."""
    script = """
import resource, torch, attnkern
document, question = (torch.randn(1, 8192, 16, requires_grad=True) for _ in range(2))
attnkern.attention_over_attention(document[:, :64], question[:, :64]).sum().backward()
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
attnkern.attention_over_attention(document, question).square().sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert int(run.stdout) < 32 << 10


D, Q = torch.zeros(2, 7, 4), torch.zeros(2, 3, 4)
WRONG = [
    (lambda: attention_over_attention([1.0], Q), TypeError, "document must be a Tensor"),
    (lambda: attention_over_attention(D[0, 0], Q), ValueError, "document must have dimensions"),
    (lambda: attention_over_attention(D[:, :0], Q), ValueError, r"document must have at least one word.*\(2, 0, 4\)"),
    (lambda: attention_over_attention(D, Q[:, :0]), ValueError, "question must have at least one word"),
    (lambda: attention_over_attention(D.int(), Q), TypeError, "document must have a floating-point dtype"),
    (lambda: attention_over_attention(D, Q.double()), TypeError, "question must have the dtype of document"),
    (lambda: attention_over_attention(D, Q[:1]), ValueError, "question must have the batch and features of document"),
    (lambda: attention_over_attention(D, Q[..., :2]), ValueError, "question must have the batch and features"),
    (lambda: attention_over_attention(D, Q.to("meta")), ValueError, "question must be on the device"),
    (lambda: attention_over_attention(D, Q, D[..., 0]), TypeError, "document_mask must be bool"),
    (lambda: attention_over_attention(D, Q, D[..., 0] > 0, D[..., 0] > 0), ValueError, r"question_mask .*\(2, 3\)"),
    (lambda: attention_over_attention(D, Q, backend="cuda"), UnsupportedProblem, "it has no Attention|not built"),
    (lambda: attention_over_attention(D, Q, backend="fast"), ValueError, "backend must be None or one of"),
    (lambda: attention_over_attention(D.double(), Q.double(), backend="triton"), UnsupportedProblem, "float64"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_bad_arguments(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()


def test_explain():
    explanation = attnkern.explain(attnkern.Problem(len_q=8192, len_k=64, head_dim=768, selector="aoa"))
    assert explanation.chosen in (*CPU, "blocked") and "aoa" in str(explanation)
