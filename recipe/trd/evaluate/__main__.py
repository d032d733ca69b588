r"""Evaluate a model: avg@n, pass@k and maj@k with intervals, on sets of problems.

    python -m recipe.trd.evaluate MODEL --suite math --num-samples 16 --base BASE --baseline FOLDER

An evaluation that was interrupted continues when the same command runs again. docs/evaluation.md says what is computed
and what the numbers mean.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipe.trd.evaluate import report
from recipe.trd.evaluate.evaluate_model import EvaluationRequest, evaluate
from recipe.trd.evaluate.grading import Limits
from recipe.trd.evaluate.settings import Sampling
from recipe.trd.evaluate.suites import SUITES

REFUSED, FAILED, INTERRUPTED = 2, 1, 130
"""Exit codes, as those of a training run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate, and print the table."""
    parser = _parser()
    try:
        request = _request(parser.parse_args(arguments))
        result = evaluate(request)
    except ValueError as error:
        print(f"cannot evaluate: {error}", file=sys.stderr)
        return REFUSED
    except ImportError as error:
        print(f"the evaluation failed: {error}: install vLLM, see requirements/", file=sys.stderr)
        return FAILED
    except (RuntimeError, OSError) as error:
        print(f"the evaluation failed: {error}; the same command goes on from here", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    report.show(result, request.out)
    return 0


def _request(options: argparse.Namespace) -> EvaluationRequest:
    return EvaluationRequest(
        model=options.model,
        base=options.base,
        adapter=options.adapter,
        suites=tuple(options.suite),
        files=tuple(options.data),
        data_dir=options.data_dir,
        limit=options.limit,
        out=options.out or _default_folder(options),
        baseline=options.baseline,
        sampling=Sampling(
            num_samples=options.num_samples,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            max_tokens=options.max_tokens,
            seed=options.seed,
        ),
        ks=tuple(sorted(set(options.k))),
        chat_template=options.chat_template,
        chat_arguments=_json_object("--chat-template-kwargs", options.chat_template_kwargs),
        engine=_engine_options(options),
        limits=Limits(workers=options.grade_workers, timeout_s=options.grade_timeout),
    )


def _default_folder(options: argparse.Namespace) -> Path:
    """From model and sets, so that the same command finds its folder again."""
    parts = [part for part in re.split(r"[^\w.+-]+", options.model.strip("/.")) if part]
    sets = [*options.suite, *(path.stem for path in options.data)]
    return Path("outputs") / "evaluation" / ("-".join(parts[-3:]) + "_" + "+".join(sets))


def _engine_options(options: argparse.Namespace) -> dict[str, Any]:
    """Options of `vllm.LLM`; values are YAML-like: numbers, true, null, or text.

    Raises:
        ValueError: one is not of the form NAME=VALUE.
    """
    engine: dict[str, Any] = {"tensor_parallel_size": options.tensor_parallel_size}
    for text in options.engine:
        name, mark, value = text.partition("=")
        if not mark or not name.isidentifier():
            raise ValueError(f"--engine {text}: write NAME=VALUE, e.g. gpu_memory_utilization=0.8")
        try:
            engine[name] = json.loads(value)
        except json.JSONDecodeError:
            engine[name] = value
    return engine


def _json_object(option: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"""{option} {text}: write a JSON object, e.g. '{{"enable_thinking": false}}'""")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recipe.trd.evaluate",
        description=main.__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", help="folder of a model, step of a training run, or name on the hub")
    _add_model_options(parser.add_argument_group("model"))
    _add_data_options(parser.add_argument_group("problems"))
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--num-samples", "-n", type=int, default=16, help="samples a problem")
    sampling.add_argument("--temperature", type=float, default=0.6, help="0 is greedy")
    sampling.add_argument("--top-p", type=float, default=0.95, help="1 is all tokens")
    sampling.add_argument("--top-k", type=int, default=-1, help="-1 is all tokens")
    sampling.add_argument("--max-tokens", type=int, default=16384, help="longest response, tokens")
    sampling.add_argument("--seed", type=int, default=0, help="of samples and bootstrap")
    sampling.add_argument("--k", type=int, nargs="+", default=[], help="of pass@k, maj@k; none: powers of two up to n")
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, help="folder; none: outputs/evaluation/<model>_<suites>")
    output.add_argument("--baseline", type=Path, help="folder of another evaluation, for a paired comparison")
    output.add_argument("--grade-workers", type=int, default=min(16, os.cpu_count() or 1), help="processes that grade")
    output.add_argument("--grade-timeout", type=float, default=10.0, help="longest time of one grade, s")
    return parser


def _add_model_options(group: Any) -> None:
    group.add_argument("--base", help="model that it was trained from: says whether the weights differ at all")
    group.add_argument("--adapter", type=Path, help="LoRA adapter (a PEFT folder) on top of MODEL")
    group.add_argument("--chat-template", type=Path, help="Jinja file; none: the tokeniser's own template")
    group.add_argument("--chat-template-kwargs", default="{}", metavar="JSON", help="arguments of the chat template")
    group.add_argument("--tensor-parallel-size", type=int, default=1, help="devices that share the model")
    group.add_argument(
        "--engine", action="append", default=[], metavar="NAME=VALUE", help="option of vllm.LLM; may be repeated"
    )


def _add_data_options(group: Any) -> None:
    suites = ", ".join(SUITES)
    group.add_argument("--suite", action="append", default=[], help=f"{suites}, or one prepared set; may be repeated")
    group.add_argument(
        "--data", action="append", type=Path, default=[], metavar="FILE", help="parquet in verl's format"
    )
    group.add_argument("--data-dir", type=Path, default=Path("data"), help="folder of the prepared sets")
    group.add_argument("--limit", type=int, help="the first problems of each set only; none: all")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Libraries below vLLM list what they leaked when the interpreter ends, under the table.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.exit(code)
