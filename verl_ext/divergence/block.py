"""One block of positions: the value of every term, the gradient by the logits, and the diagnostics on the way."""

import torch
from torch import Tensor

from verl_ext.divergence.softmax import find
from verl_ext.divergence.spec import TOP_K_SUPPORTS, Head, Objective, Term, TopK
from verl_ext.divergence.support import SUPPORTS, Block
from verl_ext.divergence.token_weight import clip_positions, entropy_gate


def output_names(objective: Objective, teacher: Head | TopK | None) -> list[str]:
    """Names of what `evaluate_block` returns, in order."""
    names = ["token_loss"]
    for term in objective.terms:
        names.append(term.divergence)
        names += [f"{term.divergence}_clipped"] * (term.position_clip is not None)
        names += [f"{term.divergence}_gate"] * (term.entropy_above is not None)
    names.append("student_entropy")
    if teacher is not None:
        names += ["teacher_entropy", "argmax_agreement"]
    if diagnostic_top_k(objective, teacher) is not None:
        names += ["teacher_mass", "student_mass", "overlap"]
    return names


def evaluate_block(
    block: Block, *, objective: Objective, weights: Tensor, top_k: int | None, gradient: Tensor
) -> list[Tensor]:
    """Values [n] in the order of `output_names`; `gradient` [n, V] becomes d(sum_n weights[n] * token_loss[n]) by the
    logits."""
    teacher_entropy = _teacher_entropy(block, weights.dtype)
    diagnostics = _diagnostics(block, teacher_entropy, top_k)
    evaluated = [_evaluate_term(block, term, weights, teacher_entropy) for term in objective.terms]
    block.write_gradient(gradient)
    token_loss = torch.zeros_like(weights)
    outputs = []
    for term, (values, gate) in zip(objective.terms, evaluated, strict=True):
        outputs.append(values)
        counted = values
        if term.position_clip is not None:
            counted, clipped = clip_positions(values=values, maximum=term.position_clip)
            outputs.append(clipped)
        if gate is not None:
            outputs.append(gate)
            counted = counted * gate
        token_loss += term.coef * counted
    return [token_loss, *outputs, *diagnostics]


def _evaluate_term(
    block: Block, term: Term, weights: Tensor, teacher_entropy: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Values before the clip of positions, and the gate, both [n]; the gradient of the term goes to the block."""
    values, pull = SUPPORTS[term.support](block, term)
    scale, gate = term.coef * weights, None
    if term.position_clip is not None:
        _, clipped = clip_positions(values=values, maximum=term.position_clip)
        scale = scale * (1 - clipped)
    if term.entropy_above is not None:
        assert teacher_entropy is not None, "check_fit refuses a gate without the teacher's entropy"
        gate = entropy_gate(teacher_entropy=teacher_entropy, threshold=term.entropy_above)
        scale = scale * gate
    pull(scale)
    return values, gate


def _teacher_entropy(block: Block, dtype: torch.dtype) -> Tensor | None:
    """[n] nats, over the whole vocabulary if it is known, else of top-k and one event for the rest."""
    if block.teacher is not None:
        return block.teacher.entropy()
    if block.top_k is None:
        return None
    probs = block.top_k.log_probs.double().exp()
    rest = (1 - probs.sum(-1)).clamp_min(0)
    return -(torch.special.xlogy(probs, probs).sum(-1) + torch.special.xlogy(rest, rest)).to(dtype)


def diagnostic_top_k(objective: Objective, teacher: Head | TopK | None) -> int | None:
    """The k of mass and overlap: of the first term on a top-k support, else what the teacher or the objective says."""
    for term in objective.terms:
        if term.support in TOP_K_SUPPORTS and term.top_k is not None:
            return term.top_k
    if isinstance(teacher, TopK):
        return teacher.ids.shape[-1]
    return objective.overlap_top_k if teacher is not None and objective.overlap_top_k > 0 else None


def _diagnostics(block: Block, teacher_entropy: Tensor | None, top_k: int | None) -> list[Tensor]:
    """Entropies, agreement, and mass and overlap of the teacher's top-k."""
    entropy = block.student.entropy()
    values = [entropy]
    if teacher_entropy is not None:
        values += [teacher_entropy, (block.student.argmax == _preferred(block)).to(entropy)]
    if top_k is None:
        return values
    ids, log_probs = block.teacher_top(top_k)
    overlap, _ = find(ids, among=block.student.top(top_k)[0])
    masses = [log_probs.to(entropy).exp().sum(-1), block.student.at(ids).exp().sum(-1)]
    return [*values, *masses, overlap.to(entropy).mean(-1)]


def _preferred(block: Block) -> Tensor:
    """The teacher's most probable token [n]."""
    if block.teacher is not None:
        return block.teacher.argmax
    assert block.top_k is not None, "without a teacher there are no diagnostics of it"
    return block.top_k.ids.gather(-1, block.top_k.log_probs.argmax(-1, keepdim=True)).squeeze(-1)
