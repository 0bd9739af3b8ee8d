"""The command line, as a user calls it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import attnkern
from attnkern.__main__ import COMMANDS, main
from attnkern.commands import info

PNG = b"\x89PNG\r\n\x1a\n"


def fails_in_one_line(capsys, *arguments: str) -> str:
    """Runs a command that must exit 2 with one line on stderr, and returns that line."""
    try:
        code = main(list(arguments))
    except SystemExit as stop:  # argparse's way
        code = stop.code
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("attnkern")
    return lines[0]


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    assert "usage: attnkern" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"attnkern {attnkern.__version__}\n"


def test_runs_as_a_module():
    root = Path(attnkern.__file__).parent.parent
    done = subprocess.run([sys.executable, "-m", "attnkern"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 2
    assert "COMMAND" in done.stderr


def test_interrupt_is_quiet(monkeypatch, capsys):
    def interrupt(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(COMMANDS["info"], "run", interrupt)
    assert main(["info"]) == 130
    assert capsys.readouterr().err == ""


def test_info(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for word in ("attnkern", "torch", "triton", "backend blocked", "backend reference", "nvcc", "rich"):
        assert word in out


def test_info_says_how_to_get_the_cuda_kernels(monkeypatch, capsys):
    monkeypatch.setattr(info.choose, "load", lambda name: "not there")
    for nvcc, advice in (("/opt/nvcc", "not built: install attnkern again"), (None, "not built: install CUDA")):
        monkeypatch.setattr(info.shutil, "which", lambda *_, found=nvcc, **__: found)
        assert main(["info"]) == 0
        assert advice in capsys.readouterr().out


def test_explain_counts_work(capsys):
    flags = ["--kind", "local", "--window", "1,0", "--heads", "2", "--len-q", "5", "--head-dim", "8"]
    assert main(["explain", *flags]) == 0
    out = capsys.readouterr().out
    pairs = 2 * (1 + 4 * 2)
    assert f"pairs     {pairs} " in out
    assert f"MACs      {pairs * 16} " in out
    assert "blocked" in out


@pytest.mark.parametrize("window", ["--window -1,0", "--window=-1,0"])
def test_a_window_may_begin_with_a_minus_sign(window, capsys):
    assert main(["explain", "--kind", "local", *window.split(), "--heads", "1", "--len-q", "5"]) == 0
    assert "pairs     15 " in capsys.readouterr().out


def test_explain_hard_gathers_its_values(capsys):
    assert main(["explain", "--kind", "hard", "--causal", "--heads", "1", "--len-q", "4", "--head-dim", "8"]) == 0
    assert f"MACs      {10 * 8} " in capsys.readouterr().out


def test_explain_named_backend(capsys):
    assert main(["explain", "--backend", "reference"]) == 0
    assert "reference runs it" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, named",
    [
        ("--heads 0", "--heads"),
        ("--heads 6 --kv-heads 4", "kv_heads"),
        ("--len-q many", "--len-q"),
        ("--dtype int8", "--dtype"),
        ("--kind soft", "--kind"),
        ("--kind local", "--window"),
        ("--kind local --window 3", "--window"),
        ("--kind local --window=-2,0", "window"),
        ("--kind local --window -2,0", "window"),
        ("--kind local --win -2,0", "window"),
        ("--kind local --window --causal", "--window"),
        ("--window 1,1", "--window"),
        ("--dropout 2", "dropout"),
        ("--kind hard --dropout 0.1", "--dropout"),
        ("--softcap=-1", "softcap"),
        ("--device cpu --backend nothing", "--backend"),
        ("--nonsense", "--nonsense"),
    ],
)
def test_explain_refuses(flags, named, capsys):
    assert named in fails_in_one_line(capsys, "explain", *flags.split())


def test_explain_says_why_a_backend_refuses(capsys, monkeypatch):
    monkeypatch.setattr("attnkern.backends.choose.refusal", lambda name, problem: "of its shape")
    assert "of its shape" in fails_in_one_line(capsys, "explain", "--backend", "blocked")


@pytest.fixture
def known_roofs(monkeypatch, tmp_path):
    roofs = attnkern.mac.Roofs("a device", {"float32": 1e10, "bfloat16": 1e10}, 1e10, 1e9)
    monkeypatch.setattr("attnkern.mac.roofs", lambda *_, **options: roofs)
    monkeypatch.setattr("attnkern.mac.profiling.SECONDS", 0.0)


def test_profile_of_a_call(known_roofs, capsys, tmp_path):
    files = ["--json", str(tmp_path / "a.json"), "--trace", str(tmp_path / "b.json")]
    flags = "--kind local --window 3,3 --heads 2 --len-q 50 --head-dim 8 --backward"
    assert main(["profile", *flags.split(), *files]) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "b.json"]
    out = capsys.readouterr().out
    assert f"useful MACs {2 * (50 * 7 - 3 * 4) * 56:,}, " in out
    assert "attnkern::softmax_attention_backward" in out and "set by" in out


def test_profile_says_nothing_of_torchs_own():
    """In a process of its own: torch's profiler reads what it may say when it first starts."""
    code = (
        "import attnkern, sys; from attnkern.__main__ import main; "
        "attnkern.mac.roofs = lambda *_, **options: attnkern.mac.Roofs('a device', {'float32': 1e10}, 1e10, 1e9); "
        "sys.exit(main(['profile', '--kind', 'global', '--len-q', '5']))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "KINETO_LOG_LEVEL"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.startswith("a device")


def test_profile_of_a_model(known_roofs, capsys, tmp_path, monkeypatch):
    (tmp_path / "own_model.py").write_text("""
import torch
def make():
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 8)), torch.ones(2, 4)
def wrong():
    return 3
""")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["profile", "--model", "own_model:make"]) == 0
    assert "* (Linear)" in capsys.readouterr().out
    for name in ("own_model:wrong", "own_model:nothing", "own_model", "no_such_module:make"):
        assert name in fails_in_one_line(capsys, "profile", "--model", name)


