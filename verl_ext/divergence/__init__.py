"""Exact divergences between a teacher and a student at every token, with the gradient formed in the forward pass.

`linear_divergence` starts from hidden rows and output heads and never holds a [tokens, vocabulary] tensor;
`forward_kl_topk` starts from logits that exist already. pointwise.py holds the divergences, support.py the supports
and tails, token_weight.py gates, clips and position weights, objective.py how they are asked for.
"""

from verl_ext.divergence.from_logits import forward_kl_topk
from verl_ext.divergence.linear import LinearDivergence, linear_divergence
from verl_ext.divergence.objective import Head, Objective, Term, Tokens, TopK
from verl_ext.divergence.token_weight import first_tokens, last_tokens, progress_weights

__all__ = [
    "Head",
    "LinearDivergence",
    "Objective",
    "Term",
    "Tokens",
    "TopK",
    "first_tokens",
    "forward_kl_topk",
    "last_tokens",
    "linear_divergence",
    "progress_weights",
]
