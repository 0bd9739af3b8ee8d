"""Triton device code: one idea per file, nothing here allocates, checks or knows torch.

Scores are kept in log2 units throughout, so that a weight is one `exp2`.
"""
