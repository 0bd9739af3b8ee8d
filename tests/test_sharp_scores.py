"""Scores far apart: rounding an lse must not be seen in gradients, whichever kernel made it."""

import pytest
import torch

from attnkern import global_attention, reference
from tests.cases import CPU


def gradients(function, tensors, upstream):
    tensors = [tensor.clone().requires_grad_() for tensor in tensors]
    return torch.autograd.grad((function(*tensors) * upstream).sum(), tensors)


@pytest.mark.parametrize("backend", ["blocked", *CPU])
@pytest.mark.parametrize("softcap", [0.0, 50.0])
@pytest.mark.parametrize("len_k", [64, 300, 1100])
@pytest.mark.parametrize("size", [3, 6])
def test_gradients_with_a_learned_mask(size, len_k, softcap, backend):
    generator = torch.Generator().manual_seed(0)
    shapes = ((64, 32), (len_k, 32), (len_k, 32), (64, len_k))
    query, key, value, mask = (torch.randn(1, 2, *shape, generator=generator) for shape in shapes)
    tensors, upstream = [size * query, size * key, value, mask], torch.randn(1, 2, 64, 32, generator=generator)

    def naive(*tensors):
        return reference.softmax_attention(*tensors, softcap=softcap)[0]

    exact = gradients(naive, [tensor.double() for tensor in tensors], upstream.double())
    rounded = gradients(naive, tensors, upstream)
    got = gradients(lambda *t: global_attention(*t, softcap=softcap, backend=backend), tensors, upstream)
    for name, found, wanted, plain in zip(("query", "key", "value", "mask"), got, exact, rounded):
        error, budget = (float((x - wanted).square().mean().sqrt()) for x in (found, plain))
        assert error <= 2 * budget + torch.finfo(torch.float32).eps * float(wanted.square().mean().sqrt()), name
