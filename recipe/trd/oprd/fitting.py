"""First stage of OPRD-Bridge; the command is `python -m recipe.trd.fit_bridge`.

The student answers prompts; both models read the responses, each after the prompt under its own chat template; then the
teacher's hidden states are reduced to a few principal directions, and the student's are mapped onto them.

| step | file |
|---|---|
| keys of the command and their types | `configs/fit_bridge.yaml`, fit_config.py |
| prompts and responses | fit_rollouts.py |
| hidden states of both models at the same positions | paired_states.py |
| which layers belong together | layer_map.py |
| maps of one pair of layers | projection_fit.py |
| what is stored | bridge.py |

Source: OPRD, arXiv 2606.06021, Sec. 3.3 and Alg. 1.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers import AutoConfig

from recipe.trd.oprd import bridge, model_facts, paired_states, projection_fit
from recipe.trd.oprd.bridge import Bridge
from recipe.trd.oprd.fit_config import FitConfig
from recipe.trd.oprd.fit_rollouts import read_prompts, roll_out
from recipe.trd.oprd.layer_map import layer_map
from recipe.trd.oprd.model_facts import ModelFacts
from recipe.trd.oprd.paired_states import Sequences, States
from verl_ext.divergence import Projection
from verl_ext.runtime.packages import installed_versions

PACKAGES = ("verl-trd", "torch", "transformers")
"""Their versions go into the card of a bridge."""


def run(config: FitConfig, console: Console) -> Bridge:
    """All steps, from prompts to the files of the bridge.

    Raises:
        ValueError: the pair, the data or the fit will not do; nothing was written.
    """
    student, teacher = _models(config)
    projection_fit.check_rank(config.rank, student_size=student.hidden_size, teacher_size=teacher.hidden_size)
    prompts = read_prompts(config, console)
    responses = roll_out(config, [prompt.student for prompt in prompts])
    num_tokens = [len(response) for response in responses]
    console.print(f"{sum(num_tokens)} response tokens, {max(num_tokens)} at most in one", highlight=False)
    sequences = paired_states.Sequences(
        student=[[*prompt.student, *response] for prompt, response in zip(prompts, responses, strict=True)],
        teacher=[[*prompt.teacher, *response] for prompt, response in zip(prompts, responses, strict=True)],
        num_positions=[min(num, config.num_positions) for num in num_tokens],
    )
    fitted = fit(config, sequences, student=student, teacher=teacher, console=console)
    console.print(table(fitted))
    check_fit(fitted, min_cosine=config.min_cosine)
    bridge.save(config.out, fitted)
    console.print(f"bridge of rank {fitted.rank}: {Path(config.out).expanduser().resolve()}", highlight=False)
    return fitted


def _models(config: FitConfig) -> list[ModelFacts]:
    """Facts of student and teacher, read before the models are loaded."""
    found = []
    for role in ("student", "teacher"):
        path = getattr(config, role)
        try:
            model_config = AutoConfig.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"{role}={path}: no model can be read there: {error}") from error
        longest = int(getattr(model_config.get_text_config(), "max_position_embeddings", None) or 2**31)
        if config.max_prompt_length + config.max_response_length > longest:
            raise ValueError(
                f"max_prompt_length + max_response_length = {config.max_prompt_length + config.max_response_length} "
                f"tokens, and {role}={path} takes {longest}: lower them"
            )
        found.append(model_facts.facts(model_config, path=path))
    return found


@dataclass(frozen=True)
class Split:
    """Rollouts to fit on, rollouts to check the fit with, and the positions that the teacher's covariance is over."""

    kept: Sequences
    held_out: Sequences
    sampled: torch.Tensor
    """bool [positions of kept]."""

    def counts(self) -> dict[str, int]:
        """Numbers for the card; the keys are those of its format."""
        return {
            "num_sequences": len(self.kept),
            "num_rows": sum(self.kept.num_positions),
            "num_sampled_rows": int(self.sampled.sum()),
            "num_held_out_sequences": len(self.held_out),
            "num_held_out_rows": sum(self.held_out.num_positions),
        }


def split(config: FitConfig, sequences: Sequences) -> Split:
    """Whole rollouts are held out: tokens of one rollout are too much alike."""
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(len(sequences), generator=generator).tolist()
    num_held_out = min(max(1, round(config.held_out_frac * len(order))), len(order) - 1)
    kept = sequences.take(order[num_held_out:])
    sampled = torch.zeros(sum(kept.num_positions), dtype=torch.bool)
    sampled[torch.randperm(len(sampled), generator=generator)[: config.max_rows]] = True
    return Split(kept, sequences.take(order[:num_held_out]), sampled)


