"""Profiles of models and functions, ours and others', on whatever device there is."""

import json
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import attnkern
from attnkern import Problem, mac
from attnkern.mac.formulas import FORMULAS

ROOFS = mac.Roofs("a device", {"float32": 1e10, "bfloat16": 2e10}, 1e10, 1e9)


def profiled(model, *inputs, **options) -> mac.Profile:
    return mac.profile(model, *inputs, roofs=ROOFS, **options)


def operation(profile: mac.Profile, part: str):
    (found,) = (row for row in profile.operations if part in row.name)
    return found


def module(profile: mac.Profile, name: str):
    (found,) = (row for row in profile.modules if row.name == name)
    return found


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("attnkern.mac.profiling.SECONDS", 0.0)


@pytest.mark.parametrize("causal", [False, True])
def test_torchs_own_attention_is_counted(causal, device):
    """Torch counts it 0 on a CPU, and a causal call as a full one."""
    query = torch.randn(2, 4, 100, 16, device=device, requires_grad=True)
    found = profiled(lambda: F.scaled_dot_product_attention(query, query, query, is_causal=causal), backward=True)
    problem = Problem(batch=2, heads=4, len_q=100, head_dim=16, causal=causal)
    assert found.parts[0].macs == mac.count(problem, "training").useful_macs
    assert found.parts[0].seconds > 0 and found.parts[0].roof_share > 0
    assert query.grad is None


def test_our_operations(device):
    query = torch.randn(2, 4, 100, 16, device=device, requires_grad=True)
    found = profiled(attnkern.local_attention, query, query, query, window=(5, 5), backward=True)
    problem = Problem(batch=2, heads=4, len_q=100, head_dim=16, window=(5, 5))
    assert operation(found, "softmax_attention_backward").macs == mac.count(problem, "backward").useful_macs
    assert found.total.macs == mac.count(problem, "training").useful_macs
    assert found.total.seconds == pytest.approx(sum(part.seconds for part in found.parts))


@pytest.mark.parametrize("ours", [False, True])
def test_a_layer_by_its_modules(ours, device):
    """The backward's work belongs to the modules whose forward it follows."""
    length, features, hidden = 30, 32, 64
    layer = nn.TransformerEncoderLayer(features, 4, hidden, batch_first=True, dropout=0.0, device=device)
    if ours:
        attnkern.swap_attention(layer)
    sequence = torch.randn(2, length, features, device=device)
    marked = layer.linear1.weight.grad = torch.ones_like(layer.linear1.weight)
    found = profiled(layer, sequence, backward=True)
    assert layer.linear1.weight.grad is marked and layer.linear2.weight.grad is None
    feed_forward = 2 * length * features * hidden
    assert module(found, "linear1").macs == module(found, "linear2").macs == 3 * feed_forward
    projections = 2 * length * features * features * 4
    attention = mac.count(Problem(batch=2, heads=4, len_q=length, head_dim=8), "training").useful_macs
    assert found.parts[0].macs == attention
    # the first linear layers need no gradient of the sequence
    of_sequence = 2 * length * features * features * 3
    assert module(found, "self_attn").macs == 3 * projections - of_sequence + attention
    assert module(found, "self_attn").seconds > 0
    assert module(found, "linear1").peak_bytes >= 2 * length * hidden * 4
    assert found.total.peak_bytes >= module(found, "self_attn").peak_bytes


def test_torchs_fast_path_is_counted(device):
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, device=device).eval()
    with torch.no_grad():
        found = profiled(layer, torch.randn(2, 30, 32, device=device))
    attention = mac.count(Problem(batch=2, heads=4, len_q=30, head_dim=8)).useful_macs
    assert found.total.macs == attention + 2 * 30 * (4 * 32 * 32 + 2 * 32 * 64)


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "attnkern"])
def test_a_hugging_face_bert(implementation, device):
    transformers = pytest.importorskip("transformers")
    attnkern.huggingface.register()
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=50,
        attn_implementation=implementation, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = transformers.BertModel(config).to(device)
    words = torch.randint(0, 50, (2, 20), device=device)
    found = profiled(model, input_ids=words, backward=True)
    forward, backward = (mac.count(Problem(batch=2, heads=4, len_q=20, head_dim=8), w) for w in ("forward", "backward"))
    # eager attention keeps its weights: four products backward
    share = backward.useful_macs * 4 // 5 if implementation == "eager" else backward.useful_macs
    assert found.parts[0].macs == 2 * (forward.useful_macs + share)
    assert module(found, "encoder.layer.0").macs == module(found, "encoder.layer.1").macs
    assert module(found, "encoder").macs == 2 * module(found, "encoder.layer.0").macs
    assert "encoder.layer.*.attention.self (BertSelfAttention)" in str(found)


