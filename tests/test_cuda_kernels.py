"""The CUDA C++ kernels (csrc/): on a GPU that they are made for, else emulated on the CPU, in several schedules."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch.autograd import grad

import attnkern
from attnkern import AuxRequest, Problem, UnsupportedProblem
from attnkern.backends import choose, hopper
from tests.cases import CPU, Case, check, check_extreme_centers, poison, run
from tests.compiled import compiled

ON_GPU = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
BACKEND, DEVICE = ("cuda", "cuda") if ON_GPU else ("emulated", "cpu")
BF16, FP16 = torch.bfloat16, torch.float16
NAN = float("nan")
DEFAULTS = (0, True, 3)  # the emulator's: seed, reports of hazards, multiprocessors


@pytest.fixture(scope="session")
def module():
    return compiled(BACKEND)


@pytest.fixture(autouse=True)
def poisoned_allocations(monkeypatch):
    """What the backend allocates starts as NaN (integers: their largest value)."""

    def poisoned(allocate):
        def allocated(*args, **options):
            result = allocate(*args, **options)
            return result.fill_(NAN if result.dtype.is_floating_point else torch.iinfo(result.dtype).max)

        return allocated

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))


@pytest.fixture(autouse=True)
def bounds(module, monkeypatch, request):
    """Emulated kernels may touch only the tensors whose addresses the backend asked for."""
    if not hasattr(module, "set_options"):  # a GPU
        return
    module.set_options(*DEFAULTS)
    request.addfinalizer(module.forget_globals)
    address_of = torch.Tensor.data_ptr
    alive = []  # so that nothing else comes to lie in a registered range

    def registered(tensor):
        alive.append(tensor)
        address = address_of(tensor)
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
        module.register_global(address, (last + 1) * tensor.element_size(), True)
        return address

    class Watched:
        """The module; after a call no memory is the kernels' any more."""

        def __getattr__(self, name):
            member = getattr(module, name)

            def call(*args):
                try:
                    return member(*args)
                finally:
                    module.forget_globals()
                    alive.clear()

            return member if isinstance(member, type) else call

    monkeypatch.setattr(torch.Tensor, "data_ptr", registered)
    monkeypatch.setattr(hopper.Kernels, "_module", Watched())


@pytest.fixture
def schedules(module) -> Iterator[int]:
    """Five orders of everything that a GPU may do in any order; a GPU itself has its own."""

    def draw():
        for seed in range(5):
            if hasattr(module, "set_options"):
                module.set_options(seed, True, 1 + seed)
            yield seed

    return draw()


CAUSAL = {"is_causal": True}
END = {"is_causal": True, "query_offset": "end"}
CASES = {
    "one": Case((1, 1)),
    "row": Case((1, 300)),
    "key": Case((111, 1)),
    "group": Case((63, 65), batch=2, heads=(2, 1)),
    "square": Case((300, 300)),
    "strided": Case((111, 300), heads=(2, 2), strided=True),
    "causal": Case((65, 65), options=CAUSAL),
    "causal square": Case((300, 300), options=CAUSAL),
    "causal row": Case((1, 300), heads=(4, 2), options=END),
    "causal end": Case((65, 300), batch=2, strided=True, options=END),
    "causal, rows without keys": Case((300, 111), heads=(2, 1), options=END),
    "window": Case((300, 300), heads=(2, 1), options={"window": (40, 20)}),
    "window, rows without keys": Case((300, 65), heads=(2, 2), options={"window": (10, 10)}),
    "window ahead": Case((65, 300), batch=2, strided=True, options={"window": (5, 0), "query_offset": 100}),
    "window of one": Case((111, 111), options={"window": (0, 0)}),
    "window to the right": Case((111, 63), options={"window": (-1, 3), "query_offset": -7}),
    "window, causal": Case((63, 300), heads=(2, 1), options={"window": (64, -1)} | END),
    "no keys": Case((63, 65), options={"window": (2, 2), "query_offset": 500}),
}
EXTRAS = {
    "padding": Case((65, 130), batch=2, heads=(2, 1), mask="padding"),
    "bool mask": Case((63, 200), heads=(2, 2), strided=True, mask="bool"),
    "float mask": Case((111, 65), batch=2, heads=(2, 1), mask="float", options={"softcap": 3.0}),
    "mask per head": Case((70, 150), batch=2, heads=(2, 1), mask="float per head", options={"softcap": 1.0} | END),
    "mask per key": Case((130, 70), heads=(2, 2), mask="float per key", options={"dropout_p": 0.3, "seed": 1}),
    "mask per row": Case((111, 111), mask="float per row", options={"window": (-1, 20)}),
    "soft cap": Case((65, 300), heads=(2, 1), options={"softcap": 2.0}),
    "dropout": Case((300, 111), strided=True, options={"dropout_p": 0.2, "seed": 2} | CAUSAL),
    "dropout in a window": Case(
        (65, 300), options={"dropout_p": 0.5, "seed": 3, "window": (20, 0), "query_offset": 100}
    ),
}
CENTERED = {
    "row": Case((1, 300), center=True, sigma=4.0, options={"window": (3, 5)}),
    "key": Case((111, 1), center=True, sigma=4.0, options={"window": (3, 5), "renormalize": True}),
    "scattered": Case((300, 200), center=True, sigma=4.0, options={"window": (10, 10)}),
    "windows alone": Case((130, 300), center=True, strided=True, options={"window": (0, 0)} | CAUSAL),
    "to the left, causal": Case((111, 65), center=True, sigma=4.0, options={"window": (-1, 4)} | END),
    "to the right": Case((63, 300), batch=2, heads=(2, 1), center=True, sigma=9.0, options={"window": (10, -1)}),
    "inside": Case((300, 200), strided=True, center=True, sigma=4.0, options={"window": (5, 3), "renormalize": True}),
    "inside, everywhere": Case(
        (65, 130), batch=2, heads=(4, 2), center=True, sigma=9.0,
        options={"window": (-1, -1), "renormalize": True, "softcap": 2.0},
    ),
}  # fmt: skip
SAMPLED = {"row": 6, "strided": None, "causal square": 3, "causal, rows without keys": 1, "window": 2, "no keys": 2}
HEADS = [(width, width) for width in hopper.WIDTHS]
PADDED = [(8, 8), (40, 72), (128, 64), (24, 128), (192, 80)]


