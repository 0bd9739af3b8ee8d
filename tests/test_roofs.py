"""The device's roofs: measured once, kept, believed for a month, measured again when the file is damaged."""

import json
import time
from contextlib import nullcontext

import pytest
import torch

from attnkern import mac
from attnkern.backends.choose import load
from attnkern.mac import roofline


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    """And a machine of small matrices."""
    monkeypatch.setenv("ATTNKERN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(roofline, "SIDES", (64,))
    monkeypatch.setattr(roofline, "BUDGET", dict.fromkeys(roofline.BUDGET, 0.001))
    monkeypatch.setattr(roofline, "COPIED", dict.fromkeys(roofline.COPIED, 1 << 20))
    return tmp_path


def measurements(monkeypatch) -> list:
    made, measured = [], roofline._measured
    monkeypatch.setattr(roofline, "_measured", lambda name, device: made.append(name) or measured(name, device))
    return made


def test_measured_once(monkeypatch, cache_folder):
    made = measurements(monkeypatch)
    first = mac.roofs("cpu")
    assert set(made) == {"copy", "exp", "float64", "float32", "bfloat16", "float16"}
    assert all(rate > 1e6 for rate in (*first.matmul.values(), first.bandwidth, first.exp))
    made.clear()
    assert mac.roofs(torch.device("cpu")) == first and not made
    assert [file.name for file in cache_folder.iterdir()] == ["roofs.json"]
    assert mac.roofs("cpu", fresh=True, progress=reversed).device == first.device and made[-1] == "copy"


@pytest.mark.parametrize("damage", ["{", "[]", "key", "rate", "empty", "old", "future"])
def test_what_cannot_be_believed_is_measured_again(damage, monkeypatch, cache_folder):
    place = mac.roofs("cpu").device
    file = cache_folder / "roofs.json"
    content = json.loads(file.read_text())
    entry = content[place]
    spoiled = {
        "key": {"speed": 3},
        "rate": entry | {"exp": "fast"},
        "empty": entry | {"matmul": {}},
        "old": entry | {"when": time.time() - 31 * 24 * 3600},
        "future": entry | {"when": time.time() + 1e6},
    }
    file.write_text(json.dumps({place: spoiled[damage], "other": 1}) if damage in spoiled else damage)
    made = measurements(monkeypatch)
    with pytest.warns(UserWarning, match="unreadable") if damage in ("{", "[]") else nullcontext():
        mac.roofs("cpu")
    assert made
    made.clear()
    mac.roofs("cpu")
    assert not made


@pytest.mark.parametrize("age", [0, 40])
def test_a_busy_machine_lowers_nothing(age, monkeypatch, cache_folder):
    """Nor one that is not asked for a month; what is faster now counts."""
    rates = {"copy": 5e9, "exp": 2e9, "float64": 1e10, "float32": 4e10, "bfloat16": None, "float16": 3e10}
    monkeypatch.setattr(roofline, "_measured", lambda name, device: rates[name])
    first = mac.roofs("cpu")
    file = cache_folder / "roofs.json"
    content = json.loads(file.read_text())
    content[first.device]["when"] -= age * 24 * 3600
    file.write_text(json.dumps(content))
    rates |= {"copy": 1e9, "exp": 3e9, "float32": 1e10, "float64": 2e10, "bfloat16": 7e10}
    second = mac.roofs("cpu", fresh=age == 0)
    assert (second.bandwidth, second.exp) == (5e9, 3e9)
    assert second.matmul == {"float64": 2e10, "float32": 4e10, "bfloat16": 7e10, "float16": 3e10}
    assert mac.roofs("cpu") == second


def test_products_of_registers_count(monkeypatch):
    """Where the kernels for CPUs are built."""
    backend = load("cpu")
    if isinstance(backend, str):
        pytest.skip(backend)
    for unit in backend.UNITS:
        assert backend.spin(unit, 200) > 200 * torch.get_num_threads()
    monkeypatch.setattr(roofline, "_product_rate", lambda dtype, device: 1.0)
    monkeypatch.setattr(backend, "spin", lambda unit, rounds: time.sleep(1e-4) or 10**7)
    found = mac.roofs("cpu")
    assert all(1e9 < rate < 1e11 for rate in found.matmul.values()) and found.exp > 1e9
    assert torch.get_num_threads() == 1


def test_floor():
    roofs = mac.Roofs("a device", {"bfloat16": 1e12}, 1e9, 1e6)
    assert roofs.floor(mac.Count(useful_macs=10**12), torch.bfloat16) == (1.0, "matrix")
    assert roofs.floor(mac.Count(useful_macs=10**12, bytes=3 * 10**9), "bfloat16") == (3.0, "memory")
    assert roofs.floor(mac.Count(exps=5 * 10**6), "bfloat16") == (5.0, "exp")
    with pytest.raises(ValueError, match="dtype must be one of bfloat16, got float32"):
        roofs.floor(mac.Count(), torch.float32)


@pytest.mark.parametrize("device", ["tpu", "meta", 3.5, "cuda:99"])
def test_errors(device):
    with pytest.raises(ValueError, match="device must be"):
        mac.roofs(device)


def test_the_kernel_that_measures_exponentials(device):
    from attnkern.triton_kernels.exp_rate import exp_rate

    numbers = torch.rand(1024, device=device)
    exp_rate[(2,)](numbers, BLOCK=512)
    assert torch.allclose(numbers, torch.full_like(numbers, 0.6411857), atol=1e-5)
