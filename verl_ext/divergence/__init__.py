"""Exact divergences between a teacher and a student at every token, with the gradient formed in the forward pass."""

from verl_ext.divergence.from_logits import forward_kl_topk

__all__ = ["forward_kl_topk"]