OWN = """
import torch
import torch.nn.functional as F

class Model(torch.nn.Module):
    def forward(self, x, scale=None):
        if scale is None:
            raise KeyError("no scale")
        return F.linear(x, torch.ones(8, 4)) * scale  # line 9

def by_name(): return Model(), torch.ones(2, 4), {"scale": torch.ones(())}
def only_by_name(): return Model(), {"x": torch.ones(2, 4), "scale": 2.0}
def a_dict(): return lambda inputs: inputs["x"] + 1, {"x": torch.ones(2)}, {}
def no_scale(): return Model(), torch.ones(2, 4)
def wrong_size(): return Model(), torch.ones(2, 5), {"scale": 2}
def numbered(): return Model(), {1: 2}
def broken(): return torch.ones(2) + torch.ones(3)  # line 17
def leaves(): raise SystemExit
def not_a_word(): return torch.nn.Embedding(10, 4), torch.tensor([11])
def a_name_of_ours(): return Model(), torch.ones(2, 4), {"roofs": 1}
def attnkerns_own():
    import attnkern
    return attnkern.nn.MultiheadAttention(8, 2), torch.ones(1, 2, 8)
"""


@pytest.mark.parametrize("name", ["by_name", "only_by_name", "a_dict"])
def test_inputs_by_name(name, known_roofs, capsys, tmp_path, monkeypatch):
    (tmp_path / f"own_{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["profile", "--model", f"own_{name}:{name}"]) == 0
    assert "total" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, said",
    [
        ("no_scale", "own_{name}.py:8: KeyError: 'no scale'"),
        ("wrong_size", "own_{name}.py:9: RuntimeError: mat1"),
        ("broken", "own_{name}.py:17: RuntimeError: The size"),
        ("leaves", "own_{name}.py:18: SystemExit: "),
        ("numbered", "--model own_{name}:numbered: the dict at the end"),
        ("attnkerns_own", "forward() missing"),
        ("not_a_word", "attnkern profile: IndexError: "),
        ("a_name_of_ours", "an input by the name of roofs cannot be passed on"),
    ],
)
def test_an_error_in_ones_own_code_names_its_place(name, said, known_roofs, capsys, tmp_path, monkeypatch):
    (tmp_path / f"own_{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    assert said.format(name=name) in fails_in_one_line(capsys, "profile", "--model", f"own_{name}:{name}")


@pytest.mark.parametrize(
    "text, said",
    [
        ("import torch\nnonsense = 3 +\n", "{file}:2: SyntaxError: invalid syntax"),
        ("\nimport no_such_package\n", "{file}:2: ModuleNotFoundError: No module named 'no_such_package'"),
        ("import torch\ntorch.no_such_name\n", "{file}:2: AttributeError: module 'torch'"),
    ],
)
def test_a_module_that_cannot_be_imported(text, said, known_roofs, capsys, tmp_path, monkeypatch):
    file = tmp_path / f"bad_{abs(hash(text))}.py"
    file.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert said.format(file=file) in fails_in_one_line(capsys, "profile", "--model", f"{file.stem}:make")


def test_profile_of_the_built_in_model(known_roofs, capsys, monkeypatch):
    monkeypatch.setattr("attnkern.commands.profile.FEATURES", 24)
    assert main(["profile"]) == 0
    assert "layers.*.self_attn (MultiheadAttention)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, named",
    [
        ("--kind local", "--window"),
        ("--kind global --model a:b", "--kind"),
        ("--counters", "--kind"),
        ("--counters --kind global", "GPU"),
        ("--kind global --len-q 0", "--len-q"),
        ("--kind global --backend triton --head-dim 512", "triton"),
    ],
)
def test_profile_refuses(flags, named, capsys, known_roofs):
    assert named in fails_in_one_line(capsys, "profile", *flags.split())


