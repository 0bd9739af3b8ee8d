"""Profiles of models and functions, ours and others', on whatever device there is."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attnkern
from attnkern import Problem, mac

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
