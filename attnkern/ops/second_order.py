"""Second derivatives of the operations, through the reference: they store the score matrix."""

from collections.abc import Callable

import torch
from torch import Tensor

from attnkern import reference
from attnkern.ops import library
from attnkern.packing import Packing

DIFFERENTIABLE = ("query", "key", "value", "attn_mask", "center", "sigma", "document", "question")


def differentiable(name: str, grads: tuple[str, ...], recompute: Callable[..., tuple[Tensor, ...]]) -> Callable:
    """Makes a backward operation differentiable; returns what to call.

    Args:
        grads: its arguments that are gradients of results.
        recompute: those results, from the operation's arguments by name, in the reference.
    """
    names = [argument.name for argument in getattr(torch.ops.attnkern, name).default._schema.arguments]

    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in inputs))
        ctx.constants = [None if isinstance(x, Tensor) else x for x in inputs]

    def backward(ctx, *second):
        given = {
            key: constant if tensor is None else tensor
            for key, tensor, constant in zip(names, ctx.saved_tensors, ctx.constants)
        }
        outer = [key for key in grads if given[key] is not None]
        inner = [key for key in DIFFERENTIABLE if isinstance(given.get(key), Tensor) and given[key].is_floating_point()]
        asked = [second[place] for place, key in enumerate(k for k in DIFFERENTIABLE if k in names) if key in inner]

        def first(*tensors):
            """The operation itself, differentiably: gradients of the inner tensors."""
            upstream, inputs = tensors[: len(outer)], tensors[len(outer) :]

            def results(*inputs):
                found = dict(zip(grads, recompute(**(given | dict(zip(inner, inputs))))))
                return tuple(found[key] for key in outer)

            return torch.func.vjp(results, *inputs)[1](upstream)

        found = torch.func.vjp(first, *(given[key] for key in (*outer, *inner)))[1](tuple(asked))
        placed = dict(zip((*outer, *inner), found))
        return tuple(placed.get(key) for key in names)

    return library.differentiable(name, setup_context, backward)


def score_options(given: dict) -> dict:
    """The reference's options from an operation's arguments."""
    offset = given["query_offset"] if given["offsets"] is None else given["offsets"]
    return {
        "attn_mask": given["attn_mask"],
        "scale": given["scale"],
        "softcap": given["softcap"],
        "is_causal": given["causal"],
        "window": (given["left"], given["right"]),
        "query_offset": offset,
        "packing": None if given["cu_seq_q"] is None else Packing(*(given[name] for name in Packing._fields)),
    }


def softmax_results(**given) -> tuple[Tensor, Tensor, Tensor]:
    """Output, lse and weights."""
    value = given.get("value", given["key"])
    prior = {name: given[name] for name in ("center", "sigma", "renormalize") if name in given}
    return reference.widened(
        reference.softmax_attention,
        given["query"],
        given["key"],
        value,
        dropout_p=given["dropout_p"],
        seed=given["seed"],
        **prior,
        **score_options(given),
    )


def mac_result(**given) -> tuple[Tensor]:
    return (
        reference.widened(
            reference.mac_attention,
            given["query"],
            given["key"],
            given["value"],
            activation=given["activation"],
            **score_options(given),
        ),
    )


def weights_result(**given) -> tuple[Tensor]:
    weights = softmax_results(**given)[2]
    return (weights.mean(1) if given["mean"] else weights,)


def sample_results(**given) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, score, lse and entropy, at the draws that were made."""
    hard = reference.widened(
        reference.hard_attention,
        given["query"],
        given["key"],
        given["value"],
        num_samples=given["num_samples"],
        straight_through=given["straight_through"],
        index=given["index"],
        **score_options(given),
    )
    return hard.output, hard.score, hard.lse, hard.entropy
