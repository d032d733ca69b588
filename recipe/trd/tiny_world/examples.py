"""Supervised examples as text: what the teacher and the student are trained on, and what they are asked in evaluation.

Prompts come from the renderer that the recipe uses at run time, so a trained context and a served context are equal.
"""

import random
from collections.abc import Collection
from dataclasses import asdict, dataclass
from enum import StrEnum

from recipe.trd.rewrite import prompts
from recipe.trd.tiny_world.problems import ChainProblem, draw_problem, inject_errors
from recipe.trd.tiny_world.world_config import TinyStudentConfig, TinyTeacherConfig, WorldConfig


class Task(StrEnum):
    """What a prompt asks for; the values are the keys of `teacher.tasks`."""

    SOLVE = "solve"
    REWRITE = "rewrite"
    PRIVILEGED_SOLVE = "privileged_solve"
    PRIVILEGED_REWRITE = "privileged_rewrite"


@dataclass(frozen=True)
class Example:
    """A user message and the response to learn, without chat template and end-of-turn token."""

    prompt: str
    response: str


def task_prompt(task: Task, problem: ChainProblem, *, y_o: str, y_star: str) -> str:
    """User message of a task; a task that does not show y_o or y_star ignores it."""
    if task is Task.SOLVE:
        return problem.prompt
    if task is Task.REWRITE:
        return prompts.render("tiny_refine", problem=problem.prompt, y_o=y_o)
    if task is Task.PRIVILEGED_SOLVE:
        return prompts.render("tiny_privileged", problem=problem.prompt, y_star=y_star)
    return prompts.render("tiny_refine", problem=problem.prompt, y_o=y_o, y_star=y_star)


@dataclass(frozen=True)
class ExampleSource:
    """Draws training examples on fresh problems that are in no measured split."""

    world: WorldConfig
    excluded: Collection[str]
    rng: random.Random

    def teacher_batch(self, config: TinyTeacherConfig) -> list[Example]:
        """A batch of one task. Solutions follow the teacher's own dialect, rewrites that of y_o."""
        weights = asdict(config.tasks)
        task = Task(self.rng.choices(list(weights), list(weights.values()))[0])
        return [self._teacher_example(task, config) for _ in range(config.training.batch_size)]

    def student_batch(self, config: TinyStudentConfig) -> list[Example]:
        """A batch of solutions in the student's dialect."""
        return [self._solution_example(config.dialect_probability) for _ in range(config.training.batch_size)]

    def _problem(self) -> ChainProblem:
        return draw_problem(self.world, self.rng, self.excluded)

    def _solution_example(self, dialect_probability: float) -> Example:
        problem = self._problem()
        return Example(problem.prompt, problem.solution(int(self.rng.random() < dialect_probability)))

    def _teacher_example(self, task: Task, config: TinyTeacherConfig) -> Example:
        if task is Task.SOLVE:
            return self._solution_example(config.dialect_probability)
        problem = self._problem()
        dialect = self.rng.randrange(2)
        is_good = self.rng.random() < config.good_frac
        y_o = problem.solution(dialect) if is_good else inject_errors(problem, dialect, self.rng)
        y_star = problem.solution(self.rng.randrange(2))
        if task is Task.PRIVILEGED_SOLVE:
            dialect = int(self.rng.random() < config.dialect_probability)
        return Example(task_prompt(task, problem, y_o=y_o, y_star=y_star), problem.solution(dialect))
