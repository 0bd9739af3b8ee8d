"""Positions: their formulas, offsets, gradients, and T5's own buckets."""

import math

import pytest
import torch

from attnkern.nn import LearnedPosition, RelativePositionBias, SinusoidalPosition


def test_sinusoids_are_the_papers():
    table = SinusoidalPosition(6)(torch.zeros(1, 4, 6, dtype=torch.float64), 1000)[0]
    for place, row in enumerate(table, 1000):
        for f in range(3):
            angle = place / 10_000 ** (2 * f / 6)
            assert row[2 * f] == pytest.approx(math.sin(angle), abs=1e-12)
            assert row[2 * f + 1] == pytest.approx(math.cos(angle), abs=1e-12)


@pytest.mark.parametrize("position", [SinusoidalPosition(8), LearnedPosition(12, 8)])
def test_an_offset_for_each_sentence(position):
    words = torch.randn(3, 10, 8)
    whole = position(words)
    assert torch.equal(position(words[:, 4:], 4), whole[:, 4:])
    offset = torch.tensor([0, 7, 9])
    rows = torch.arange(3)
    assert torch.equal(position(words[rows, offset][:, None], offset)[:, 0], whole[rows, offset])


def test_beyond_the_last_learned_position():
    with pytest.raises(ValueError, match="positions below 12, got 5 to 12"):
        LearnedPosition(12, 8)(torch.zeros(1, 8, 8), 5)
    with pytest.raises(ValueError, match="dim must be even and positive, got 3"):
        SinusoidalPosition(3)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_are_t5s(bidirectional):
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5").T5Attention
    bias = RelativePositionBias(2, num_buckets=32, max_distance=128, bidirectional=bidirectional)
    with torch.no_grad():
        bias.table.copy_(torch.randn_like(bias.table))
    len_q, len_k, offset = 150, 300, 140
    ahead = torch.arange(len_k) - torch.arange(len_q)[:, None] - offset
    bucket = t5._relative_position_bucket(ahead, bidirectional, 32, 128)
    found = bias(len_q, len_k, offset)
    assert torch.equal(found, bias.table[:, bucket].unsqueeze(0))
    found.sum().backward()
    assert torch.equal(bias.table.grad[0], torch.bincount(bucket.flatten(), minlength=32).float())
    rows = bias(1, len_k, torch.tensor([0, offset]))
    assert rows.shape == (2, 2, 1, len_k) and torch.equal(rows[1], found[0, :, :1])