def check_softmax(case: Case, heads: tuple[int, int], dtype: torch.dtype, schedules: Iterator) -> None:
    kind = "local" if "window" in case.options else "global"
    check(kind, replace(case, dims=heads, weights=None), BACKEND, dtype, DEVICE, schedules)


# In the emulator one width in both: a kernel of float16 is one of bfloat16 but for its type.
EACH_DTYPE = [
    (heads, dtype) for heads in HEADS for dtype in (BF16, FP16) if dtype == BF16 or heads == HEADS[0] or ON_GPU
]


@pytest.mark.parametrize(
    ("heads", "dtype"),
    EACH_DTYPE,
    ids=[f"{heads}-{'bf16' if dtype == BF16 else 'fp16'}" for heads, dtype in EACH_DTYPE],
)
@pytest.mark.parametrize("case", CASES | EXTRAS)
def test_budget(case, heads, dtype, schedules):
    if heads == (256, 256) and dtype == FP16 and case in EXTRAS:
        pytest.skip("slow in the emulator: the same code as in bfloat16, and in float16 for narrower heads")
    check_softmax((CASES | EXTRAS)[case], heads, dtype, schedules)


@pytest.mark.parametrize(("heads", "dtype"), [((64, 64), FP16), ((72, 128), BF16), ((256, 192), BF16)], ids=str)
@pytest.mark.parametrize("case", CENTERED)
def test_learned_centers(case, heads, dtype, schedules):
    """Unseen keys hold NaN. Centres stay float32, so there is no naive computation in 16 bits to hold this to."""
    case = replace(CENTERED[case], dims=heads, weights=None)
    tensors = case.tensors(dtype, DEVICE)
    exact = run("local", {name: t if t is None else t.double() for name, t in tensors.items()}, case, "reference")
    for _ in schedules:
        for name, got in run("local", poison(case, tensors), case, BACKEND).items():
            wanted = exact[name].masked_fill(exact[name].isinf(), 0.0)
            error = got.masked_fill(got == -torch.inf, 0.0) - wanted
            assert error.norm() <= 0.01 * wanted.norm() + 0.002 * wanted.numel() ** 0.5, name


@pytest.mark.parametrize("renormalize", [False, True])
def test_extreme_centers_stay_finite(renormalize):
    """Centres at and around whole numbers, past the ends, infinite and NaN; sigma tiny and huge."""
    check_extreme_centers(BACKEND, BF16, DEVICE, renormalize)


