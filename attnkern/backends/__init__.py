"""Implementations. Each module offers the same functions and says what it refuses; none knows another's.

refuses(problem)    why it cannot run the problem, or None
softmax             output and lse
mac                 output of weights that are linear, relu or exp of their scores
weights             attention weights, given lse
sample              draws, scores, lse, entropy
backward            gradients of whatever reached the softmax weights, or mac's
sparse_backward     gradients at the draws only

Attention-over-Attention has modules of its own, with a `forward` and a `backward`: `aoa_blocked`, `aoa_triton`.
"""
