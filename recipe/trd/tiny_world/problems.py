r"""Arithmetic chains: problems, solutions in two dialects, injected errors, and exact checking.

`29-6-6+8` is solved as `29-6=23`, `23-6=17`, `17+8=25`, `\boxed{25}`, joined by the separator of a dialect. In each
dialect a problem has exactly one right chain, so the first error of a solution is known exactly. No torch here.
"""

import random
import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from recipe.trd.tiny_world.world_config import WorldConfig

DIALECT_SEPARATORS = ("\n", ", ")

_PROMPT_PREFIX = "Compute "
_BOXED_INTEGER = re.compile(r"\\boxed\{(\d+)\}")
_OPERATION = re.compile(r"([+-])(\d+)")

# How a step goes wrong, with the share of each way. They stand in for the errors of a real student while the teacher
# trains; `world.json` says how well it then rewrites real ones.
_STEP_ERROR_WEIGHTS = {
    "result": 0.55,
    "operand": 0.12,
    "operator": 0.10,
    "left": 0.10,
    "skipped": 0.06,
    "doubled": 0.07,
}
_SINGLE_ERROR_PROBABILITY = 0.55
_MAX_CORRUPTED_VALUE = 120


@dataclass(frozen=True)
class Step:
    """One line of a solution: `left operator operand = result`."""

    left: int
    operator: str
    operand: int
    result: int

    @property
    def text(self) -> str:
        """The line, without separator."""
        return f"{self.left}{self.operator}{self.operand}={self.result}"


def _apply(left: int, operator: str, operand: int) -> int:
    return left + operand if operator == "+" else left - operand


@dataclass(frozen=True)
class ChainProblem:
    """A chain of additions and subtractions, evaluated from left to right."""

    first: int
    operations: tuple[tuple[str, int], ...]

    @classmethod
    def parse(cls, text: str) -> "ChainProblem":
        """Problem of an expression (`29-6+8`) or of a user message (`Compute 29-6+8`).

        Raises:
            ValueError: the text is neither.
        """
        expression = text.removeprefix(_PROMPT_PREFIX)
        if not re.fullmatch(r"\d+([+-]\d+)+", expression):
            raise ValueError(f"not an arithmetic chain: {text!r}; expected for example 'Compute 29-6+8'")
        first = re.match(r"\d+", expression)
        assert first is not None
        operations = tuple((operator, int(operand)) for operator, operand in _OPERATION.findall(expression))
        return cls(int(first[0]), operations)

    @property
    def expression(self) -> str:
        """The chain as text; identifies the problem."""
        return f"{self.first}" + "".join(f"{operator}{operand}" for operator, operand in self.operations)

    @property
    def prompt(self) -> str:
        """The student's user message."""
        return _PROMPT_PREFIX + self.expression

    @property
    def steps(self) -> list[Step]:
        """The right chain."""
        steps: list[Step] = []
        value = self.first
        for operator, operand in self.operations:
            steps.append(Step(value, operator, operand, _apply(value, operator, operand)))
            value = steps[-1].result
        return steps

    @property
    def answer(self) -> int:
        """Value of the whole chain."""
        return self.steps[-1].result

    def solution(self, dialect: int) -> str:
        """The right solution, written in a dialect."""
        return _write(self.steps, self.answer, dialect)


def _write(steps: list[Step], answer: int, dialect: int) -> str:
    return DIALECT_SEPARATORS[dialect].join([step.text for step in steps] + [f"\\boxed{{{answer}}}"])


def draw_problem(world: WorldConfig, rng: random.Random, excluded: Collection[str]) -> ChainProblem:
    """A random problem whose expression is not excluded; operations that leave 0..value_max are drawn again."""
    while True:
        value = first = rng.randint(1, world.first_max)
        operations = []
        for _ in range(rng.randint(world.num_operations_min, world.num_operations_max)):
            operator, operand = _draw_operation(world, rng, value)
            operations.append((operator, operand))
            value = _apply(value, operator, operand)
        problem = ChainProblem(first, tuple(operations))
        if problem.expression not in excluded:
            return problem


