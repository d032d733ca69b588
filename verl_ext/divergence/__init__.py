"""Exact divergences between a teacher and a student at every token, with the gradient formed in the forward pass.

`linear_divergence` starts from hidden states and output heads and never holds a [tokens, vocabulary] tensor;
`hidden_mse` compares hidden states themselves. pointwise.py holds the divergences, support.py the supports and tails,
token_weight.py the entropy gate, clips and chosen positions, spec.py how they are asked for.
"""

from verl_ext.divergence.hidden import Projection, hidden_mse
from verl_ext.divergence.linear import LinearDivergence, linear_divergence
from verl_ext.divergence.pointwise import DIVERGENCES
from verl_ext.divergence.spec import TOP_K_SUPPORTS, Head, Objective, Term, Tokens, TopK
from verl_ext.divergence.token_weight import first_tokens, last_tokens

__all__ = [
    "DIVERGENCES",
    "TOP_K_SUPPORTS",
    "Head",
    "LinearDivergence",
    "Objective",
    "Projection",
    "Term",
    "Tokens",
    "TopK",
    "first_tokens",
    "hidden_mse",
    "last_tokens",
    "linear_divergence",
]
