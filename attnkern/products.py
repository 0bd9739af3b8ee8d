"""How many multiply-accumulates each operation is, by its definition: for counts and FLOP formulas alike.

Every (query, key) pair that the prior admits counts once for each product it takes part in, however often a
kernel computes it and whatever its tiles and padding add.
"""

from attnkern.problem import Problem


def softmax(problem: Problem) -> int:
    """Scores, and weights times values."""
    return problem.pairs() * (problem.head_dim + problem.value_dim)


def softmax_backward(problem: Problem, output: bool = True) -> int:
    """Scores again, and the gradients of query and key; through the output, those of weights and value as well."""
    return problem.pairs() * (3 * problem.head_dim + 2 * problem.value_dim * output)


def weights(problem: Problem) -> int:
    """Scores again."""
    return problem.pairs() * problem.head_dim


def weights_backward(problem: Problem) -> int:
    """Scores again, and the gradients of query and key."""
    return problem.pairs() * 3 * problem.head_dim


def hard(problem: Problem) -> int:
    """Scores; the output is a gather."""
    return problem.pairs() * problem.head_dim


def hard_at_draws(problem: Problem, *, output: bool = False, score: bool = False) -> int:
    """Backward, at the draws alone: the gradients of query and key, and the sum of the values' gradients."""
    draws = problem.num_samples * problem.batch * problem.heads * problem.len_q
    return draws * (2 * problem.head_dim * score + problem.value_dim * output)


def hard_backward(problem: Problem, *, output: bool = False, score: bool = False, distribution: bool = False) -> int:
    """By which results have gradients; `distribution` means lse or entropy.

    At the draws; and through the whole distribution scores again, the gradients of query and key, and straight-through
    that of the weights as well.
    """
    macs = hard_at_draws(problem, output=output, score=score)
    soft = problem.straight_through and output
    if soft or distribution:
        macs += problem.pairs() * (3 * problem.head_dim + problem.value_dim * soft)
    return macs


def aoa(problem: Problem) -> int:
    """Scores, and the document's distributions times beta; the questions' are only added up."""
    return problem.pairs() * (problem.head_dim + 1)


def aoa_backward(problem: Problem) -> int:
    """Scores again, the gradients of document and question, and the two softmaxes' sums g and h."""
    return problem.pairs() * (3 * problem.head_dim + 2)
