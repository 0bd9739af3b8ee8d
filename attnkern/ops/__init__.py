"""Operations as torch sees them: `torch.ops.attnkern.*`, with fakes, autograd and FLOP formulas."""

from attnkern.ops import sample, softmax, weights  # noqa: F401  (importing registers them)
