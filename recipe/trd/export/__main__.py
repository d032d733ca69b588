"""Make a model of a checkpoint, and prove that it is the trained one.

    python -m recipe.trd.export outputs/trd_opd/global_step_100 exported/trd_opd

Writes a Hugging Face model with adapters merged (or with --adapter-only a PEFT adapter), loads it again, and compares
its log-probs on held-out text with those of the trainer's model, which it has to equal, and of the base model, from
which it has to differ. Details: docs/export.md.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recipe.trd.export.export_inputs import ExportPlan

REFUSED, FAILED, INTERRUPTED = 2, 1, 130
"""Exit codes, as those of a training run."""

DTYPES = ("float32", "float16", "bfloat16")


def main(arguments: Sequence[str] | None = None) -> int:
    """Export a checkpoint of a run."""
    options = _parser().parse_args(arguments)
    # Imported here, so that --help answers at once.
    from rich.console import Console

    from recipe.trd.export.checkpoint import NotProved
    from recipe.trd.export.proved_export import export

    _silence_libraries()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    try:
        result = export(_plan(options), console)
    except (ValueError, OSError) as error:
        print(f"cannot export: {' '.join(str(error).split())}", file=sys.stderr)
        return REFUSED
    except NotProved as error:
        print(f"not exported: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was exported", file=sys.stderr)
        return INTERRUPTED
    console.print(
        f"{options.out}: {result['kind']}, {result['dtype']}, proved on {result['text']['num_tokens']} tokens"
    )
    return 0


def _silence_libraries() -> None:
    """Silence progress bars and warnings of libraries about steps that the user cannot influence."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    # Shards are read in a process that belongs to no group of ranks, as they should be.
    logging.getLogger("torch.distributed.device_mesh").setLevel(logging.ERROR)


def _plan(options: argparse.Namespace) -> "ExportPlan":
    import torch

    from recipe.trd.export.export_inputs import ExportPlan

    if options.num_texts < 1 or options.num_tokens < 1:
        raise ValueError("--num-texts and --num-tokens have to be 1 or more")
    return ExportPlan(
        checkpoint=options.checkpoint,
        out=Path(os.path.abspath(options.out)),
        base=options.base,
        dtype=getattr(torch, options.dtype) if options.dtype else None,
        device=options.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        text=options.text,
        num_texts=options.num_texts,
        num_tokens=options.num_tokens,
        adapter_only=options.adapter_only,
        allow_unchanged=options.allow_unchanged,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m recipe.trd.export", description=main.__doc__)
    add = parser.add_argument
    add("checkpoint", type=Path, help="<run>/global_step_<n> of a run on FSDP, or the folder actor in it")
    add("out", type=Path, help="folder for the model; new")
    add("--adapter-only", action="store_true", help="write the adapter alone, as PEFT and vLLM load it")
    add(
        "--dtype",
        choices=DTYPES,
        help="of the weights that are written; none: the base's, for an adapter the trainer's",
    )
    add("--base", help="base model, where it lies now; none: where the run had it")
    add("--device", help="cpu, cuda, cuda:1, ...; none: cuda where there is one")
    add(
        "--text",
        type=Path,
        help="held-out text, a line each, or JSON lines with input and output; none: the last validation",
    )
    add("--num-texts", type=int, default=32, help="most texts (32)")
    add("--num-tokens", type=int, default=2048, help="most tokens that are compared, in all texts together (2048)")
    add("--allow-unchanged", action="store_true", help="the model may equal its base: a checkpoint of step 0")
    return parser


if __name__ == "__main__":
    sys.exit(main())
