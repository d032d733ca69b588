"""Lengths: prompts, contexts and responses fit into the models, the servers and the micro-batches that they go to."""

from omegaconf import DictConfig

from recipe.trd.config.axes import Trajectory
from recipe.trd.config.schema import TrdConfig
from recipe.trd.config.teacher_plan import TeacherPlan
from recipe.trd.preflight.model_pair import RunModel
from recipe.trd.rewrite import prompts


def check_student(config: DictConfig, student: RunModel) -> None:
    """Prompt and response fit into the student and its server.

    Raises:
        ValueError: they do not.
    """
    needed = config.data.max_prompt_length + config.data.max_response_length
    limit = config.actor_rollout_ref.rollout.max_model_len or student.max_positions
    if needed > limit:
        raise ValueError(
            f"data.max_prompt_length + data.max_response_length = {needed} tokens do not fit into {limit}: raise "
            "actor_rollout_ref.rollout.max_model_len (at most the model's max_position_embeddings "
            f"{student.max_positions}) or lower the lengths"
        )


def check_templates(config: DictConfig, trd: TrdConfig) -> None:
    """Every template that a context may need is there, and nothing is rewritten that cannot be.

    Raises:
        ValueError: the message names the key.
    """
    for context in trd.teacher_plan.possible if trd.teacher_plan else ():
        if context.template is not None:
            prompts.template_path(context.template)
    if trd.trajectory is Trajectory.Y_R and config.actor_rollout_ref.rollout.multi_turn.enable:
        raise ValueError(
            "actor_rollout_ref.rollout.multi_turn.enable=True with trd.trajectory=y_r: a rewrite replaces one "
            "response, conversations with tools are not rewritten; set it to False or choose method=opd or grpo"
        )


def check_server(config: DictConfig, trd: TrdConfig, plan: TeacherPlan, teacher: RunModel) -> None:
    """The teacher's server holds its longest request, and answers with the model's own distribution.

    Raises:
        ValueError: it does not.
    """
    inference = config.distillation.teacher_models.teacher_model.inference
    limit = inference.max_model_len or teacher.max_positions
    # A scoring request generates one token beside what it scores.
    needed = plan.longest.max_length + 1
    if needed > limit:
        raise ValueError(
            f"the {plan.longest.name} context needs {needed} tokens on the teacher's server, which has {limit}: raise "
            "distillation.teacher_models.teacher_model.inference.max_model_len (at most the teacher's "
            f"max_position_embeddings {teacher.max_positions}), or lower trd.rewrite.max_prompt_length or the "
            "lengths of data"
        )
    if not trd.upstream and inference.logprobs_mode != "raw_logprobs":
        raise ValueError(
            "distillation.teacher_models.teacher_model.inference.logprobs_mode must be raw_logprobs: any other is the "
            "distribution after sampling parameters, not the teacher's own"
        )


def check_engine(config: DictConfig, plan: TeacherPlan, teacher: RunModel) -> None:
    """A teacher in the training process reads its longest sequence in one micro-batch.

    Raises:
        ValueError: it cannot.
    """
    longest = plan.longest.max_length
    if longest > teacher.max_positions:
        raise ValueError(
            f"the teacher's context and the response need {longest} tokens, and {teacher.path} has "
            f"{teacher.max_positions}: lower data.max_prompt_length, data.max_response_length or "
            "trd.rewrite.max_prompt_length"
        )
    actor = config.actor_rollout_ref.actor
    sequence_parallel = actor.fsdp_config.ulysses_sequence_parallel_size
    if actor.use_dynamic_bsz and actor.ppo_max_token_len_per_gpu * sequence_parallel < longest:
        raise ValueError(
            f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={actor.ppo_max_token_len_per_gpu} is less than the "
            f"{longest} tokens of the teacher's longest sequence, which goes through the same micro-batch; raise it"
        )
