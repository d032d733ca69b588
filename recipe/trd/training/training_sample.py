"""One sample on its way from a rollout to the trainer: verl's, and what is made of it."""

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


def accuracy(output: AgentLoopOutput) -> float | None:
    """`acc` of the reward function, else its score; None when nothing was scored."""
    if output.reward_score is None:
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
    fields = {name: value for name, value in y_o.extra_fields.items() if name != "reward_extra_info"}
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

    Both have the same columns; those of the teacher are placeholders in the sample of y_o, which no divergence reads.
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
    sample.extra_fields["is_policy"], policy.extra_fields["is_policy"] = torch.tensor([0]), torch.tensor([1])
    return [sample, policy]
