"""The teacher's rows at the student's positions.

The teacher's context is longer than the student's prompt, the response is the same. verl's engine wants one row for
each position of the student's sequence, where row t belongs to the prediction of token t + 1.
"""

import torch
from torch import Tensor

from recipe.trd.rewrite import TopK


def to_student_rows(topk: TopK, *, num_prompt: int, num_response: int) -> tuple[Tensor, Tensor]:
    """Spread R rows over a sequence of P + R tokens; the other rows are zeros that no loss counts.

    Args:
        topk: [R, K] rows, row i for response token i.
        num_prompt: P, tokens of the student's prompt, at least 1.
        num_response: R.

    Returns:
        teacher_ids int32 [P + R, K], teacher_logprobs float32 [P + R, K].

    Raises:
        ValueError: the number of rows is not R.
    """
    if topk.ids.shape[0] != num_response or topk.log_probs.shape != topk.ids.shape:
        raise ValueError(f"the teacher sent {topk.ids.shape[0]} rows for a response of {num_response} tokens")
    shape = (num_prompt + num_response, topk.ids.shape[1])
    ids, log_probs = torch.zeros(shape, dtype=torch.int32), torch.zeros(shape, dtype=torch.float32)
    rows = slice(num_prompt - 1, num_prompt + num_response - 1)
    ids[rows] = torch.tensor(topk.ids)
    log_probs[rows] = torch.tensor(topk.log_probs)
    return ids, log_probs


def no_rows(*, num_prompt: int, num_response: int, top_k: int) -> tuple[Tensor, Tensor]:
    """Placeholders [P + R, K] for a sample that could not be scored; its response mask is zero."""
    shape = (num_prompt + num_response, top_k)
    return torch.zeros(shape, dtype=torch.int32), torch.zeros(shape, dtype=torch.float32)


def response_rows(prompts: Tensor, responses: Tensor) -> Tensor:
    """Positions, in a packed batch, of the rows that predict response tokens.

    Args:
        prompts: jagged [B, P_b]; every P_b at least 1.
        responses: jagged [B, R_b].

    Returns:
        int64 [sum R_b], increasing.
    """
    num_prompt, num_response = prompts.offsets().diff(), responses.offsets().diff()
    starts = (num_prompt + num_response).cumsum(0) - num_response - 1
    before = num_response.cumsum(0) - num_response
    return torch.arange(int(num_response.sum()), device=starts.device) + torch.repeat_interleave(
        starts - before, num_response
    )
