"""One block of positions: the value of every term, its gradient left in the block, and the diagnostics on the way."""

import torch
from torch import Tensor

from verl_ext.divergence.pointwise import DIVERGENCES
from verl_ext.divergence.spec import TOP_K_SUPPORTS, Head, Objective, Term, TopK
from verl_ext.divergence.support import SUPPORTS, Block
from verl_ext.divergence.token_weight import clip_entries, clip_positions, entropy_gate


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


def evaluate_block(block: Block, *, objective: Objective, weights: Tensor, top_k: int | None) -> list[Tensor]:
    """Values [n] in the order of `output_names`; the block holds d(sum_n weights[n] * token_loss[n]) afterwards."""
    teacher_entropy = _teacher_entropy(block)
    diagnostics = _diagnostics(block, teacher_entropy, top_k)
    token_loss = torch.zeros_like(weights)
    outputs = []
    for index, term in enumerate(objective.terms, start=1):
        block.is_last_term = index == len(objective.terms)
        counted, values = _evaluate_term(block, term, weights=weights, teacher_entropy=teacher_entropy)
        token_loss += term.coef * counted
        outputs += values
    return [token_loss, *outputs, *diagnostics]


def _evaluate_term(
    block: Block, term: Term, *, weights: Tensor, teacher_entropy: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """What counts [n] before the coefficient, and the outputs [n] of the term; its gradient goes to the block."""
    events = SUPPORTS[term.support](block, term)
    terms, derivatives = DIVERGENCES[term.divergence](events.log_probs, term)
    if term.entry_clip is not None:
        clip_entries(terms=terms, derivatives=derivatives, maximum=term.entry_clip)
    counted = terms.sum(-1)
    outputs, scale = [counted], term.coef * weights
    if term.position_clip is not None:
        counted, clipped = clip_positions(values=counted, maximum=term.position_clip)
        scale = scale * (1 - clipped)
        outputs.append(clipped)
    if term.entropy_above is not None:
        assert teacher_entropy is not None, "check_fit refuses a gate without the teacher's entropy"
        gate = entropy_gate(teacher_entropy=teacher_entropy, threshold=term.entropy_above)
        counted, scale = counted * gate, scale * gate
        outputs.append(gate)
    events.pull(derivatives.mul_(scale.unsqueeze(-1)))
    return counted, outputs


def _teacher_entropy(block: Block) -> Tensor | None:
    """[n] nats, over the whole vocabulary if it is known, else of top-k and one event for the rest."""
    if block.teacher is not None:
        return block.teacher.entropy()
    if block.top_k is None:
        return None
    dtype = block.student.probs.dtype
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
    values = [block.student.entropy()]
    if teacher_entropy is not None:
        values += [teacher_entropy, _agreement(block)]
    if top_k is None:
        return values
    ids, log_probs = block.teacher_top(top_k)
    student = block.student
    chosen = torch.zeros_like(student.probs, dtype=torch.bool).scatter_(-1, student.top(top_k)[0], True)
    return [
        *values,
        log_probs.to(student.probs).exp().sum(-1),
        student.probs.gather(-1, ids).sum(-1),
        chosen.gather(-1, ids).to(student.probs.dtype).mean(-1),
    ]


def _agreement(block: Block) -> Tensor:
    """1 where both sides prefer the same token, 0 elsewhere; [n]."""
    if block.teacher is not None:
        preferred = block.teacher.argmax
    else:
        assert block.top_k is not None, "without a teacher there are no diagnostics of it"
        preferred = block.top_k.ids.gather(-1, block.top_k.log_probs.argmax(-1, keepdim=True)).squeeze(-1)
    return (block.student.argmax == preferred).to(block.student.probs.dtype)
