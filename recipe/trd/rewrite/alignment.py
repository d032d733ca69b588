"""The teacher's top-k at the student's positions.

The teacher's context is longer than the student's prompt, the response is the same. verl's engine wants an entry for
each position of the student's sequence, where position t predicts token t + 1.
"""

import torch
from torch import Tensor

from recipe.trd.rewrite.topk import TopKLogProbs


def at_student_positions(
    topk: TopKLogProbs | None, *, num_prompt: int, num_response: int, top_k: int
) -> tuple[Tensor, Tensor]:
    """Spread R positions over a sequence of P + R tokens; the other positions are zeros that no loss counts.

    Args:
        topk: [R, K], entry i for response token i; None where the teacher could not be asked: all zeros.
        num_prompt: P, tokens of the student's prompt, at least 1.
        num_response: R.
        top_k: K.

    Returns:
        teacher_ids int32 [P + R, K], teacher_logprobs float32 [P + R, K].

    Raises:
        ValueError: there are not R positions of K.
    """
    shape = (num_prompt + num_response, top_k)
    ids, log_probs = torch.zeros(shape, dtype=torch.int32), torch.zeros(shape, dtype=torch.float32)
    if topk is None:
        return ids, log_probs
    if topk.ids.shape != (num_response, top_k) or topk.log_probs.shape != topk.ids.shape:
        raise ValueError(
            f"the teacher sent {topk.ids.shape[0]} positions of {topk.ids.shape[1]} for a response of {num_response} "
            f"tokens and a top-k of {top_k}"
        )
    predicting = slice(num_prompt - 1, num_prompt + num_response - 1)
    ids[predicting] = torch.tensor(topk.ids)
    log_probs[predicting] = torch.tensor(topk.log_probs)
    return ids, log_probs
