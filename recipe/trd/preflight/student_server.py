"""The student's own vLLM server as its teacher's: as it is, without its adapters, or with their average (LoRA)."""

from omegaconf import DictConfig, open_dict

from recipe.trd.config.axes import Trajectory
from recipe.trd.config.schema import TrdConfig
from recipe.trd.config.teacher_plan import Holder


def prepare(config: DictConfig, trd: TrdConfig, *, limit: int) -> None:
    """Check that the server can do what is asked of it, and fill in what it needs for that.

    Args:
        config: of the run; the server's `engine_kwargs` and `logprobs_mode` are filled in.
        trd: its node `trd`, with a teacher.
        limit: context length of the student, tokens.

    Raises:
        ValueError: it cannot; the message says what to change.
    """
    rollout = config.actor_rollout_ref.rollout
    limit = rollout.max_model_len or limit
    plan = trd.teacher_plan
    assert plan is not None, "there is a teacher"
    if plan.refine is not None and plan.author is not Holder.OWN and plan.refine.max_length > limit:
        raise ValueError(
            f"trd.rewrite.weights={plan.author_weights}: the refine context needs {plan.refine.max_length} tokens on "
            f"the student's server, which has {limit}: raise actor_rollout_ref.rollout.max_model_len or lower "
            "trd.rewrite.max_prompt_length"
        )
    scores = plan.scoring_server in (Holder.BASE, Holder.AVERAGE)
    # A scoring request generates one token beside what it scores.
    needed = plan.longest.max_length + 1
    if scores and needed > limit:
        raise ValueError(
            f"the {plan.longest.name} context needs {needed} tokens on the student's server, which has {limit}: raise "
            "actor_rollout_ref.rollout.max_model_len, or lower trd.rewrite.max_prompt_length or the lengths of data"
        )
    if not trd.student.serves_base:
        return
    if rollout.name != "vllm":
        raise ValueError(
            f"actor_rollout_ref.rollout.name={rollout.name}: only the servers of vllm answer without a LoRA student's "
            "adapters; set it to vllm"
        )
    with open_dict(rollout):
        if Holder.AVERAGE in plan.servers:
            rollout.engine_kwargs.vllm.max_loras = 2
        if scores:
            # The model's own distribution, whatever it is sampled with.
            rollout.logprobs_mode = "raw_logprobs"
            rollout.engine_kwargs.vllm.max_logprobs = trd.objective.top_k


def check_floor(config: DictConfig, trd: TrdConfig, *, limit: int) -> None:
    """Whether the server can score y_r, where `trd.rewrite.reject` asks for that. Arguments as in `prepare`.

    Raises:
        ValueError: it cannot; the message says what to change.
    """
    if trd.rewrite.reject.student_log_prob_below is None or trd.trajectory is not Trajectory.Y_R:
        return
    rollout = config.actor_rollout_ref.rollout
    server, limit = rollout.name, rollout.max_model_len or limit
    key = f"trd.rewrite.reject.student_log_prob_below={trd.rewrite.reject.student_log_prob_below}"
    if server != "vllm":
        raise ValueError(f"{key}: only the servers of vllm score, not {server}; set it to null")
    needed = trd.student.max_prompt_length + trd.student.max_response_length + 1
    if needed > limit:
        raise ValueError(
            f"{key}: scoring y_r needs {needed} tokens on the student's server, which has {limit}; raise "
            "actor_rollout_ref.rollout.max_model_len, or lower data.max_response_length"
        )