@pytest.mark.parametrize("heads", PADDED, ids=str)
@pytest.mark.parametrize("case", ["strided", "window ahead"])
def test_narrower_heads(case, heads, schedules):
    check_softmax(CASES[case], heads, BF16, schedules)


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize(("case", "draws"), SAMPLED.items())
def test_samples(case, draws, heads, dtype, schedules):
    """The reference's own samples, and their gradients."""
    case = replace(CASES[case], dims=heads)
    case = replace(case, options=case.options | {"num_samples": draws, "seed": 7})
    check("hard", case, BACKEND, dtype, DEVICE, schedules)


def tensors(len_q=65, len_k=130, heads=64, dtype=BF16, requires_grad=False) -> list[torch.Tensor]:
    """query, key, value."""
    case = Case((len_q, len_k), (heads, heads), batch=2, heads=(2, 2))
    made = list(case.tensors(dtype, DEVICE).values())[:3]
    return [tensor.requires_grad_(requires_grad) for tensor in made]


def test_the_forward_is_deterministic(schedules):
    """The same bits in every schedule."""
    query, key, value = tensors(300, 300)
    options = {"is_causal": True, "return_aux": AuxRequest(lse=True), "backend": BACKEND}
    results = [attnkern.global_attention(query, key, value, **options) for _ in schedules]
    for output, aux in results[1:]:
        assert torch.equal(output, results[0][0]) and torch.equal(aux.lse, results[0][1].lse)


def test_a_loss_of_lse_alone():
    inputs = tensors(requires_grad=True)
    found, expected = (
        grad(attnkern.global_attention(*x, return_aux=AuxRequest(lse=True), backend=backend)[1].lse.sum(), x[:2])
        for x, backend in ((inputs, BACKEND), ([t.detach().double().requires_grad_() for t in inputs], "reference"))
    )
    for one, other in zip(found, expected):
        torch.testing.assert_close(one.double(), other, rtol=2e-2, atol=2e-2)


def shifted(tensor):
    """The same values, 2 bytes past a multiple of 16."""
    storage = tensor.new_zeros(tensor.numel() + 1)
    return storage[1:].view_as(tensor).copy_(tensor)


def in_wider_rows(tensor):
    """The same values, in rows whose length is no multiple of 16 bytes."""
    return torch.nn.functional.pad(tensor, (0, 1))[..., :-1]


def features_first(tensor):
    return tensor.mT.contiguous().mT


def small(mask: bool = True) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 2, 6, 64), (1, 2, 70, 64), (1, 2, 70, 64)] + [(1, 1, 6, 70)] * mask
    return [torch.randn(shape, generator=generator).half() for shape in shapes]


def with_gradients(tensors, backend, dtype, device) -> list[torch.Tensor]:
    leaves = [tensor.detach().to(device, dtype, copy=True).requires_grad_() for tensor in tensors]
    output, aux = attnkern.global_attention(*leaves, backend=backend, return_aux=AuxRequest(lse=True))
    return [x.float().cpu() for x in (output.detach(), aux.lse.detach(), *grad(output.float().square().sum(), leaves))]


@pytest.mark.parametrize("infinite", [[7], [7, 69]])
def test_an_infinite_score_is_a_constant(infinite):
    """Several share the row, in a learned mask's rows, too; see `reference.scores`."""
    tensors = small()
    tensors[3][:, :, 1:, infinite] = torch.inf
    exact = with_gradients(tensors, "reference", torch.float32, "cpu")
    for found, wanted in zip(with_gradients(tensors, BACKEND, FP16, DEVICE), exact):
        assert found.isfinite().all()
        torch.testing.assert_close(found, wanted, rtol=2e-3, atol=1e-2)


@pytest.mark.parametrize("place", ["query", "key", "value", "mask"])
@pytest.mark.parametrize("mask", [False, True])
def test_nan_is_not_lost(place, mask):
    """What looks at NaN is NaN, what does not is as it was; the sampler's lse and entropy, too."""
    names = ["query", "key", "value", "mask"][: 3 + mask]
    if place not in names:
        pytest.skip("there is no mask")
    tensors = small(mask)
    clean = with_gradients(tensors, BACKEND, FP16, DEVICE)
    tensors[names.index(place)][:, :, 4] = NAN
    output, lse, *gradients = with_gradients(tensors, BACKEND, FP16, DEVICE)
    spoilt = torch.ones(6, dtype=torch.bool) if place in ("key", "value") else torch.arange(6) == 4
    assert output[:, :, spoilt].isnan().all() and any(gradient.isnan().any() for gradient in gradients)
    assert place == "value" or lse[:, :, spoilt].isnan().all()
    assert torch.equal(output[:, :, ~spoilt], clean[0][:, :, ~spoilt])
    if not mask and place != "value":
        hard = attnkern.hard_attention(*(x.to(DEVICE) for x in tensors), seed=1, backend=BACKEND)
        assert hard.lse[:, :, spoilt].isnan().all() and hard.entropy[:, :, spoilt].isnan().all()


