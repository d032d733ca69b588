"""The maths of OPRD-Bridge's first stage: principal directions of the teacher, and the linear map of the student onto
them, both from sums over positions. Imports torch only; paired_states.py computes the states.

Source: OPRD, arXiv 2606.06021, Sec. 3.3.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from verl_ext.divergence import Projection

RIDGE = 1e-6
"""Added to the student's second moments, relative to each coordinate's own: makes the equations solvable where
coordinates depend on each other, and is no more than what rounding hidden states to bfloat16 adds."""

POSITIONS_PER_COORDINATE = 4
"""Tokens needed for every coordinate of the student: with n tokens and d coordinates the error at new tokens exceeds
the smallest possible one by a factor of about 1 + d / (n - d)."""

POSITIONS_PER_DIRECTION = 16
"""Tokens needed for every principal direction of the teacher."""


class Moments:
    """Sums over the positions of one pair of layers, in float64; all that both maps depend on.

    The student's sums are over all positions, the teacher's covariance over a sample of them (the paper's subsample).
    """

    def __init__(self, *, student_size: int, teacher_size: int, device: torch.device | str):
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.num_positions = 0
        self.student_sum = zeros(student_size)
        self.student_student = zeros(student_size, student_size)
        self.student_teacher = zeros(student_size, teacher_size)
        self.num_sampled = 0
        self.teacher_sum = zeros(teacher_size)
        self.teacher_teacher = zeros(teacher_size, teacher_size)

    def add(self, *, student: Tensor, teacher: Tensor, sampled: Tensor) -> None:
        """Add positions.

        Args:
            student: [N, d_S], any float type.
            teacher: [N, d_T], states of the same tokens.
            sampled: bool [N], positions that the teacher's covariance is taken over.
        """
        student, teacher = student.double(), teacher.double()
        self.num_positions += len(student)
        self.student_sum += student.sum(0)
        self.student_student.addmm_(student.t(), student)
        self.student_teacher.addmm_(student.t(), teacher)
        teacher = teacher[sampled]
        self.num_sampled += len(teacher)
        self.teacher_sum += teacher.sum(0)
        self.teacher_teacher.addmm_(teacher.t(), teacher)


@dataclass(frozen=True)
class PrincipalSpace:
    """The top directions of a teacher layer."""

    directions: Tensor
    """float64 [r, d_T], orthonormal rows, largest variance first."""
    mean: Tensor
    """float64 [d_T]."""
    explained_variance: float
    """Part of the whole variance, in [0, 1]."""


def principal_space(moments: Moments, *, rank: int) -> PrincipalSpace:
    """Eigenvectors of the sample covariance with the largest eigenvalues."""
    mean = moments.teacher_sum / moments.num_sampled
    covariance = moments.teacher_teacher / moments.num_sampled - torch.outer(mean, mean)
    variances, vectors = torch.linalg.eigh(covariance)
    variances = variances.clamp_min(0)
    total = variances.sum()
    kept = variances[-rank:].sum() / total if total > 0 else total
    return PrincipalSpace(
        directions=vectors[:, -rank:].flip(1).t().contiguous(), mean=mean, explained_variance=float(kept)
    )


def student_map(moments: Moments, space: PrincipalSpace) -> Tensor:
    """The matrix P_S, without bias, that brings the student's states closest to the teacher's in its space.

        min over P_S of sum_t |P_S h_S - P_T (h_T - mean)|^2

    The paper takes 20 epochs of gradient descent on this sum; its minimum is the solution of the normal equations
    P_S (sum h_S h_S^T) = P_T sum (h_T - mean) h_S^T, which needs one pass. Coordinates are scaled to second moment 1
    before they are solved: a few coordinates of hidden states are thousands of times larger than the others.

    Returns:
        float64 [r, d_S].

    Source: OPRD, arXiv 2606.06021, Eq. 13.
    """
    target = moments.student_teacher @ space.directions.t()
    target -= torch.outer(moments.student_sum, space.directions @ space.mean)
    scale = moments.student_student.diagonal().sqrt()
    # A coordinate that is 0 at every position stays 0 in the map.
    inverse = torch.where(scale > 0, 1 / scale.clamp_min(torch.finfo(scale.dtype).tiny), 0)
    correlations = moments.student_student * inverse.unsqueeze(1) * inverse
    correlations += RIDGE * torch.eye(len(scale), dtype=scale.dtype, device=scale.device)
    factor = torch.linalg.cholesky(correlations)
    solution = torch.cholesky_solve(target * inverse.unsqueeze(1), factor) * inverse.unsqueeze(1)
    return solution.t().contiguous()


def fit(moments: Moments, *, rank: int) -> tuple[Projection, float]:
    """Maps of one pair of layers, float32, and the explained variance of the teacher's.

    Raises:
        ValueError: the rank exceeds a width, there are too few positions, or hidden states were not finite.
    """
    student_size = len(moments.student_sum)
    check_rank(rank, student_size=student_size, teacher_size=len(moments.teacher_sum))
    check_num_positions(
        rank, student_size=student_size, num_positions=moments.num_positions, num_sampled=moments.num_sampled
    )
    if not (moments.student_teacher.isfinite().all() and moments.teacher_teacher.isfinite().all()):
        raise ValueError("hidden states are not finite: set dtype=bfloat16 or float32")
    space = principal_space(moments, rank=rank)
    maps = Projection(
        student=student_map(moments, space).float(), teacher=space.directions.float(), teacher_mean=space.mean.float()
    )
    return maps, space.explained_variance


def check_rank(rank: int, *, student_size: int, teacher_size: int) -> None:
    """Refuse a common space that is wider than a model.

    Raises:
        ValueError: the message names the largest rank.
    """
    largest = min(student_size, teacher_size)
    if not 1 <= rank <= largest:
        raise ValueError(
            f"rank={rank} must be in 1..{largest}: the student has {student_size} coordinates and the teacher "
            f"{teacher_size}; the paper finds 4 to 16 best"
        )


def check_num_positions(rank: int, *, student_size: int, num_positions: int, num_sampled: int) -> None:
    """Refuse to fit on too little.

    Raises:
        ValueError: the message names the number that is needed.
    """
    needed = POSITIONS_PER_COORDINATE * student_size
    if num_positions < needed:
        raise ValueError(
            f"{num_positions} response tokens to fit on, and a student of width {student_size} needs {needed} or more: "
            "raise num_prompts, max_response_length or num_positions"
        )
    needed = POSITIONS_PER_DIRECTION * rank
    if num_sampled < needed:
        raise ValueError(
            f"{num_sampled} tokens for the teacher's principal directions, and rank={rank} needs {needed} or more: "
            "raise max_rows, or lower the rank"
        )


def cosines(projection: Projection, *, student: Tensor, teacher: Tensor) -> Tensor:
    """Cosine of both mapped states at every token: float64 [N] from [N, d_S] and [N, d_T]."""
    mapped_student = student.double() @ projection.student.double().t()
    mapped_teacher = (teacher.double() - projection.teacher_mean.double()) @ projection.teacher.double().t()
    return torch.cosine_similarity(mapped_student, mapped_teacher, dim=-1)
