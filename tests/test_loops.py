"""The instruction mix of kernels' main loops, and counts against a GPU's counters, both from what tools print."""

import os
import subprocess
import sys

import pytest
import torch

from attnkern import Problem, mac
from attnkern.__main__ import main
from attnkern.commands.machine_code import NAME, described
from attnkern.mac import counters, machine_code

LISTING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   FFMA R0, R1, R2, R3 ;
        /*0020*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT ;
        /*0030*/              @!P0 BRA 0x60 ;
        /*0040*/                   FSEL R4, R5, R6, P1 ;
        /*0050*/                   BRA.DIV UR4, 0xb0 ;
        /*0060*/                   MUFU.EX2 R7, R8 ;
        /*0070*/                   LDS.128 R8, [R9] ;
        /*0080*/                   IADD3 R9, R9, 0x1, RZ ;
        /*0090*/               @P0 BRA 0x10 ;
        /*00a0*/                   EXIT ;
        /*00b0*/                   SHFL.BFLY PT, R4, R5, 0x1, 0x1f ;
        /*00c0*/                   BRA 0x60 ;
"""


def test_a_loop_is_read_without_its_rare_branches():
    loop = machine_code.main_loop("kernel", LISTING)
    assert loop.instructions == {"matrix": 1, "exp": 1, "float": 1, "integer": 1, "shared": 1, "other": 2}
    assert loop.macs == 64 * 128 * 16 // 4
    assert loop.clocks == {"issue": 7, "matrix": 64, "exp": 8, "fma": 1, "alu": 2, "shared": 16}
    assert loop.limit == "matrix" and loop.matrix_share == 1
    # 32 features: 1024 scores of a warp, 32 of a thread
    assert loop.per_score(32)["exp"] == 1 / 32
    assert loop.clocks_per_score(32) == 64 / 4 / 1024  # 16 of 2048 MACs a clock
    assert machine_code.main_loop("straight", LISTING.replace("@P0 BRA 0x10", "NOP")) is None


TEMPLATES = {
    "SoftmaxForwardINS_4bf16ELi64ELi192ELi128ELN4core5SightE0ELb0EE": ("SoftmaxForward bf16 64x192x128", 2 * 64),
    "SampleForwardINS_4fp16ELi128ELi128ELi3ELi4ELN4core5SightE1EE": ("SampleForward fp16 128x128x3x4 windowed", 128),
    "SoftmaxBackwardINS_4bf16ELi128ELi64ELN4core5SightE0ELb0EE": ("SoftmaxBackward bf16 128x64", 3 * 128),
    "SoftmaxBackwardByColumnsINS_4bf16ELi256ELi64ELN4core5SightE0ELb0ELb0EE": (
        "SoftmaxBackwardByColumns bf16 256x64", 3 * 256,
    ),
    "SoftmaxBackwardByColumnsINS_4bf16ELi128ELi128ELN4core5SightE2ELb1ELb1EE": (
        "SoftmaxBackwardByColumns bf16 128x128 centered output extras", 5 * 128,
    ),
}  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES)
def test_kernels_of_ours_are_named_in_full(template):
    """By their templates' arguments, with the MACs of a score."""
    name = template.split("INS")[0]
    found = described(f"_ZN3ptx5entryIN7kernels{len(name)}{template}EvNT_6ParamsE")
    assert found == TEMPLATES[template] and len(found[0]) <= NAME


def test_rates_are_those_of_the_chip():
    """2048 16-bit MACs a clock and multiprocessor, by the data sheet: 990 TFLOP/s of 132 at 1.83 GHz."""
    rate = machine_code.MACS_PER_CLOCK * machine_code.QUARTERS
    assert rate * 2 * 132 * 1.83e9 == pytest.approx(990e12, rel=0.01)


def test_triton_kernels_take_one_exponential_a_score():
    """In a process of its own: this one runs Triton's interpreter."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "attnkern", "profile", "--machine-code", "--kind", "global", "--causal"]
    command += ["--dtype", "bfloat16", "--head-dim", "64"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split() for line in done.stdout.splitlines()[1:-1]]
    assert {row[0] for row in rows} >= {"softmax_forward", "backward_query", "backward_key_value", "sample_forward"}
    assert all(1 <= float(row[1]) < 1.1 for row in rows)
    # a multiprocessor does 16 exponentials a clock
    assert all(float(row[6]) >= 1 / 16 for row in rows)


def test_the_command_says_what_it_cannot_read(tmp_path, capsys):
    (tmp_path / "text").write_text("no machine code")
    for name, message in (("none", "there is no file"), ("text", "holds no machine code")):
        assert main(["profile", "--machine-code", str(tmp_path / name)]) == 2
        said = capsys.readouterr().err
        assert message in said and len(said.splitlines()) == 1


PROBLEM = Problem(len_q=256, heads=2, head_dim=128, dtype=torch.bfloat16, device="cuda")
HEADER = '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Metric Name","Metric Unit",'
REPORT = f"""==PROF== Connected to process 7
{HEADER}"Metric Value"
"0","7","python","127.0.0.1","softmax_forward","1","7","dram__bytes.sum","byte","528,384"
"0","7","python","127.0.0.1","softmax_forward","1","7","sm__inst_executed_pipe_xu.sum","inst","4,096"
"0","7","python","127.0.0.1","softmax_forward","1","7","sm__ops_path_tensor_src_bf16_dst_fp32.sum","","67,108,864"
"0","7","python","127.0.0.1","softmax_forward","1","7","sm__ops_path_tensor_src_fp16_dst_fp32.sum","","0"
"1","7","python","127.0.0.1","a second kernel","1","7","dram__bytes.sum","byte","1,000"
"""


def test_counters_are_read_and_compared(monkeypatch):
    monkeypatch.setattr("attnkern.backends.triton.INTERPRETED", False)
    found = counters.parse(REPORT)
    assert found["softmax_forward"]["dram__bytes.sum"] == 528384 and len(found) == 2
    macs, exps, moved = counters.compare(PROBLEM, found, backend="triton")
    assert macs.counted == macs.measured == 2 * 256 * 256 * 256 == mac.count(PROBLEM, backend="triton").issued_macs
    assert exps.counted == exps.measured == 2 * 256 * 256
    assert moved.measured == 529384 and moved.relative == 529384 / mac.count(PROBLEM).bytes - 1


def test_counters_leave_the_clock_alone(monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command)
        command[command.index("--log-file") + 1].write_text(REPORT)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(counters, "missing", lambda problem: None)
    monkeypatch.setattr(counters, "tool", lambda name: name)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr("attnkern.backends.triton.INTERPRETED", False)
    counters.read(PROBLEM, backend="triton")
    (command,) = commands
    assert command[0] == "ncu" and command[command.index("--clock-control") + 1] == "none"


@pytest.mark.parametrize("text, message", [("", "no table"), (REPORT.replace("1,000", "n/a"), "no dram__bytes.sum")])
def test_counters_that_cannot_be_read(text, message):
    with pytest.raises(ValueError, match=message):
        counters.parse(text)


def test_what_the_counters_need(monkeypatch):
    assert "GPU" in counters.missing(Problem(len_q=64))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert "float32" in counters.missing(Problem(len_q=64, device="cuda"))
    monkeypatch.setattr(counters, "tool", lambda name: None)
    assert "ncu is not in PATH" in counters.missing(PROBLEM)
    with pytest.raises(RuntimeError, match="ncu"):
        counters.read(PROBLEM)
