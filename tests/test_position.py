"""Positions: the papers' formulas, offsets, Hugging Face's T5, and bad input."""

import math

import pytest
import torch

from attnkern import global_attention
from attnkern.nn import LearnedPosition, RelativePositionBias, SinusoidalPosition


def test_sinusoids_are_vaswanis():
    found = SinusoidalPosition(6)(torch.zeros(1, 40, 6, dtype=torch.float64))
    for place, feature in ((0, 1), (3, 0), (3, 1), (39, 4), (39, 5)):
        angle = place / 10_000 ** (feature // 2 * 2 / 6)
        assert math.isclose(
            found[0, place, feature], math.cos(angle) if feature % 2 else math.sin(angle), abs_tol=1e-12
        )


@pytest.mark.parametrize("position", (SinusoidalPosition(6), LearnedPosition(12, 6)))
def test_offsets(position):
    words = torch.randn(2, 12, 6)
    whole = position(words)
    torch.testing.assert_close(position(words[:, 5:], 5), whole[:, 5:])
    ragged = torch.stack([words[0, 2:6], words[1, 7:11]])
    found = position(ragged, torch.tensor([2, 7]))
    torch.testing.assert_close(found, torch.stack([whole[0, 2:6], whole[1, 7:11]]))
    assert position(words.bfloat16()).dtype == torch.bfloat16 or isinstance(position, LearnedPosition)


@pytest.mark.parametrize("bidirectional", (True, False))
def test_relative_bias_is_t5s(bidirectional):
    from transformers.models.t5.modeling_t5 import T5Attention

    bias = RelativePositionBias(3, 16, 50, bidirectional)
    torch.nn.init.normal_(bias.table)
    ahead = torch.arange(120) - torch.arange(90)[:, None]
    bucket = T5Attention._relative_position_bucket(ahead, bidirectional, 16, 50)
    torch.testing.assert_close(bias(90, 120), bias.table[:, bucket][None])
    later = bias(4, 120, torch.tensor([7, 80]))
    torch.testing.assert_close(later, torch.cat([bias(4, 120, 7), bias(4, 120, 80)]))
    torch.testing.assert_close(later[1], bias(90, 120)[0, :, 80:84])
    query = torch.randn(2, 3, 4, 8)
    key = torch.randn(2, 3, 120, 8)
    global_attention(query, key, key, later).sum().backward()
    assert bias.table.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SinusoidalPosition(5), "dim must be even and positive, got 5"),
        (lambda: LearnedPosition(4, 2)(torch.zeros(1, 3, 2), 2), "must stand at positions below 4, got 2 to 4"),
        (lambda: RelativePositionBias(2, 7), "num_buckets must be even and at least 4, got 7"),
        (lambda: RelativePositionBias(2, 32, 32), "max_distance must be more than num_buckets, 32, got 32"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
