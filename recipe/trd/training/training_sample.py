"""One sample on its way from a rollout to the trainer: verl's, and what is made of it."""

from collections.abc import Mapping
from typing import Any

import torch
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput

from recipe.trd.rewrite import alignment

TENSORS = ("teacher_input_ids", "is_policy")
"""Extra fields of a sample that reach the training workers as tensors."""


class TrainingSample(AgentLoopOutput):
    """verl's sample; extra fields named in TENSORS become columns of their own."""

    def as_dict(self) -> dict[str, Any]:
        """Columns of the sample in TransferQueue."""
        output = super().as_dict()
        output.update({name: output["extra_fields"].pop(name) for name in TENSORS if name in output["extra_fields"]})
        return output


REWARD_ERROR = "reward_error"
"""Extra field of a response on which the reward function failed: what it said."""


def mark_ungraded(output: AgentLoopOutput, reason: str, *, like: Mapping[str, Any]) -> None:
    """Give a response on which the reward function failed what verl needs to go on: score 0, and blanks beside it.

    Args:
        output: the response.
        reason: why it failed.
        like: what the reward function says beside the score; verl averages these over a validation.
    """
    output.reward_score = 0.0
    blanks = {key: "" if isinstance(value, str) else 0.0 for key, value in like.items()}
    output.extra_fields["reward_extra_info"] = {"acc": 0.0, **blanks}
    output.extra_fields[REWARD_ERROR] = reason


def reward_error(output: AgentLoopOutput) -> str | None:
    """Why the reward function failed on a response; None where it did not."""
    error: str | None = output.extra_fields.get(REWARD_ERROR)
    return error


def accuracy(output: AgentLoopOutput) -> float | None:
    """`acc` of the reward function, else its score; None when nothing was scored, or the reward function failed."""
    if output.reward_score is None or reward_error(output) is not None:
        return None
    return float(output.extra_fields.get("reward_extra_info", {}).get("acc", output.reward_score))


def as_sample(output: AgentLoopOutput) -> TrainingSample:
    """The same fields set, nothing else: verl writes only those, and what was put into a default of extra_fields."""
    return TrainingSample(**{name: getattr(output, name) for name in {*output.model_fields_set, "extra_fields"}})


def detached_copy(sample: TrainingSample) -> TrainingSample:
    """A copy whose extra fields are its own."""
    return sample.model_copy(update={"extra_fields": dict(sample.extra_fields)})


def with_response(y_o: TrainingSample, response_ids: list[int]) -> TrainingSample:
    """Another response in the place of y_o: same prompt, same weight version, a reward of its own."""
    fields = {
        name: value for name, value in y_o.extra_fields.items() if name not in ("reward_extra_info", REWARD_ERROR)
    }
    return TrainingSample(
        prompt_ids=y_o.prompt_ids,
        response_ids=response_ids,
        response_mask=[1] * len(response_ids),
        num_turns=y_o.num_turns,
        metrics=y_o.metrics,
        extra_fields=fields,
    )


def with_policy_sample(sample: TrainingSample, y_o: TrainingSample) -> list[TrainingSample]:
    """The sample and, last, y_o with its reward: verl takes the last sample of a session for the advantage.

    A y_o that could not be graded counts nowhere. Both have the same columns; those of the teacher are placeholders in
    the sample of y_o, which no divergence reads.
    """
    sample.reward_score = None
    policy = detached_copy(y_o)
    num_prompt, num_response = len(y_o.prompt_ids), len(y_o.response_ids)
    if "teacher_input_ids" in sample.extra_fields:
        policy.extra_fields["teacher_input_ids"] = torch.tensor([*y_o.prompt_ids, *y_o.response_ids])
    if "teacher_ids" in sample.extra_fields:
        top_k = sample.extra_fields["teacher_ids"].shape[1]
        empty = alignment.at_student_positions(None, num_prompt=num_prompt, num_response=num_response, top_k=top_k)
        policy.extra_fields["teacher_ids"], policy.extra_fields["teacher_logprobs"] = empty
    if reward_error(y_o) is not None:
        policy.response_mask = [0] * num_response
    sample.extra_fields["is_policy"], policy.extra_fields["is_policy"] = torch.tensor([0]), torch.tensor([1])
    return [sample, policy]