@pytest.mark.parametrize("layout", [shifted, in_wider_rows, features_first])
def test_what_cannot_be_read_in_place_is_copied(layout):
    inputs = tensors()
    expected = attnkern.global_attention(*inputs, backend=BACKEND)
    inputs = [layout(tensor).requires_grad_() for tensor in inputs]
    output = attnkern.global_attention(*inputs, backend=BACKEND)
    assert torch.equal(output, expected)
    grad_output = torch.ones_like(output)
    plain = [tensor.detach().contiguous().clone().requires_grad_() for tensor in inputs]
    wanted = grad(attnkern.global_attention(*plain, backend=BACKEND), plain, grad_output)
    for found, other in zip(grad(output, inputs, layout(grad_output)), wanted):
        torch.testing.assert_close(found, other)


def test_an_expanded_gradient():
    """As `output.sum().backward()` gives: all of its strides are 0."""
    inputs = tensors(requires_grad=True)
    output = attnkern.global_attention(*inputs, backend=BACKEND)
    expected = grad(output, inputs, torch.ones_like(output), retain_graph=True)
    for found, other in zip(grad(output.sum(), inputs), expected):
        torch.testing.assert_close(found, other)


def test_strides_beyond_32_bits():
    """Batch elements 2^32 bytes apart are read where they are, by 64-bit addresses."""
    near = tensors()
    sizes, far, places = near[0].shape, 2**31, []
    memory = torch.empty(far + 4 * near[1].numel(), dtype=BF16, device=DEVICE)  # 4 GiB of which few pages are touched
    for place, tensor in enumerate([*near, torch.randn_like(near[0])]):
        strides = (far, *tensor.stride()[1:])
        places.append(memory.as_strided(tensor.shape, strides, place * near[1].numel()).copy_(tensor))
    *inputs, grad_output = places
    for tensor in places:
        assert hopper._copyable(tensor) is tensor
        assert hopper._described(tensor)[2][0] == far
    assert inputs[0].shape == sizes
    plain = [tensor.clone().requires_grad_() for tensor in near]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    output, expected = (attnkern.global_attention(*x, backend=BACKEND) for x in (inputs, plain))
    assert torch.equal(output, expected)
    for found, other in zip(grad(output, inputs, grad_output), grad(expected, plain, grad_output.contiguous())):
        torch.testing.assert_close(found, other)


REFUSED = [
    ({"device": "meta"}, f"device meta is not {DEVICE}"),
    ({"dtype": torch.float32}, "dtype torch.float32 is not float16 or bfloat16"),
    ({"head_dim": 60}, "head sizes 60/60 are not"),
    ({"value_dim": 520}, "head sizes 64/520 are not"),
    ({"sigma": True}, "it has no Gaussians but around learned centres"),
    ({"center": True, "mask": "bool"}, "around learned centres it has neither mask nor dropout"),
    ({"center": True, "dropout_p": 0.5}, "around learned centres it has neither mask nor dropout"),
    ({"selector": "argmax"}, "it has no argmax"),
    ({"selector": "sample", "straight_through": True, "requires_grad": True}, "it has no straight-through gradient"),
    ({"weights": "mean"}, "it has no kernel that writes attention weights"),
    ({"selector": "sample", "mask": "bool"}, "its sampler has neither mask nor softcap"),
    ({"selector": "sample", "softcap": 5.0}, "its sampler has neither mask nor softcap"),
    ({"dropout_p": 0.1, "window": (2, 2), "query_offset": 5}, "dropout needs the first key in sight"),
    ({"scale": 0.0}, "scale 0.0 is not positive"),
    ({"scale": -1.0}, "scale -1.0 is not positive"),
    ({"batch": 0}, "sizes of 0"),
    ({"len_k": 0}, "sizes of 0"),
    ({"query_offset": None}, "it has no offsets that differ in a batch"),
]


@pytest.mark.parametrize(("options", "reason"), REFUSED, ids=lambda x: str(x))
def test_refusals(options, reason):
    problem = Problem(**{"len_q": 8, "dtype": BF16, "device": DEVICE} | options)
    with pytest.raises(UnsupportedProblem) as error:
        choose.choose(problem, BACKEND)
    assert f"backend '{BACKEND}' cannot run [{problem}]: {reason}" in str(error.value)