def test_what_is_written(tmp_path, device):
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU()).to(device)
    found = profiled(model, torch.randn(8, 16, device=device))
    found.to_json(tmp_path / "profile.json")
    content = json.loads((tmp_path / "profile.json").read_text())
    assert content["total"]["macs"] == 8 * 16 * 16 and content["roofs"]["matmul"]["float32"] == 1e10
    assert [row["name"] for row in content["modules"]] == ["", "0", "1"]
    found.to_chrome_trace(tmp_path / "trace.json")
    names = {event.get("name") for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert {"module: 0", "aten::addmm"} <= names


def test_errors():
    with pytest.raises(TypeError, match="model must be a module or a function, got int"):
        profiled(3)
    with pytest.raises(ValueError, match="backward=True needs a result"):
        profiled(torch.sin, torch.ones(3), backward=True)
    broken = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(RuntimeError):
        profiled(broken, torch.ones(3, 4))
    assert not nn.modules.module._global_forward_pre_hooks and not nn.modules.module._global_forward_hooks


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.narrow = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return self.narrow(F.gelu(self.wide(x)))


@pytest.mark.parametrize("way", ["module", "in place", "function"])
def test_what_is_compiled_stays_compiled(way):
    """Dynamo gives up code that it meets under a dispatch mode; global hooks it would compile into its graphs."""
    torch._dynamo.reset()
    runs, traces = [], []

    def backend(graph, inputs):
        traces.append(graph)
        return lambda *tensors: (runs.append(1), graph(*tensors))[1]

    inner = FeedForward()
    compiled = {
        "module": lambda: torch.compile(inner, backend=backend),
        "in place": lambda: (inner.compile(backend=backend), inner)[1],
        "function": lambda: torch.compile(lambda x: inner(x) + 1, backend=backend),
    }[way]()
    x = torch.randn(4, 8)
    for _ in range(2):
        runs.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = profiled(compiled, x)
        assert found.total.macs == 2 * 4 * 8 * 16
        assert runs and operation(found, "compiled code").seconds > 0
        assert found.total.seconds == pytest.approx(sum(row.seconds for row in found.operations))
        runs.clear()
        compiled(x)
        assert runs == [1] and len(traces) == 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in inner.modules())


def products_of(function, *inputs, **options) -> int:
    found = profiled(function, *inputs, **options)
    assert not found.uncounted
    return found.total.macs


def test_operations_that_torch_has_no_formula_for(device):
    matrix, vector, batch = torch.randn(5, 7, device=device), torch.randn(7, device=device), torch.randn(3, 5, 7)
    batch = batch.to(device)
    assert products_of(torch.mv, matrix, vector) == products_of(torch.matmul, matrix, vector) == 35
    assert products_of(torch.addmv, torch.randn(5, device=device), matrix, vector) == 35
    assert products_of(torch.dot, vector, vector) == products_of(torch.vdot, vector, vector) == 7
    assert products_of(torch.addr, matrix, matrix[:, 0], vector) == 35
    assert products_of(torch.addbmm, torch.randn(5, 5, device=device), batch, batch.mT) == 3 * 25 * 7
    assert products_of(torch.baddbmm, torch.randn(5, 5, device=device), batch, batch.mT) == 3 * 25 * 7
    assert products_of(torch.einsum, "bij,bkj->bik", batch, batch) == 3 * 25 * 7
    assert products_of(torch.cdist, batch, batch) == products_of(torch.cdist, batch, batch, p=1.0) == 3 * 25 * 7
    assert products_of(torch.pdist, matrix) == 10 * 7
    square = torch.randn(5, 5, device=device)
    for call in (lambda: square.addmm_(matrix, matrix.T), lambda: torch.mm(matrix, matrix.T, out=square)):
        assert products_of(call) == 25 * 7
    assert products_of(nn.Bilinear(7, 6, 2, device=device), batch, torch.randn(3, 5, 6, device=device)) == 15 * 84


