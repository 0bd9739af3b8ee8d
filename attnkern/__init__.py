"""Fused attention kernels: global, local-window and sampled hard attention.

import attnkern
output = attnkern.global_attention(query, key, value, is_causal=True)
output = attnkern.local_attention(query, key, value, window=(128, 128))
hard = attnkern.hard_attention(query, key, value, num_samples=4)
attnkern.swap_attention(model)
"""

from attnkern import huggingface, mac, nn
from attnkern.api import attention_over_attention, global_attention, hard_attention, local_attention
from attnkern.backends.choose import explain
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
    "attention_over_attention",
    "explain",
    "global_attention",
    "hard_attention",
    "huggingface",
    "local_attention",
    "mac",
    "nn",
    "restore_attention",
    "swap_attention",
]
