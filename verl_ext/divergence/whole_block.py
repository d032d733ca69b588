"""A block of positions whose log-probabilities are written down, on any device, in any type (kernel_block.py: GPUs)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from verl_ext.divergence.softmax import Softmax
from verl_ext.divergence.spec import Term
from verl_ext.divergence.support import Block, Measured, measure


@dataclass(kw_only=True)
class WholeBlock(Block):
    """Softmax of both sides; `dense` [n, V] is what the terms have left by the log-probability of every token."""

    student: Softmax
    teacher: Softmax | None
    dense: Tensor | None = None

    def full(self, term: Term) -> Measured:
        """Every token is an event."""
        student, teacher = self.student, self.teacher
        assert teacher is not None, "check_fit refuses full support without the teacher's vocabulary"
        return measure(
            term,
            student=student.log_probs,
            teacher=teacher.log_probs,
            probs=(student.probs, teacher.probs),
            pull=self._add_dense,
        )

    def add_outside(self, outside: Tensor, derivative: Tensor) -> None:
        """Spread a derivative [n, 1] over the tokens outside a support."""
        self._add_dense(outside.mul_(derivative))

    def write_gradient(self, out: Tensor) -> None:
        """Send the derivative through the softmax: derivative - p_S * its sum."""
        total = torch.zeros_like(self.student.probs[:, :1])
        for _, derivative in self.sparse:
            total += derivative.sum(-1, keepdim=True)
        if self.dense is not None:
            total += self.dense.sum(-1, keepdim=True)
        torch.mul(self.student.probs, -total, out=out)
        if self.dense is not None:
            out.add_(self.dense)
        for ids, derivative in self.sparse:
            out.scatter_add_(-1, ids, derivative)

    def _add_dense(self, derivative: Tensor) -> None:
        self.dense = derivative if self.dense is None else self.dense.add_(derivative)
