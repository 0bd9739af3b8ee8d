"""Fused attention kernels: global, local-window and sampled hard attention.

import attnkern
output = attnkern.global_attention(query, key, value, is_causal=True)
output = attnkern.local_attention(query, key, value, window=(128, 128))
hard = attnkern.hard_attention(query, key, value, num_samples=4)
attnkern.swap_attention(model)
"""

from attnkern import estimators, huggingface, layers, mac, nn, priors
from attnkern.api import (
    attention_over_attention,
    global_attention,
    hard_attention,
    local_attention,
    mac_attention,
)
from attnkern.backends.choose import explain
from attnkern.layers import as_attention
from attnkern.problem import Problem, UnsupportedProblem
from attnkern.results import Aux, AuxRequest, HardAttention
from attnkern.swap import SwapReport, restore_attention, swap_attention

__version__ = "0.1.0"

__all__ = [
    "Aux",
    "AuxRequest",
    "HardAttention",
    "Problem",
    "SwapReport",
    "UnsupportedProblem",
    "as_attention",
    "attention_over_attention",
    "estimators",
    "explain",
    "global_attention",
    "hard_attention",
    "huggingface",
    "layers",
    "local_attention",
    "mac",
    "mac_attention",
    "nn",
    "priors",
    "restore_attention",
    "swap_attention",
]
