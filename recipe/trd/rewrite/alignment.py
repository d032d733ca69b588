"""The teacher's rows at the student's positions.

The teacher's context is longer than the student's prompt, the response is the same. verl's engine wants one row for
each position of the student's sequence, where row t belongs to the prediction of token t + 1.
"""

import torch
from torch import Tensor

from recipe.trd.rewrite.topk import TopKLogProbs


def student_rows(topk: TopKLogProbs | None, *, num_prompt: int, num_response: int, top_k: int) -> tuple[Tensor, Tensor]:
    """Spread R rows over a sequence of P + R tokens; the other rows are zeros that no loss counts.

    Args:
        topk: [R, K] rows, row i for response token i; None where the teacher could not be asked: all zeros.
        num_prompt: P, tokens of the student's prompt, at least 1.
        num_response: R.
        top_k: K.

    Returns:
        teacher_ids int32 [P + R, K], teacher_logprobs float32 [P + R, K].

    Raises:
        ValueError: there are not R rows of K.
    """
    shape = (num_prompt + num_response, top_k)
    ids, log_probs = torch.zeros(shape, dtype=torch.int32), torch.zeros(shape, dtype=torch.float32)
    if topk is None:
        return ids, log_probs
    if topk.ids.shape != (num_response, top_k) or topk.log_probs.shape != topk.ids.shape:
        raise ValueError(
            f"the teacher sent {topk.ids.shape[0]} rows of {topk.ids.shape[1]} for a response of {num_response} "
            f"tokens and a top-k of {top_k}"
        )
    rows = slice(num_prompt - 1, num_prompt + num_response - 1)
    ids[rows] = torch.tensor(topk.ids)
    log_probs[rows] = torch.tensor(topk.log_probs)
    return ids, log_probs
