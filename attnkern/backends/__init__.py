"""Implementations. Each module offers the same functions and says what it refuses; none knows another's.

name                what `backend=` calls it
refuses(problem)    why it cannot run the problem, or None
softmax             output and lse                  softmax_backward    its gradients
weights             attention weights given lse     weights_dot         their product with a gradient
sample              draws, scores, lse, entropy     sparse_backward     gradients at the draws only
backward            gradients through the softmax weights, of whatever reached them
row_dot             dot products of rows
"""
