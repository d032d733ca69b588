"""The student's own vLLM server as its teacher's: as it is, without its adapters, or with their average (LoRA)."""

from omegaconf import DictConfig, open_dict

from recipe.trd.config.schema import TrdConfig


def prepare(config: DictConfig, trd: TrdConfig, *, needed: dict[str, int], limit: int) -> None:
    """Check that the server can do what is asked of it, and fill in what it needs for that.

    Args:
        config: of the run; the server's `engine_kwargs` and `logprobs_mode` are filled in.
        trd: its node `trd`.
        needed: longest sequence of the teacher by the name of its context, tokens.
        limit: context length of the student, tokens.

    Raises:
        ValueError: it cannot; the message says what to change.
    """
    rollout = config.actor_rollout_ref.rollout
    limit = rollout.max_model_len or limit
    rewrites = trd.trajectory == "y_r" and trd.on_student(trd.rewrite.weights)
    if rewrites and (longest := trd.rewrite.max_prompt_length + trd.rewrite.max_response_length) > limit:
        raise ValueError(
            f"trd.rewrite.weights={trd.rewrite.weights}: the refine context needs {longest} tokens on the student's "
            f"server, which has {limit}: raise actor_rollout_ref.rollout.max_model_len or lower "
            "trd.rewrite.max_prompt_length"
        )
    scores = trd.teacher.scorer in ("generation", "prefill") and trd.on_student(trd.teacher.weights)
    name, longest = max(needed.items(), key=lambda item: item[1])
    # A scoring request generates one token beside what it scores.
    if scores and longest + 1 > limit:
        raise ValueError(
            f"{name} needs {longest + 1} tokens on the student's server, which has {limit}: raise "
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
        if trd.asks_average:
            rollout.engine_kwargs.vllm.max_loras = 2
        if scores:
            # The model's own distribution, whatever it is sampled with.
            rollout.logprobs_mode = "raw_logprobs"
            rollout.engine_kwargs.vllm.max_logprobs = trd.objective.top_k
