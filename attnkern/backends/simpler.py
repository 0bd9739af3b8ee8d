"""The same forward pass as a simpler problem: for a step of decoding, and for heads that share their keys."""

from dataclasses import replace

from torch import Tensor

from attnkern.problem import UNLIMITED, Inputs, Problem, new_output

EVERYWHERE = {"window": (UNLIMITED, UNLIMITED), "causal": False, "query_offset": 0}


def one_offset(problem: Problem, inputs: Inputs) -> tuple[Problem, Inputs]:
    """With an int for offsets that are all alike, as in a step of decoding: so the batch stays together."""
    if inputs.offsets is None or problem.center or len(found := set(inputs.offsets.tolist())) != 1:
        return problem, inputs
    return replace(problem, query_offset=found.pop()), inputs._replace(offsets=None)


def in_sight(problem: Problem, inputs: Inputs) -> tuple[Problem, Inputs]:
    """Without the keys that no query can see, nor a window that hides none of the others.

    So the last query of a cache looks at what is written, all of it, however much the cache can hold.
    """
    (left, right), offset = problem.band, problem.query_offset
    if left == right == UNLIMITED or problem.center or problem.dropout_p or offset is None:
        return problem, inputs  # dropout goes by a key's number
    begin, end = problem.key_range(0, problem.len_q, offset)
    hides = (left >= 0 and begin < offset + problem.len_q - 1 - left) or (right >= 0 and end - 1 > offset + right)
    if hides and (begin, end) == (0, problem.len_k):
        return problem, inputs
    mask = inputs.attn_mask
    inputs = inputs._replace(
        key=inputs.key[:, :, begin:end],
        value=inputs.value[:, :, begin:end],
        attn_mask=mask if mask is None or mask.shape[3] == 1 else mask[..., begin:end],
    )
    prior = {"query_offset": offset - begin} if hides else EVERYWHERE
    return replace(problem, len_k=end - begin, **prior), inputs


def heads_as_rows(problem: Problem, inputs: Inputs) -> tuple[Problem, Inputs] | None:
    """Queries of the heads that share keys as so many more queries of one head; None where rows are not all alike."""
    mask = inputs.attn_mask
    prior = problem.window != EVERYWHERE["window"] or problem.causal or problem.center or problem.dropout_p
    if problem.group == 1 or prior or (mask is not None and mask.shape[1:3] != (1, 1)):
        return None
    query = inputs.query.unflatten(1, (problem.kv_heads, problem.group)).flatten(2, 3)
    return replace(problem, heads=problem.kv_heads, len_q=query.shape[2]), inputs._replace(query=query)


def rows_as_heads(problem: Problem, inputs: Inputs, output: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """The results of the original problem from those of `heads_as_rows`."""
    output, lse = (rows.unflatten(2, (problem.group, problem.len_q)).flatten(1, 2) for rows in (output, lse))
    return new_output(inputs.query, inputs.value).copy_(output), lse
