"""Operations as torch sees them: `torch.ops.attnkern.*`, with fakes, autograd, vmap and FLOP formulas."""
