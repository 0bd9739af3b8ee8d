"""MACs of an operation's call: by our formulas, by those of torch's `FlopCounterMode`, or unknown."""

import math
import re

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from attnkern import products
from attnkern.problem import Problem

# words in the names of operations that multiply and accumulate
PRODUCTS = re.compile(
    r"(?:^|_)(?:[a-z]*mm|[a-z]*mv|v?dot|(?:bi|tri)?linear(?:\dd)?|bicubic2d|lanczos2d|sampler|conv[a-z]*\d?d?|dilated\dd|"
    r"rnn|lstm|gru|attention|[a-z]*dist|linalg|fft|cholesky|[a-z]*solve|ormqr|geqrf|lstsq|expsv)(?:_|$)"
)
NONE = re.compile(
    r"^dist|freq|_thnn_|_norm$|cross|powsum|check_errors|flatten_weight|(?:^|_)(?:re)?(?:pack|order)|convert_|_jagged_"
)
PLAIN = ("prim", "prims", "rngprims", "inductor", "_c10d_functional", "c10d")  # namespaces without products


def macs(func: torch._ops.OperatorBase, args: tuple, kwargs: dict, result: object) -> int | None:
    """Of one call; None for a product, or what may hold one, without a formula."""
    if (packet := _packet(func)) in FORMULAS:
        names = (argument.name for argument in func._schema.arguments)
        return FORMULAS[packet](dict(zip(names, args)) | kwargs, result)
    if packet in flop_registry:
        return flop_registry[packet](*args, **kwargs, out_val=result) // 2
    return None if _multiplies(func) else 0


def known(func: torch._ops.OperatorBase) -> bool:
    """Whether there is a formula."""
    packet = _packet(func)
    return packet in FORMULAS or packet in flop_registry


def _packet(func: torch._ops.OperatorBase) -> object:
    """All overloads of an operation, and the one in place, are one."""
    if not isinstance(func, torch._ops.OpOverload):
        return func
    space, name = func._schema.name.split("::")
    plain = getattr(getattr(torch.ops, space), name.removesuffix("_"), None)
    return func._overloadpacket if plain is None else plain


def _multiplies(func: torch._ops.OperatorBase) -> bool:
    """By its name; an operation of somebody else's may always."""
    if not isinstance(func, torch._ops.OpOverload):
        return True
    space, name = func._schema.name.split("::")
    if space != "aten":
        return space not in PLAIN
    return PRODUCTS.search(name) is not None and NONE.search(name) is None


def _problem(given: dict) -> Problem:
    query, key, value = (given[name] for name in ("query", "key", "value"))
    return Problem(
        batch=query.shape[0],
        heads=query.shape[1],
        kv_heads=key.shape[1],
        len_q=query.shape[2],
        len_k=key.shape[2],
        head_dim=query.shape[3],
        value_dim=value.shape[3],
        causal=bool(given.get("is_causal", False)),
    )


def _attention(given: dict, _) -> int:
    return products.softmax(_problem(given))


def _attention_backward(given: dict, _) -> int:
    return products.softmax_backward(_problem(given))


def _multi_head(given: dict, _) -> int:
    batch, length, features = given["query"].shape
    return batch * length * (4 * features * features + 2 * given["key"].shape[1] * features)


def _encoder_layer(given: dict, _) -> int:
    batch, length, features = given["src"].shape
    hidden = given["ffn_weight_1"].shape[0]
    return batch * length * (4 * features * features + 2 * length * features + 2 * hidden * features)


def _convolution(given: dict, output: Tensor) -> int:
    """The weight at every place of the output, or of a transposed one's input; groups are in the weight's shape."""
    over = given["input"] if given.get("transposed") else output
    return over.shape[0] * math.prod(over.shape[2:]) * given["weight"].numel()


def _convolution_backward(given: dict, _) -> int:
    wanted = sum(given["output_mask"][:2])  # gradients of input and weight
    return wanted * _convolution(given, given["grad_output"])


def _steps(given: dict) -> int:
    """Of all sequences of a recurrent layer."""
    return math.prod(given["input"].shape[:-1])


def _layer(given: dict, _) -> int:
    first = "weight0" if "weight0" in given else "weight1"  # the backward counts from one
    second = "weight1" if first == "weight0" else "weight2"
    return _steps(given) * (given[first].numel() + given[second].numel())


def _layers(given: dict, _) -> int:
    return _steps(given) * sum(weight.numel() for weight in given["weight"] if weight.dim() == 2)


def _twice(formula):
    """A backward: gradients of the input and of the weights."""
    return lambda given, result: 2 * formula(given, result)


def _elements(*names: str):
    """The product of sizes."""
    return lambda given, _: math.prod(given[name].numel() for name in names)


def _distances(given: dict, result: Tensor) -> int:
    """One for each feature of each pair."""
    return given.get("grad", result).numel() * given["x1" if "x1" in given else "self"].shape[-1]


def _trilinear(given: dict, _) -> int:
    """One for each term of the sum."""
    shapes = []
    for place in "123":
        shape = list(given[f"i{place}"].shape)
        for dim in sorted(given[f"expand{place}"]):
            shape.insert(dim, 1)
        shapes.append(shape)
    return math.prod(torch.broadcast_shapes(*shapes))


def _product(one: str, other: str):
    """Of matrices, or of batches of them."""
    return lambda given, _: given[one].numel() * given[other].shape[-1]


def _formulas() -> dict:
    """Torch's own formulas take a causal call for a full one, and forget the groups of a convolution's backward."""
    fused = "_scaled_dot_product_{}_attention{}"
    names = [fused.format(kind, end) for kind in ("efficient", "cudnn", "flash") for end in ("", "_for_cpu")]
    names.append(fused.format("fused", "_overrideable"))
    found = {
        "_native_multi_head_attention": _multi_head,
        "_transformer_encoder_layer_fwd": _encoder_layer,
        "convolution_backward": _convolution_backward,
        "mkldnn_rnn_layer": _layer,
        "mkldnn_rnn_layer_backward": _twice(_layer),
        "_cudnn_rnn": _layers,
        "_cudnn_rnn_backward": _twice(_layers),
        "miopen_rnn": _layers,
        "miopen_rnn_backward": _twice(_layers),
        "mv": _elements("self"),
        "addmv": _elements("mat"),
        "dot": _elements("self"),
        "vdot": _elements("self"),
        "addr": _elements("vec1", "vec2"),
        "addbmm": _product("batch1", "batch2"),
        "_int_mm": _product("self", "mat2"),
        "_addmm_activation": _product("mat1", "mat2"),
        "_trilinear": _trilinear,
        "conv_tbc": lambda given, output: output.shape[0] * output.shape[1] * given["weight"].numel(),
        "_euclidean_dist": _distances,
        "_cdist_forward": _distances,
        "_cdist_backward": _distances,
        "_pdist_forward": _distances,
        "_pdist_backward": _distances,
    }
    convolutions = (
        "convolution",
        "_convolution",
        "convolution_overrideable",
        "cudnn_convolution",
        "mkldnn_convolution",
    )
    found |= dict.fromkeys(convolutions, _convolution)
    for name in names:
        found |= {name: _attention, f"{name}_backward": _attention_backward}
    aten = torch.ops.aten
    return {getattr(aten, name): formula for name, formula in found.items() if hasattr(aten, name)}


FORMULAS = _formulas()