@pytest.mark.parametrize("kind, gates", [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize("layers, bidirectional", [(1, False), (2, True)])
def test_recurrent_layers(kind, gates, layers, bidirectional, device):
    steps, batch, features, hidden, ways = 6, 3, 5, 7, 1 + bidirectional
    model = kind(features, hidden, layers, bidirectional=bidirectional, device=device)
    x = torch.randn(steps, batch, features, device=device, requires_grad=True)
    weights = gates * hidden * ways * (features + hidden + (layers - 1) * (ways * hidden + hidden))
    with torch.no_grad():
        assert products_of(model, x) == steps * batch * weights
    macs = products_of(model, x, backward=True)
    # without a fused layer nobody needs a gradient of the first hidden state
    assert (
        3 * steps * batch * weights - layers * ways * batch * gates * hidden**2 <= macs <= 3 * steps * batch * weights
    )
    assert x.grad is None and all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_with_groups(groups, transposed, device):
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    model = kind(4, 8, 3, stride=2, padding=1, groups=groups, device=device)
    x = torch.randn(2, 4, 9, 9, device=device, requires_grad=True)
    places = 9 * 9 if transposed else 5 * 5
    forward = 2 * places * 4 * 8 * 9 // groups
    assert products_of(model, x) == forward
    assert products_of(model, x, backward=True) == 3 * forward
    assert products_of(model, x.detach(), backward=True) == 2 * forward


def test_convolutions_of_time_first():
    x, weight, bias = torch.randn(9, 2, 4, requires_grad=True), torch.randn(3, 4, 8), torch.randn(8)
    forward = 2 * 7 * 4 * 8 * 3
    assert products_of(torch.conv_tbc, x, weight, bias) == forward
    assert products_of(torch.conv_tbc, x, weight, bias, 1) == 2 * 9 * 4 * 8 * 3
    assert products_of(torch.conv_tbc, x, weight.requires_grad_(), bias, backward=True) == 3 * forward


def test_products_of_integers():
    bytes = torch.ones(17, 8, dtype=torch.int8)
    assert products_of(torch._int_mm, bytes, bytes.mT) == 17 * 17 * 8


@pytest.mark.parametrize("name", ["_cudnn_rnn", "miopen_rnn"])
def test_recurrent_layers_of_gpus(name):
    """One operation for all layers; the formulas know what a GPU would be given."""
    steps, batch, features, hidden = 6, 3, 5, 7
    shapes = [(4 * hidden, features), (4 * hidden, hidden), (4 * hidden,), (4 * hidden,)]
    shapes += [(4 * hidden, hidden)] * 2 + [(4 * hidden,)] * 2
    weights = [torch.empty(shape, device="meta") for shape in shapes]
    macs = steps * batch * 4 * hidden * (features + 3 * hidden)
    for place in ((steps, batch), (steps * batch,)):  # padded, packed
        given = {"input": torch.empty(*place, features, device="meta"), "weight": weights}
        assert FORMULAS[getattr(torch.ops.aten, name)](given, ()) == macs
        assert FORMULAS[getattr(torch.ops.aten, f"{name}_backward")](given, ()) == 2 * macs


@pytest.mark.parametrize("make", [torch.jit.script, lambda module: torch.jit.trace(module, torch.ones(2, 4))])
@pytest.mark.parametrize("inside", [False, True])
def test_torchscript(make, inside):
    model = make(nn.Linear(4, 8))
    found = profiled(nn.Sequential(model, nn.ReLU()) if inside else model, torch.ones(2, 4))
    assert found.total.macs == 2 * 4 * 8 and operation(found, "mm").macs == found.total.macs


def test_what_is_not_counted_is_named():
    square = torch.eye(4) + 1
    found = profiled(lambda: torch.fft.fft(torch.linalg.solve(torch.relu(square), square) @ square))
    assert found.total.macs == 4**3
    assert set(found.uncounted) == {"aten::_linalg_solve_ex", "aten::_fft_r2c"}
    assert "_linalg_solve_ex (1)" in str(found)


def test_an_operation_of_somebody_else_is_named():
    library = torch.library.Library("somebody", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: 2 * x, "CompositeExplicitAutograd")
    assert profiled(torch.ops.somebody.twice, torch.ones(3)).uncounted == {"somebody::twice": 1}
    assert "not in the MACs" not in str(profiled(attnkern.global_attention, *[torch.randn(1, 1, 4, 8)] * 3))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_leaves_gradients_alone(reentrant):
    inner = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    inner[0].bias.grad = kept = torch.ones(8)
    x = torch.randn(4, 8, requires_grad=True)
    found = profiled(lambda: checkpoint(inner, x, use_reentrant=reentrant), backward=True)
    assert found.total.macs == 4 * 4 * 8 * 8  # forward twice
    assert x.grad is None and inner[0].weight.grad is None
    assert inner[0].bias.grad is kept and kept.equal(torch.ones(8))


def test_backward_where_gradients_are_off():
    model, x = nn.Linear(8, 8), torch.randn(4, 8)
    with torch.no_grad():
        assert profiled(model, x, backward=True).total.macs == 2 * 4 * 8 * 8
    with torch.inference_mode(), pytest.raises(ValueError, match="backward=True .*inference_mode"):
        profiled(model, x, backward=True)


def test_the_profilers_own_marks_are_no_operations():
    def model(x):
        with torch.profiler.record_function("mine"):
            return x + 1

    found = profiled(nn.Sequential(nn.ReLU()), torch.ones(3))
    assert [row.name for row in found.operations] == ["aten::relu"] and found.total.calls == 1
    assert [row.name for row in profiled(model, torch.ones(3)).operations] == ["aten::add"]
