"""Triton device code: one idea per file, nothing here allocates, checks or knows torch.

UNIT, in every kernel, is what one nat of score counts: log2(e) for 16-bit types, so that a weight is
one fused multiply-add and one `exp2`; 1 for float32, whose error budget has no room for converting, and
where weights are no exponential.
"""
