"""Where the CUDA C++ kernels are launched from: a host thread that called nothing of CUDA, a graph, another stream,
another device than the current one."""

import threading
from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import attnkern
from attnkern.ops.library import prepared
from tests.compiled import compiled

ON_GPU = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
BACKEND, DEVICE = ("cuda", "cuda") if ON_GPU else ("emulated", "cpu")
NEEDS_GPU = pytest.mark.skipif(not ON_GPU, reason="needs a GPU of compute capability 9.0")


@pytest.fixture(autouse=True, scope="module")
def module():
    return compiled(BACKEND)


def inputs(length=300):
    torch.manual_seed(0)
    return [torch.randn(2, 4, length, 64, device=DEVICE).to(torch.bfloat16).requires_grad_() for _ in range(3)]


def attend(tensors):
    output = attnkern.global_attention(*tensors, is_causal=True, backend=BACKEND)
    return [output, *torch.autograd.grad(output.float().square().sum(), tensors)]


def check(found, expected):
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


def test_a_fresh_thread():
    """It has no context of its own, which tensor maps need (CUresult 201)."""
    tensors, found = inputs(), []

    def run():
        try:
            found.extend(attend(tensors))
            if ON_GPU:
                torch.cuda.synchronize()
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not [one for one in found if isinstance(one, Exception)], found
    check(found, attend(tensors))


def test_the_tensors_device_is_the_current_one(monkeypatch):
    """Of an operation on a second GPU: what asks for the current one's capability, stream or name asks for that."""
    current = [torch.device("cuda", 0)]

    @contextmanager
    def device(wanted):
        current.append(torch.device(wanted))
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1].index)
    operation = prepared(lambda mask, query: current[-1], first=1)
    with FakeTensorMode():
        for index in (0, 1):
            assert operation(None, torch.empty(1, device=f"cuda:{index}")) == torch.device("cuda", index)
    assert len(current) == 1
    assert operation(None, torch.empty(1)) == torch.device("cuda", 0)


@NEEDS_GPU
def test_a_graph():
    tensors = [tensor.detach() for tensor in inputs()]
    expected = attnkern.global_attention(*tensors, is_causal=True, backend=BACKEND)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = attnkern.global_attention(*tensors, is_causal=True, backend=BACKEND)
    for _ in range(3):
        output.fill_(float("nan"))
        graph.replay()
        assert torch.equal(output, expected)


@NEEDS_GPU
def test_a_graph_of_a_training_step():
    tensors = inputs()
    expected = attend(tensors)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        attend(tensors)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = attend(tensors)
    for _ in range(3):
        graph.replay()
        check(found, expected)


@NEEDS_GPU
def test_another_stream():
    """The kernels wait for what comes before them there, not for the default stream."""
    tensors = inputs()
    expected = attend(tensors)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        late = [torch.zeros_like(tensor) for tensor in tensors]
        torch.cuda._sleep(50_000_000)
        with torch.no_grad():
            for tensor, source in zip(late, tensors):
                tensor.copy_(source)
        found = attend([tensor.requires_grad_() for tensor in late])
    side.synchronize()
    check(found, expected)


@NEEDS_GPU
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_second_gpu():
    tensors = inputs()
    there = [tensor.detach().to("cuda:1").requires_grad_() for tensor in tensors]
    assert torch.cuda.current_device() == 0
    check([tensor.to("cuda:0") for tensor in attend(there)], attend(tensors))
