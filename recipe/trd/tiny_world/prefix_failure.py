"""Where self-distillation on y_o gets its signal from: before, at or after the first wrong token of a solution.

    python -m recipe.trd.tiny_world.prefix_failure [--model FOLDER] [--temperature 1.0] [--clip 0.05]

The model's distribution under the context `privileged` is compared with the one under the plain prompt, on solutions
that it sampled. After the first wrong token its context holds two chains: the one in the solution and the reference.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3ForCausalLM

from recipe.trd.tiny_world.batch_sampling import sample
from recipe.trd.tiny_world.examples import Task, task_prompt
from recipe.trd.tiny_world.problems import ChainProblem, dialect_of
from recipe.trd.tiny_world.tokenizer import prompt_ids, response_ids, response_texts

PLACES = ("before", "at", "after")


@dataclass(frozen=True)
class Signal:
    """Forward KL of the privileged model from the plain one, over the tokens of some solutions."""

    place: Tensor
    """[N] indices into PLACES."""
    divergence: Tensor
    """[N] nats."""
    clipped: Tensor
    """[N] the part of the positive terms, in nats, whose vocabulary entries a clip cuts off: they get no gradient."""
    positive: Tensor
    """[N] all positive terms, nats."""


def first_wrong_token(problem: ChainProblem, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """Index of the first token that leaves the right chain of the solution's own dialect; its length if none does."""
    (text,) = response_texts(tokenizer, [ids])
    (right,) = response_ids(tokenizer, [problem.solution(dialect_of(text))])
    return next((index for index, token in enumerate(ids) if [token] != right[index : index + 1]), len(ids))


@torch.no_grad()
def response_log_probs(model: Qwen3ForCausalLM, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """Log-probabilities [tokens of the response, vocabulary]."""
    hidden = model.model(input_ids=torch.tensor([[*prompt, *response[:-1]]])).last_hidden_state[0]
    return model.lm_head(hidden[len(prompt) - 1 :]).log_softmax(-1)


def measure(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[ChainProblem],
    solutions: Sequence[Sequence[int]],
    *,
    clip: float,
) -> Signal:
    """The signal at every token of the solutions.

    Args:
        model: student and teacher in one.
        tokenizer: its tokenizer.
        problems: one for each solution.
        solutions: token ids of responses to the plain problems.
        clip: as `trd.objective.entry_clip`, nats.
    """
    plain = prompt_ids(tokenizer, [problem.prompt for problem in problems])
    shown = [task_prompt(Task.PRIVILEGED_SOLVE, problem, y_o="", y_star=problem.solution(0)) for problem in problems]
    places, terms = [], []
    for problem, prompt, context, ids in zip(problems, plain, prompt_ids(tokenizer, shown), solutions, strict=True):
        wrong = first_wrong_token(problem, ids, tokenizer)
        places.append((torch.arange(len(ids)) - wrong).sign() + 1)
        teacher, student = (response_log_probs(model, start, ids) for start in (context, prompt))
        terms.append(teacher.exp() * (teacher - student))
    entries = torch.cat(terms)
    return Signal(
        place=torch.cat(places),
        divergence=entries.sum(-1),
        clipped=(entries * (entries > clip)).sum(-1),
        positive=entries.clamp(min=0).sum(-1),
    )


def table(signal: Signal) -> Table:
    """Share of the tokens and of the divergence in each place, and what of it a clip leaves without gradient."""
    page = Table("tokens", "share", "nats a token", "share of the divergence", "cut off by the clip")
    for index, place in enumerate(PLACES):
        here = signal.place == index
        page.add_row(
            f"{place} the first wrong one",
            f"{here.float().mean():.1%}",
            f"{signal.divergence[here].mean():.3f}",
            f"{signal.divergence[here].sum() / signal.divergence.sum():.1%}",
            f"{signal.clipped[here].sum() / signal.positive[here].sum():.1%}",
        )
    return page


def main() -> None:
    """Sample solutions of the tuning problems and print at which tokens the signal is."""
    parser = argparse.ArgumentParser(prog="python -m recipe.trd.tiny_world.prefix_failure", description=main.__doc__)
    parser.add_argument("--model", type=Path, default=Path("data/tiny_world/self_student"))
    parser.add_argument("--problems", type=Path, default=Path("data/tiny_world/tuning.parquet"))
    parser.add_argument("--temperature", type=float, default=1.0, help="of the solutions")
    parser.add_argument("--clip", type=float, default=0.05, help="as trd.objective.entry_clip, nats")
    options = parser.parse_args()
    model = Qwen3ForCausalLM.from_pretrained(options.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows = pq.read_table(options.problems, columns=["extra_info"]).to_pylist()
    problems = [ChainProblem.parse(row["extra_info"]["problem"]) for row in rows]
    solutions = sample(
        model,
        prompt_ids(tokenizer, [problem.prompt for problem in problems]),
        max_response_tokens=64,
        temperature=options.temperature,
        generator=torch.Generator().manual_seed(0),
    )
    Console(width=120).print(table(measure(model, tokenizer, problems, solutions, clip=options.clip)))


if __name__ == "__main__":
    main()
