"""Is a result right? The definition for one head, a thousand queries at a time, in float32 or better."""

import torch
from torch import Tensor

from attnkern import philox, reference
from attnkern.bench.problems import SEED, Row
from attnkern.problem import UNLIMITED

TOLERANCE = {"bfloat16": 2e-2, "float16": 5e-3, "float32": 1e-3}  # relative, in norm
QUERIES = 1024
DIFFERENT_DRAWS = 0.002  # share that rounding may tip to a neighbouring key
UNLIKELY = 2.5  # Kolmogorov's statistic: true draws exceed it once in 130,000 times


def complaint(
    row: Row, tensors: tuple[Tensor, ...], results: dict[str, Tensor], gradients: dict[str, Tensor],
    starts: dict[str, Tensor], same_seed: bool = True,
) -> str | None:  # fmt: skip
    """What is wrong with the results, or with the gradients that came of `starts`; None if nothing is.

    Looks at the query heads of the first key head, in the first batch element. Draws must be the reference's, which
    has the same seed; those of another generator, each under its row's distribution, must be spread evenly.

    Args:
        tensors: query, key and value, `(B, H, L, D)`.
        results: by name, "output" or all of hard attention's.
        gradients: of "query", "key" and "value", those that were computed.
        starts: the gradients of the results that the backward began with.
        same_seed: whether draws were made by attnkern's generator with `SEED`.
    """
    group = row.heads // row.kv_heads
    query = tensors[0][0, :group].detach().float().requires_grad_(bool(gradients))
    key, value = (tensor[0, 0].detach().float().requires_grad_(bool(gradients)) for tensor in tensors[1:])
    drawn = "index" in results  # then output, index and score lead with the draws
    results = {name: _first_head(name, result.detach(), group, drawn) for name, result in results.items()}
    starts = {name: _first_head(name, start, group, drawn).float() for name, start in starts.items()}
    norms = {name: [] for name in results if name != "index"}  # of error and of result, in each part
    places = []  # of the draws, in their rows' distributions
    for begin in range(0, row.len_q, QUERIES):
        score = _scores(row, query[:, begin : begin + QUERIES], key, begin)
        found = {name: _queries(name, result, begin) for name, result in results.items()}
        if drawn and same_seed and begin == 0 and (wrong := _wrong_draws(score, found["index"])) > DIFFERENT_DRAWS:
            return f"{wrong:.1%} of the draws differ from the reference's"
        if drawn and not same_seed:
            places.append(_places(score.detach(), found["index"]))
        kept = None if not row.dropout_p else _kept(row, begin, score)
        exact = _exact(score, value, found.get("index"), kept)
        for name, parts in norms.items():
            parts.append(_norms(found[name], exact[name]))
        if gradients:
            sum((exact[name] * _queries(name, start, begin)).sum() for name, start in starts.items()).backward()
    if places and (uneven := _unevenness(torch.cat(places))) > UNLIKELY:
        return f"the draws do not follow the distribution (Kolmogorov's statistic {uneven:.1f})"
    relative = {name: _relative(torch.stack(parts).norm(dim=0)) for name, parts in norms.items()}
    for name, gradient in gradients.items():
        found = gradient[0, :group] if name == "query" else gradient[0, 0]
        relative[f"grad_{name}"] = _relative(_norms(found, {"query": query, "key": key, "value": value}[name].grad))
    return judgement(relative, TOLERANCE[row.dtype])


def judgement(relative: dict[str, float], tolerance: float) -> str | None:
    """A sentence if an error exceeds the tolerance or is NaN."""
    wrong = [f"{name} {error:.2g}" for name, error in relative.items() if not error < tolerance]
    return f"wrong result, relative error of {', '.join(wrong)}" if wrong else None


def relative_error(found: Tensor, exact: Tensor) -> float:
    return _relative(_norms(found, exact))


def _first_head(name: str, result: Tensor, group: int, drawn: bool) -> Tensor:
    """`([S,] B, H, ...)` to `([S,] G, ...)`: the query heads of the first key head."""
    return result[:, 0, :group] if drawn and name in ("output", "index", "score") else result[0, :group]


def _queries(name: str, result: Tensor, begin: int) -> Tensor:
    """The part that a tile of queries has in a result."""
    dim = -2 if name == "output" else -1
    return result.narrow(dim, begin, min(QUERIES, result.shape[dim] - begin))


