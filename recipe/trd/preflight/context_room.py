"""Contexts on real samples: they are rendered before the run, and have room for the problem and the instructions."""

from collections.abc import Sequence

from omegaconf import DictConfig

from recipe.trd.config.contexts import CONTEXTS
from recipe.trd.config.schema import TrdConfig
from recipe.trd.config.teacher_plan import TeacherContext
from recipe.trd.preflight.dataset_content import Sample, evenly
from recipe.trd.preflight.model_pair import RunModel
from recipe.trd.rewrite.teacher import TeacherClient
from verl_ext.runtime.console import show
from verl_ext.runtime.errors import first_line

SAMPLED = 50
"""Samples that are rendered, evenly spread over the training data."""

FEW = 0.5
"""Share of them that has to fit."""


def check(config: DictConfig, trd: TrdConfig, *, student: RunModel, author: RunModel, train: Sequence[Sample]) -> None:
    """Render every context of the run with nothing of y_o, and see how often it fits.

    Args:
        config: of the run.
        trd: its node `trd`, with a teacher.
        student: the student.
        author: the model whose chat template the teacher's contexts are made with.
        train: training samples.

    Raises:
        ValueError: a context does not fit for most samples, or a template cannot be rendered.
    """
    plan = trd.teacher_plan
    assert plan is not None, "there is a teacher"
    teacher = TeacherClient(
        config=trd,
        client=None,
        tokenizer=author.tokenizer,
        eos_token_ids=(),
        student_eos_token_id=student.tokenizer.eos_token_id,
        max_response_length=config.data.max_response_length,
        template_kwargs=config.data.apply_chat_template_kwargs or {},
    )
    for context in plan.in_use:
        fits = []
        for sample in evenly(train, SAMPLED):
            try:
                fits.append(teacher.prompt(context, sample.prompt, y_o_ids=(), y_star="") is not None)
            except Exception as error:  # templates and chat templates raise what they like
                raise ValueError(
                    f"{sample.place}: the {context.name} context cannot be rendered: {first_line(error)}; mend "
                    f"{context.template or 'the chat template'}"
                ) from error
        _judge(context, fits)


def _judge(context: TeacherContext, fits: list[bool]) -> None:
    num_long, node = fits.count(False), CONTEXTS[context.name].node
    if not num_long:
        return
    key = f"trd.{node}.max_prompt_length={context.max_prompt_length}"
    share = f"{num_long} of {len(fits)} samples"
    text = f"{key}: for {share} problem and instructions of the {context.name} context are longer"
    if num_long > FEW * len(fits):
        raise ValueError(f"{text}; raise it (data.max_refine_length)")
    show(f"WARNING {text}; they will be masked or fall back")