def fit(
    config: FitConfig, sequences: Sequences, *, student: ModelFacts, teacher: ModelFacts, console: Console
) -> Bridge:
    """Maps for every layer of the student, and how well they fit on rollouts that were held out.

    Raises:
        ValueError: too few positions, or hidden states that are not finite.
    """
    parts = split(config, sequences)
    projection_fit.check_num_positions(
        config.rank,
        student_size=student.hidden_size,
        num_positions=len(parts.sampled),
        num_sampled=int(parts.sampled.sum()),
    )
    device = torch.device(config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    layers = layer_map(student.num_layers, teacher.num_layers)
    load = partial(paired_states.load_model, dtype=getattr(torch, config.dtype), device=device)
    read = partial(
        paired_states.paired_states,
        load(config.student),
        load(config.teacher),
        teacher_layers=layers,
        batch_tokens=config.batch_tokens,
    )
    sizes = {"student_size": student.hidden_size, "teacher_size": teacher.hidden_size}
    moments = [projection_fit.Moments(**sizes, device=device) for _ in layers]
    with Progress(console=console) as progress:
        _add_states(moments, _tracked(progress, "reading", read(parts.kept), len(parts.kept)), parts)
        maps = [projection_fit.fit(sums, rank=config.rank) for sums in progress.track(moments, description="fitting")]
        projections = tuple(projection for projection, _ in maps)
        held_out = _tracked(progress, "checking", read(parts.held_out), len(parts.held_out))
        cosines = _mean_cosines(projections, held_out, num_positions=sum(parts.held_out.num_positions))
    return Bridge(
        projections=projections,
        teacher_layers=layers,
        student=student,
        teacher=teacher,
        explained_variance=tuple(explained for _, explained in maps),
        held_out_cosine=cosines,
        provenance=parts.counts() | {"settings": asdict(config), "versions": installed_versions(PACKAGES)},
    )


def _add_states(moments: Sequence[projection_fit.Moments], batches: Iterable[States], parts: Split) -> None:
    """Add the states of all batches to the sums of every layer."""
    device = moments[0].student_sum.device
    sampled = [part.to(device) for part in parts.sampled.split(parts.kept.num_positions)]
    for states in batches:
        sampled_here = torch.cat([sampled[index] for index in states.sequences])
        for layer, sums in enumerate(moments):
            sums.add(student=states.student[layer], teacher=states.teacher[layer], sampled=sampled_here)


def _mean_cosines(
    projections: Sequence[Projection], batches: Iterable[States], *, num_positions: int
) -> tuple[float, ...]:
    """For every layer the cosine of both mapped states, mean over the positions of all batches."""
    total = torch.zeros(len(projections), dtype=torch.float64)
    for states in batches:
        for layer, projection in enumerate(projections):
            pair = {"student": states.student[layer], "teacher": states.teacher[layer]}
            total[layer] += projection_fit.cosines(projection, **pair).sum().cpu()
    return tuple((total / num_positions).tolist())


def _tracked(progress: Progress, what: str, batches: Iterator[States], total: int) -> Iterator[States]:
    """The same batches, with a bar that counts their sequences; a line every tenth where there is no terminal."""
    task = progress.add_task(what, total=total)
    done = 0
    for states in batches:
        yield states
        before, done = done, done + len(states.sequences)
        progress.update(task, completed=done)
        if not progress.console.is_terminal and 10 * done // total > 10 * before // total:
            progress.console.print(f"{what}: {done} of {total} rollouts", highlight=False)


def table(fitted: Bridge) -> Table:
    """How well every layer fits; layers counted from 1."""
    columns = Table("student's layer", "teacher's layer", "explained variance", "held-out cosine")
    rows = zip(fitted.teacher_layers, fitted.explained_variance, fitted.held_out_cosine, strict=True)
    for layer, (teacher_layer, explained, cosine) in enumerate(rows, start=1):
        columns.add_row(str(layer), str(teacher_layer + 1), f"{explained:.3f}", f"{cosine:.3f}")
    return columns


def check_fit(fitted: Bridge, *, min_cosine: float) -> None:
    """Refuse maps that fit no better than chance: training on them would teach the student noise.

    Raises:
        ValueError: the message names the layers.
    """
    bad = {layer: cosine for layer, cosine in enumerate(fitted.held_out_cosine, start=1) if not cosine >= min_cosine}
    if bad:
        found = ", ".join(f"{cosine:.3f} in layer {layer}" for layer, cosine in bad.items())
        raise ValueError(
            f"held-out cosine {found}, below min_cosine={min_cosine} (maps that fit reach 0.9, arbitrary ones 0.1): "
            "nothing was written; give more prompts (num_prompts), another rank (4 to 16), or a teacher nearer to the "
            "student"
        )
