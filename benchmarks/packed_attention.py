"""Packed attention on a GPU: the variable-length kernel against attention sequence by sequence, and its time.

    python benchmarks/packed_attention.py

Lengths are long-tailed, heads those of a 7B model. Prints errors beside those of float32, and forward and backward time
beside attention with a [tokens, tokens] mask, which is what `sdpa` does with packed sequences.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor
from triton.testing import do_bench

from verl_ext.engine.packed_attention import packed_attention

LENGTHS = [4096, 17, 1500, 900, 333, 1024, 1, 321]
HEADS, KV_HEADS, DIM = 28, 4, 128


def main() -> int:
    """0 where the kernel is as exact as its type."""
    generator = torch.Generator("cuda").manual_seed(0)
    tokens = sum(LENGTHS)
    exact = [
        torch.randn(1, heads, tokens, DIM, generator=generator, device="cuda") for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None].cuda()
    mask = (positions == 0).cumsum(-1)
    mask = (mask[0, :, None] == mask[0, None]).tril()[None, None]
    half = [one.bfloat16().requires_grad_() for one in exact]
    rounded = [one.detach().float().requires_grad_() for one in half]
    upstream = torch.randn(1, tokens, HEADS, DIM, generator=generator, device="cuda")

    def packed(tensors: list[Tensor]) -> Tensor:
        return packed_attention(torch.nn.Identity(), *tensors, None, position_ids=positions)[0]

    def masked(tensors: list[Tensor]) -> Tensor:
        return F.scaled_dot_product_attention(*tensors, attn_mask=mask, enable_gqa=True).transpose(1, 2)

    def step(function, tensors: list[Tensor]) -> list[Tensor]:
        out = function(tensors)
        return [out, *torch.autograd.grad(out, tensors, upstream.to(out.dtype))]

    want = step(packed, rounded)
    errors = [
        max(float((a.float() - b).norm() / b.norm()) for a, b in zip(step(way, half), want, strict=True))
        for way in (packed, masked)
    ]
    times = [do_bench(lambda way=way: step(way, half), warmup=20, rep=200) for way in (packed, masked)]
    passed = errors[0] <= max(1.2 * errors[1], 6e-3)
    print(
        f"{'PASS' if passed else 'FAIL'} {tokens} tokens in {len(LENGTHS)} sequences: error {errors[0]:.1e} "
        f"(with a mask {errors[1]:.1e}), forward and backward {times[0]:.2f} ms (with a mask {times[1]:.2f} ms)"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
