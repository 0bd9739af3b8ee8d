"""Cases drawn by hypothesis: any shape, mask, window and option, against the reference."""

import pytest
import torch

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cases import Case, check

SIDE = st.integers(-1, 90)


@st.composite
def calls(draw, longest: int, least: int = 1):
    kind = draw(st.sampled_from(["global", "local", "hard"]))
    kv_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    options = {}
    if draw(st.booleans()):
        options["is_causal"] = True
    options["query_offset"] = draw(st.one_of(st.just("end"), st.integers(-40, 80)))
    options["softcap"] = draw(st.sampled_from([0.0, 0.0, 2.0]))
    if kind == "local" or (kind == "hard" and draw(st.booleans())):
        options["window"] = (draw(SIDE), draw(SIDE))
    if kind == "hard":
        options |= {
            "num_samples": draw(st.sampled_from([None, 1, 3, 5])),
            "seed": draw(st.integers(-(2**63), 2**63 - 1)),
        }
        options["straight_through"] = draw(st.booleans())
        options["deterministic"] = draw(st.booleans())
    else:
        options |= {"dropout_p": draw(st.sampled_from([0.0, 0.25])), "seed": draw(st.integers(0, 2**40))}
    case = Case(
        (draw(st.integers(least, longest)), draw(st.integers(least, longest))),
        (draw(st.integers(least, 40)), draw(st.integers(least, 40))),
        batch=draw(st.integers(1, 2)),
        heads=(kv_heads * group, kv_heads),
        mask=draw(
            st.sampled_from([None, "padding", "bool", "float", "float per head", "float per key", "float per row"])
        ),
        strided=draw(st.booleans()),
        seed=draw(st.integers(0, 100)),
        options=options,
    )
    return kind, case


def fuzz(examples: int, longest: int, least: int = 1):
    return lambda test: settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )(given(call=calls(longest, least))(test))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=["fp64", "fp16"])
def test_blocked(dtype, device, poisoned_memory):
    @fuzz(examples=60, longest=200)
    def run(call):
        check(*call, "blocked", dtype, device)

    run()


def test_triton(device, poisoned_memory):
    # on a GPU each example compiles a dozen kernels of its own
    @fuzz(examples=6 if device == "cuda" else 4, longest=140 if device == "cuda" else 90)
    def run(call):
        check(*call, "triton", torch.float16, device)

    run()