@pytest.fixture
def demo_extras():
    for module in ("rich", "matplotlib", "transformers"):
        pytest.importorskip(module)


def test_demo(demo_extras, capsys, tmp_path):
    picture = tmp_path / "demo.png"
    assert main(["demo", "--quick", "--output", str(picture)]) == 0
    assert picture.read_bytes().startswith(PNG)
    assert list(tmp_path.iterdir()) == [picture]  # no temporary file left
    out = capsys.readouterr().out
    assert "FAIL" not in out
    for word in ("float64", "global, causal", "local", "hard"):
        assert word in out


def test_demo_fails_on_a_wrong_kernel(demo_extras, capsys, tmp_path, monkeypatch):
    right = attnkern.local_attention
    monkeypatch.setattr(attnkern, "local_attention", lambda *tensors, **options: 1.01 * right(*tensors, **options))
    monkeypatch.setattr("attnkern.commands.demo.bert.absent", lambda name: "not now")
    assert main(["demo", "--quick", "--output", str(tmp_path / "demo.png")]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_demo_without_the_default_model(demo_extras, monkeypatch):
    from attnkern.commands.demo import bert

    monkeypatch.setattr(bert, "DEFAULT_MODEL", "no-such-package")
    assert "no-such-package is not installed" in bert.absent(None)
    assert bert.absent("any-name") is None


def test_demo_with_a_missing_model(demo_extras, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("attnkern.commands.demo.bert._on_hub", lambda name: False)
    line = fails_in_one_line(capsys, "demo", "--output", str(tmp_path / "demo.png"), "--model", "no-such/model")
    assert "no-such/model" in line


def test_demo_with_corrupt_weights(demo_extras, capsys, tmp_path):
    from attnkern.commands.demo.bert import DEFAULT_MODEL, find_model

    original = Path(find_model(DEFAULT_MODEL))
    if not original.is_dir():
        pytest.skip(f"{DEFAULT_MODEL} is not installed")
    model = tmp_path / "model"
    model.mkdir()
    for file in original.glob("*.json"):
        shutil.copy(file, model)
    (model / "model.safetensors").write_bytes((original / "model.safetensors").read_bytes()[:1_000_000])
    line = fails_in_one_line(capsys, "demo", "--output", str(tmp_path / "demo.png"), "--model", str(model))
    assert str(model) in line


def test_demo_without_its_extra(capsys, monkeypatch):
    monkeypatch.setattr("attnkern.commands.demo.missing", lambda *modules: ["rich"])
    assert "attnkern[demo]" in fails_in_one_line(capsys, "demo")
