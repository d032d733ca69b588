"""How good the finished models are, and how long prompts and responses get."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

from recipe.trd.tiny_world.batch_sampling import sample
from recipe.trd.tiny_world.examples import Task, task_prompt
from recipe.trd.tiny_world.problems import ChainProblem, dialect_of, inject_errors, is_correct
from recipe.trd.tiny_world.tokenizer import prompt_ids, response_ids, response_texts
from recipe.trd.tiny_world.world_config import EvaluationConfig


@dataclass(frozen=True)
class BuiltWorld:
    """Finished models, tokenizer and splits, and how to measure them."""

    teacher: Qwen3ForCausalLM
    student: Qwen3ForCausalLM
    tokenizer: PreTrainedTokenizerBase
    splits: dict[str, list[ChainProblem]]
    config: EvaluationConfig
    seed: int

    @property
    def problems(self) -> list[ChainProblem]:
        """Held-out problems on which the models are measured."""
        return self.splits["held_out"][: self.config.num_problems]

    def respond(self, model: Qwen3ForCausalLM, prompts: Sequence[str], *, temperature: float) -> list[list[int]]:
        """Token ids of responses to user messages; samples depend on the seed of the world only."""
        return sample(
            model,
            prompt_ids(self.tokenizer, prompts),
            max_response_tokens=self.config.max_response_tokens,
            temperature=temperature,
            generator=torch.Generator().manual_seed(self.seed),
        )


def measure(world: BuiltWorld, *, report: Callable[[int, int, str], None]) -> dict[str, Mapping[str, float]]:
    """Accuracies, dialects, token lengths and parameter counts.

    Accuracy is the fraction of held-out problems whose boxed answer is right: greedy unless the name says sampled
    (temperature 1). The teacher rewrites real samples of the student.
    """
    num_parts = 3 + len(Task)
    responses: dict[str, list[list[int]]] = {}
    y_o = [""] * len(world.problems)

    def answer(name: str, model: Qwen3ForCausalLM, task: Task, *, temperature: float = 0.0) -> None:
        report(len(responses), num_parts, name)
        prompts = [task_prompt(task, p, y_o=y, y_star=p.solution(0)) for p, y in zip(world.problems, y_o, strict=True)]
        responses[name] = world.respond(model, prompts, temperature=temperature)

    answer("student_greedy", world.student, Task.SOLVE)
    answer("student_sampled", world.student, Task.SOLVE, temperature=1.0)
    y_o = response_texts(world.tokenizer, responses["student_sampled"])
    for task in Task:
        answer(f"teacher_{task}", world.teacher, task)
    answer("teacher_rewrite_sampled", world.teacher, Task.REWRITE, temperature=1.0)
    report(num_parts, num_parts, "measured")
    texts = {name: response_texts(world.tokenizer, ids) for name, ids in responses.items()}
    return {
        "accuracy": {name: _accuracy(world.problems, answers) for name, answers in texts.items()},
        "dialect": _dialects(texts),
        "tokens_max": _max_lengths(world, y_o) | {"student_response": max(map(len, responses["student_sampled"]))},
        "parameters": {"teacher": _num_parameters(world.teacher), "student": _num_parameters(world.student)},
    }


def _accuracy(problems: Sequence[ChainProblem], texts: Sequence[str]) -> float:
    return sum(map(is_correct, problems, texts)) / len(problems)


def _dialects(texts: dict[str, list[str]]) -> dict[str, float]:
    """Fractions: solutions in dialect 1, and rewrites that keep the dialect of the student's sample."""

    def frac_1(name: str) -> float:
        return sum(map(dialect_of, texts[name])) / len(texts[name])

    pairs = list(zip(texts["student_sampled"], texts["teacher_rewrite"], strict=True))
    return {
        "student_greedy_1_frac": frac_1("student_greedy"),
        "student_sampled_1_frac": frac_1("student_sampled"),
        "teacher_solve_1_frac": frac_1("teacher_solve"),
        "rewrite_kept_frac": sum(dialect_of(y_o) == dialect_of(y_r) for y_o, y_r in pairs) / len(pairs),
    }


def _max_lengths(world: BuiltWorld, student_samples: Sequence[str]) -> dict[str, int]:
    """Longest prompt of each task and longest right response, in tokens; y_o with injected errors or a real sample."""
    rng = random.Random(f"{world.seed}/lengths")
    train = world.splits["train"][: world.config.num_length_problems]
    pairs = [(problem, inject_errors(problem, index % 2, rng)) for index, problem in enumerate(train)]
    pairs += list(zip(world.problems, student_samples, strict=True))
    lengths = {}
    for task in Task:
        prompts = [task_prompt(task, problem, y_o=y_o, y_star=problem.solution(0)) for problem, y_o in pairs]
        lengths[f"{task}_prompt"] = max(map(len, prompt_ids(world.tokenizer, prompts)))
    right = [problem.solution(index % 2) for index, (problem, _) in enumerate(pairs)]
    lengths["right_response"] = max(map(len, response_ids(world.tokenizer, right)))
    return lengths


def _num_parameters(model: Qwen3ForCausalLM) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