def _scores(row: Row, query: Tensor, key: Tensor, begin: int) -> Tensor:
    """`(G, queries, Lk)`, in natural-log units; -inf where the window or the mask hides a key."""
    score = query @ key.mT * query.shape[-1] ** -0.5
    if row.softcap:
        score = row.softcap * torch.tanh(score / row.softcap)
    end = begin + query.shape[1]
    seen = allowed(row, begin, end, query.device)
    if row.mask == "bool":
        seen &= mask_of(row, query.device)[begin:end]
    if row.mask == "float":
        score = score + mask_of(row, query.device)[begin:end]
    return score.masked_fill(~seen, float("-inf"))


def mask_of(row: Row, device: torch.device | str) -> Tensor | None:
    """`(Lq, Lk)`, the same for everyone: True, or normal numbers, but a tenth that hides its key; None without."""
    if row.mask is None:
        return None
    generator = torch.Generator(device).manual_seed(SEED)
    hidden = torch.rand(row.len_q, row.len_k, generator=generator, device=device) < 0.1
    if row.mask == "bool":
        return ~hidden
    dtype = getattr(torch, row.dtype)
    return torch.randn(hidden.shape, generator=generator, device=device, dtype=dtype).masked_fill(hidden, float("-inf"))


def _kept(row: Row, begin: int, score: Tensor) -> Tensor:
    """What attnkern's dropout multiplies these queries' weights by."""
    rows = torch.arange(begin, begin + score.shape[1], device=score.device)
    heads, seed = torch.arange(len(score), device=score.device), torch.tensor(SEED, device=score.device)
    keep = philox.dropout_keep(seed, rows, heads, (0, score.shape[2]), row.dropout_p)
    return keep * philox.dropout_scale(row.dropout_p)


def allowed(row: Row, begin: int, end: int, device: torch.device | str) -> Tensor:
    """`(end - begin, Lk)`, True where those queries may look."""
    left, right = row.problem("cpu").band
    i = torch.arange(begin, end, device=device)[:, None] + row.offset
    j = torch.arange(row.len_k, device=device)
    seen = torch.ones(end - begin, row.len_k, dtype=torch.bool, device=device)
    if left != UNLIMITED:
        seen &= j >= i - left
    if right != UNLIMITED:
        seen &= j <= i + right
    return seen


def _exact(score: Tensor, value: Tensor, index: Tensor | None, kept: Tensor | None) -> dict[str, Tensor]:
    """All results of these queries; of hard attention, at the keys it drew, `(S, G, queries)`."""
    lse = score.logsumexp(-1)
    weights = torch.exp(score - lse[..., None])
    if index is None:
        return {"output": (weights if kept is None else weights * kept) @ value}
    drawn = score.expand(len(index), *score.shape).gather(-1, index[..., None]).squeeze(-1)
    entropy = lse - (weights * score.masked_fill(weights == 0, 0.0)).sum(-1)
    return {"output": value[index], "score": drawn, "lse": lse, "entropy": entropy}


def _wrong_draws(score: Tensor, index: Tensor) -> float:
    """Share of the draws `(S, G, queries)` of the first queries that the reference, same seed, did not make."""
    seed = torch.tensor(SEED, device=score.device)
    expected = reference.sample(score.detach().double()[None], len(index), seed)[:, 0]
    return (index != expected).double().mean().item()


def _places(score: Tensor, index: Tensor) -> Tensor:
    """Of each draw, a random place in its key's part of the row's cumulative distribution: even, if draws are exact."""
    weights = torch.softmax(score.double(), -1).expand(len(index), *score.shape)
    ends = weights.cumsum(-1).gather(-1, index[..., None]).squeeze(-1)
    own = weights.gather(-1, index[..., None]).squeeze(-1)
    generator = torch.Generator(score.device).manual_seed(SEED)
    return (ends - own * torch.rand(ends.shape, dtype=ends.dtype, device=ends.device, generator=generator)).flatten()


def _unevenness(places: Tensor) -> float:
    """Kolmogorov's statistic: the largest difference from an even distribution, in units of 1 / sqrt(n)."""
    count = places.numel()
    even = (torch.arange(count, device=places.device) + 0.5) / count
    return (places.sort().values - even).abs().max().item() * count**0.5


def _norms(found: Tensor, exact: Tensor) -> Tensor:
    """Of the error, and of what should be."""
    exact = exact.detach().float()
    return torch.stack([(found.float() - exact).norm(), exact.norm()])


def _relative(norms: Tensor) -> float:
    error, size = norms.tolist()
    return error / size if size else error
