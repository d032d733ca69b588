"""Teacher and student: what each is trained on."""

import random
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

from recipe.trd.tiny_world.examples import Example, ExampleSource
from recipe.trd.tiny_world.splits import draw_splits, measured_expressions
from recipe.trd.tiny_world.supervised_training import Batch, build_model, train
from recipe.trd.tiny_world.tokenizer import prompt_ids, response_ids
from recipe.trd.tiny_world.world_config import ModelConfig, TinyWorldConfig, TrainingConfig

Report = Callable[[int, int, str], None]


def train_teacher(config: TinyWorldConfig, tokenizer: PreTrainedTokenizerBase, *, report: Report) -> Qwen3ForCausalLM:
    """The trained teacher, in evaluation mode. `report` takes updates done, all updates, and a note."""
    source = _example_source(config, "teacher")
    model = _fresh_model(config.teacher.model, config, tokenizer)
    _train(model, lambda: source.teacher_batch(config.teacher), config.teacher.training, tokenizer, report)
    return model


def train_student(config: TinyWorldConfig, tokenizer: PreTrainedTokenizerBase, *, report: Report) -> Qwen3ForCausalLM:
    """The warm student, in evaluation mode. `report` takes updates done, all updates, and a note."""
    source = _example_source(config, "student")
    model = _fresh_model(config.student.model, config, tokenizer)
    _train(model, lambda: source.student_batch(config.student), config.student.training, tokenizer, report)
    return model


def _example_source(config: TinyWorldConfig, role: str) -> ExampleSource:
    return ExampleSource(
        world=config.world,
        excluded=measured_expressions(draw_splits(config)),
        rng=random.Random(f"{config.seed}/{role}"),
    )


def _fresh_model(
    model_config: ModelConfig, config: TinyWorldConfig, tokenizer: PreTrainedTokenizerBase
) -> Qwen3ForCausalLM:
    return build_model(
        model_config,
        tokenizer=tokenizer,
        max_position_embeddings=config.max_position_embeddings,
        seed=config.seed,
    )


def _train(
    model: Qwen3ForCausalLM,
    next_examples: Callable[[], list[Example]],
    config: TrainingConfig,
    tokenizer: PreTrainedTokenizerBase,
    report: Report,
) -> None:
    def next_batch() -> Batch:
        examples = next_examples()
        return Batch(
            prompts=prompt_ids(tokenizer, [example.prompt for example in examples]),
            responses=response_ids(tokenizer, [example.response for example in examples]),
        )

    def on_step(step: int, loss: float) -> None:
        report(step, config.num_steps, f"update {step}/{config.num_steps}  loss {loss:.3f}")

    train(model, next_batch=next_batch, config=config, on_step=on_step)