CALLS = [
    ({"query_offset": torch.zeros(2, dtype=torch.int64, device=DEVICE)}, "no offsets that differ in a batch"),
    ({"return_aux": AuxRequest(weights="mean")}, "no kernel that writes attention weights"),
    ({"scale": -1.0}, "scale -1.0 is not positive"),
]


@pytest.mark.parametrize(("options", "reason"), CALLS, ids=lambda x: str(list(x)) if isinstance(x, dict) else x)
def test_refusals_reach_the_caller(options, reason):
    with pytest.raises(UnsupportedProblem, match=reason):
        attnkern.global_attention(*tensors(), backend=BACKEND, **options)


def test_a_backward_is_refused_where_determinism_is_asked_for():
    inputs = tensors(requires_grad=True)
    output = attnkern.global_attention(*inputs, backend=BACKEND)
    torch.use_deterministic_algorithms(True)
    try:
        attnkern.global_attention(*[tensor.detach() for tensor in inputs], backend=BACKEND)  # itself it is
        with pytest.raises(UnsupportedProblem, match="summed in no fixed order"):
            output.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_emulated_backend_is_never_chosen():
    problem = Problem(len_q=8, dtype=BF16, device="cpu")
    assert choose.choose(problem) in (*CPU, "blocked")
    assert "emulated" not in choose.explain(problem).reasons


def described(*sizes, offset=0, **strides):
    """What the module is told of a zero tensor, and the tensor; `s0` ... `s3` replace strides."""
    tensor = torch.zeros(*sizes, dtype=BF16, device=DEVICE)
    steps = [strides.get(f"s{dim}", step) for dim, step in enumerate(tensor.stride())]
    return (tensor.data_ptr() + offset, sizes, steps), tensor


WRONG = [
    ({"dtype": "float32"}, "no kernel for dtype float32"),
    (
        {name: described(1, 2, 8, 60, s0=1024, s1=512, s2=64) for name in ("query", "key", "value", "output")},
        "no kernel for head size 60",
    ),
    ({name: described(1, 2, 8, 1024) for name in ("query", "key", "value", "output")}, "no kernel for head size 1024"),
    ({"query": described(1, 2, 8, 64, offset=2)}, "query: address is not a multiple of 16 bytes"),
    ({"output": described(1, 2, 8, 64, offset=8)}, "output: address is not a multiple of 16 bytes"),
    ({"query": described(1, 3, 8, 64)}, "query's heads are not a multiple of key's"),
    ({"key": described(2, 2, 8, 64)}, "key: sizes do not match"),
    ({"key": described(1, 2, 8, 128)}, "key: sizes do not match"),
    ({"value": described(1, 2, 9, 64)}, "value: sizes do not match"),
    ({"output": described(1, 2, 7, 64)}, "output: sizes do not match"),
    ({"query": described(1, 2, 8, 64, s3=2)}, "query: the last dimension's stride is not 1"),
    ({"key": described(1, 2, 8, 64, s2=68)}, "key: strides must be positive multiples of 16 bytes"),
    ({"value": described(1, 2, 8, 64, s1=0)}, "value: strides must be positive multiples of 16 bytes"),
    ({"value": described(1, 2, 8, 64, s1=-512)}, "value: strides must be positive multiples of 16 bytes"),
    ({"key": described(1, 2, 8, 64, s0=2**38)}, "below 2\\*\\*39 bytes"),
    ({name: described(1, 2, 0, 64) for name in ("query", "output")}, "query: sizes must lie between 1 and 2\\*\\*28"),
]


@pytest.mark.parametrize(("changed", "message"), WRONG, ids=[message for _, message in WRONG])
def test_the_module_checks_what_it_is_given(module, changed, message):
    right = {name: described(1, 2, 8, 64) for name in ("query", "key", "value", "output")}
    lse, counter = torch.zeros(1, 2, 8, device=DEVICE), torch.zeros(1, dtype=torch.int32, device=DEVICE)
    dtype, *described_tensors = ({"dtype": "bfloat16"} | right | changed).values()
    scores = module.ScoreOptions(0.125, -1, -1, 0)
    with pytest.raises(ValueError, match=message):
        tensors = [told for told, _ in described_tensors]
        numbers = (lse.data_ptr(), counter.data_ptr(), scores, module.ExtraOptions(), module.CenterOptions(), 0)
        module.softmax_forward(dtype, *tensors, *numbers)
