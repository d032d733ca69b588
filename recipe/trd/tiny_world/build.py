"""The build: which stages there are, what each depends on, and how they run. Imports torch only if a stage must run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from recipe.trd.rewrite.prompts import TEMPLATE_DIR
from recipe.trd.tiny_world.cache import Stage, building, content_key, exclusive, is_built
from recipe.trd.tiny_world.world_config import TinyWorldConfig
from verl_ext.runtime.packages import installed_versions

CARD = "world.json"
SELF_CARD = "self_student.json"

_HERE = Path(__file__).parent

_TEXT_SOURCES = (
    _HERE / "problems.py",
    _HERE / "examples.py",
    TEMPLATE_DIR.parent / "prompts.py",
    TEMPLATE_DIR / "tiny_refine.jinja",
    TEMPLATE_DIR / "tiny_privileged.jinja",
)
_DATA_SOURCES = (_HERE / "problems.py", _HERE / "splits.py")
_MODEL_SOURCES = (*_TEXT_SOURCES, *_DATA_SOURCES, _HERE / "supervised_training.py", _HERE / "teacher_student.py")
_EVALUATION_SOURCES = (_HERE / "batch_sampling.py", _HERE / "measure_models.py", _HERE / "world_card.py")


def plan(config: TinyWorldConfig) -> list[Stage]:
    """Stages of a build in the order in which they run. The student of self-distillation comes after the card of the
    world, of which it is no part: asking for it leaves a finished world as it is."""
    common: dict[str, object] = {"seed": config.seed, "world": asdict(config.world)}
    tokenizer = Stage(
        "tokenizer",
        content_key(
            config=common | installed_versions(("transformers", "tokenizers")),
            sources=(*_TEXT_SOURCES, _HERE / "tokenizer.py"),
            upstream=(),
        ),
        ("tokenizer",),
    )
    data = Stage(
        "data",
        content_key(config=common | {"data": asdict(config.data)}, sources=_DATA_SOURCES, upstream=()),
        ("train.parquet", "tuning.parquet", "held_out.parquet"),
    )
    model_keys = _model_keys(config, common, tokenizer)
    models = [Stage(role, model_keys[role], (role,)) for role in ("teacher", "student")]
    stages = [tokenizer, data, *models]
    evaluation = Stage("evaluation", _evaluation_key(config, [stage.key for stage in stages]), (CARD,))
    if not config.with_self_student:
        return [*stages, evaluation]
    # It measures itself, so that its numbers are there whenever it is.
    key = _evaluation_key(config, (model_keys["self_student"],))
    return [*stages, evaluation, Stage("self_student", key, ("self_student", SELF_CARD))]


def _model_keys(config: TinyWorldConfig, common: Mapping[str, object], tokenizer: Stage) -> dict[str, str]:
    # The size of the training split is not in here: models are trained on fresh problems.
    training = {
        **common,
        "num_tuning": config.data.num_tuning,
        "num_held_out": config.data.num_held_out,
        "max_position_embeddings": config.max_position_embeddings,
    }
    return {
        role: content_key(
            config=training | {role: asdict(role_config)} | installed_versions(("torch", "transformers")),
            sources=_MODEL_SOURCES,
            upstream=(tokenizer.key,),
        )
        for role, role_config in (
            ("teacher", config.teacher),
            ("student", config.student),
            ("self_student", config.self_student),
        )
    }


def _evaluation_key(config: TinyWorldConfig, upstream: Sequence[str]) -> str:
    return content_key(config={"evaluation": asdict(config.evaluation)}, sources=_EVALUATION_SOURCES, upstream=upstream)


def build_world(config: TinyWorldConfig, console: Console) -> Path:
    """Build what is missing or out of date.

    Returns:
        The folder of the world, absolute.

    Raises:
        ValueError: the teacher does not reach `evaluation.min_rewrite_accuracy`.
    """
    out = Path(config.out).resolve()
    stages = plan(config)
    with exclusive(out), _progress_bars(console) as progress:
        if not all(is_built(out, stage) for stage in stages if stage.name != "self_student"):
            # The card says that a world is whole: others wait for it, and an old one must not outlive its models.
            (out / CARD).unlink(missing_ok=True)
        for index, stage in enumerate(stages):
            task = progress.add_task(stage.name, total=1, note="")
            if is_built(out, stage):
                progress.update(task, completed=1, note="cached")
                continue
            progress.update(task, note="loading libraries")
            _run(stage, config, out, finished=stages[:index], report=_report_to(progress, task, stage.name))
    return out


def _progress_bars(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=console)


def _report_to(progress: Progress, task: TaskID, name: str) -> Callable[[int, int, str], None]:
    def report(done: int, total: int, note: str) -> None:
        progress.update(task, completed=done, total=total, note=note)
        is_next_tenth = 10 * done // total > 10 * (done - 1) // total
        if is_next_tenth and not progress.console.is_terminal:
            # Without a terminal the bars appear only at the end.
            progress.console.print(f"{name}: {note}", highlight=False)

    return report


def _run(
    stage: Stage,
    config: TinyWorldConfig,
    out: Path,
    *,
    finished: Sequence[Stage],
    report: Callable[[int, int, str], None],
) -> None:
    from recipe.trd.tiny_world.stages import BUILDERS, StageInputs

    with building(out, stage) as folder:
        BUILDERS[stage.name](StageInputs(config=config, out=out, folder=folder, finished=finished, report=report))