def _draw_operation(world: WorldConfig, rng: random.Random, value: int) -> tuple[str, int]:
    while True:
        operator, operand = rng.choice("+-"), rng.randint(1, world.operand_max)
        if 0 <= _apply(value, operator, operand) <= world.value_max:
            return operator, operand


def dialect_of(text: str) -> int:
    """Dialect in which a solution is written; text without any separator counts as dialect 0."""
    return 1 if DIALECT_SEPARATORS[1] in text else 0


def is_correct(problem: ChainProblem, text: str) -> bool:
    """Whether the last boxed integer is the answer. The working is not looked at."""
    boxed = _BOXED_INTEGER.findall(text)
    return bool(boxed) and boxed[-1] == str(problem.answer)


def first_error(problem: ChainProblem, text: str) -> int | None:
    """Index of the first line that leaves the right chain of the text's own dialect; None if the text is exact.

    The boxed answer counts as a line. A text that stops early, or goes on too long, errs at the first missing or
    surplus line.
    """
    dialect = dialect_of(text)
    separator = DIALECT_SEPARATORS[dialect]
    right, written = problem.solution(dialect).split(separator), text.split(separator)
    for index, (expected, actual) in enumerate(zip(right, written, strict=False)):
        if expected != actual:
            return index
    return None if len(right) == len(written) else min(len(right), len(written))


def inject_errors(problem: ChainProblem, dialect: int, rng: random.Random) -> str:
    """A wrong solution as a weak student writes it: some steps go wrong, the rest follows from the wrong values."""
    while True:
        text = _write_with_errors(problem, dialect, rng)
        # Errors can cancel out, or replace an operand by its equal.
        if first_error(problem, text) is not None:
            return text


def _write_with_errors(problem: ChainProblem, dialect: int, rng: random.Random) -> str:
    num_steps = len(problem.operations)
    num_errors = 1 if rng.random() < _SINGLE_ERROR_PROBABILITY else rng.randint(2, 4)
    wrong = {rng.randrange(num_steps + 1) for _ in range(num_errors)}  # index num_steps is the boxed answer
    value = problem.first
    steps: list[Step] = []
    for index, (operator, operand) in enumerate(problem.operations):
        step = _evaluated(value, operator, operand)
        steps += _corrupt_step(step, problem, rng) if index in wrong else [step]
        value = steps[-1].result if steps else value
    return _write(steps, _corrupt_value(value, rng) if num_steps in wrong else value, dialect)


def _evaluated(left: int, operator: str, operand: int) -> Step:
    # The notation has no negative numbers: a wrong chain that falls below zero loses its sign.
    return Step(left, operator, operand, abs(_apply(left, operator, operand)))


def _corrupt_step(step: Step, problem: ChainProblem, rng: random.Random) -> list[Step]:
    kind = rng.choices(list(_STEP_ERROR_WEIGHTS), list(_STEP_ERROR_WEIGHTS.values()))[0]
    if kind == "result":
        return [replace(step, result=_corrupt_value(step.result, rng))]
    if kind == "operand":
        operands = [operand for _, operand in problem.operations]
        return [_evaluated(step.left, step.operator, rng.choice([*operands, _corrupt_value(step.operand, rng)]))]
    if kind == "operator":
        return [_evaluated(step.left, "-" if step.operator == "+" else "+", step.operand)]
    if kind == "left":
        return [_evaluated(_corrupt_value(step.left, rng), step.operator, step.operand)]
    if kind == "skipped":
        return []
    return [step, _evaluated(step.result, step.operator, step.operand)]


def _corrupt_value(value: int, rng: random.Random) -> int:
    """Another value >= 0: off by one, by ten, by less than ten, or unrelated."""
    kind = rng.random()
    if kind < 0.35:
        difference = rng.choice((-1, 1))
    elif kind < 0.6:
        difference = rng.choice((-10, 10))
    elif kind < 0.8:
        difference = rng.choice((-1, 1)) * rng.randint(1, 9)
    else:
        unrelated = [other for other in (rng.randint(0, 99), rng.randint(0, 9)) if other != value]
        return rng.choice(unrelated or [value + 1])
    shifted = value + difference
    return shifted if 0 <= shifted <= _MAX_CORRUPTED_VALUE else abs(value - difference)
