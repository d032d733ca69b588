import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from transformers import AutoTokenizer, Qwen3ForCausalLM

from recipe.trd.tiny_world.build import build_world, plan
from recipe.trd.tiny_world.cache import is_built
from recipe.trd.tiny_world.problems import ChainProblem, first_error
from recipe.trd.tiny_world.splits import draw_splits, measured_expressions

ROOT = Path(__file__).parents[4]
ROLES = ("teacher", "student")


def build(config, log: io.StringIO | None = None) -> Path:
    return build_world(config, Console(file=log or io.StringIO()))


def weights(out: Path, role: str) -> str:
    return hashlib.sha256((out / role / "model.safetensors").read_bytes()).hexdigest()


def missing_stages(config, out: Path) -> list[str]:
    return [stage.name for stage in plan(config) if not is_built(out, stage)]


def written(out: Path) -> dict[Path, int]:
    """When each file of a world was written."""
    return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.fixture(scope="module")
def world(make_config, tmp_path_factory):
    return build(make_config(f"out={tmp_path_factory.mktemp('world')}"))


@pytest.fixture(scope="module")
def rows(world):
    return {split: pq.read_table(world / f"{split}.parquet").to_pylist() for split in ("train", "tuning", "held_out")}


def test_splits_share_no_problem(rows):
    expressions = [row["extra_info"]["problem"] for split in rows.values() for row in split]
    assert {name: len(split) for name, split in rows.items()} == {"train": 20, "tuning": 10, "held_out": 10}
    assert len(set(expressions)) == 40


def test_rows_are_in_verl_format(rows):
    row = rows["tuning"][3]
    problem = ChainProblem.parse(row["extra_info"]["problem"])
    assert row == {
        "data_source": "tiny_world",
        "prompt": [{"role": "user", "content": problem.prompt}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(problem.answer)},
        "extra_info": {
            "index": 3,
            "split": "tuning",
            "problem": problem.prompt,
            "reference_solution": problem.solution(0),
        },
    }
    assert first_error(problem, row["extra_info"]["reference_solution"]) is None


def test_measured_splits_do_not_depend_on_the_size_of_train(make_config):
    small, large = (draw_splits(make_config(f"data.num_train={size}")) for size in (5, 50))
    assert measured_expressions(small) == measured_expressions(large)
    assert large["train"][:5] == small["train"]


def test_models_load_and_share_one_tokenizer(world):
    for role in ROLES:
        model = Qwen3ForCausalLM.from_pretrained(world / role)
        tokenizer = AutoTokenizer.from_pretrained(world / role)
        assert model.config.max_position_embeddings == 512
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id == model.config.eos_token_id
        assert model.config.pad_token_id == tokenizer.pad_token_id
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            assert (world / role / name).read_bytes() == (world / "tokenizer" / name).read_bytes()


def test_card_says_what_the_world_is(world):
    card = json.loads((world / "world.json").read_text())
    assert card["config"]["student"]["training"]["num_steps"] == 5
    assert set(card["keys"]) == {"tokenizer", "data", "teacher", "student"}
    assert set(card["seconds"]) == {*card["keys"], "evaluation"}
    assert {"student_greedy", "student_sampled", "teacher_solve", "teacher_rewrite"} <= set(card["accuracy"])
    assert card["tokens_max"]["student_response"] <= 4
    assert card["tokens_max"]["solve_prompt"] < card["tokens_max"]["rewrite_prompt"]


def test_same_seed_builds_the_same_world_elsewhere(world, make_config, tmp_path):
    twin = build(make_config(f"out={tmp_path}"))
    for name in ("train.parquet", "tokenizer/tokenizer.json", "teacher/model.safetensors", "student/model.safetensors"):
        assert (twin / name).read_bytes() == (world / name).read_bytes()


def test_log_without_a_terminal_shows_progress(make_config, tmp_path):
    log = io.StringIO()
    build(make_config(f"out={tmp_path}", "teacher.training.num_steps=20"), log)
    lines = log.getvalue().splitlines()
    updates = [line.split()[2] for line in lines if line.startswith("teacher: update")]
    assert updates == [f"{step}/20" for step in range(2, 21, 2)]
    assert sum("cached" in line for line in lines) == 0


def test_stronger_student_trains_nothing_else(make_config, tmp_path):
    out = build(make_config(f"out={tmp_path}"))
    before = {role: weights(out, role) for role in ROLES}
    stronger = make_config(f"out={tmp_path}", "student.training.num_steps=6")
    assert missing_stages(stronger, out) == ["student", "evaluation"]
    build(stronger)
    assert weights(out, "teacher") == before["teacher"]
    assert weights(out, "student") != before["student"]


@pytest.mark.parametrize(
    ("override", "missing"),
    [
        ("seed=1", ["tokenizer", "data", "teacher", "student", "evaluation"]),
        ("world.operand_max=8", ["tokenizer", "data", "teacher", "student", "evaluation"]),
        ("data.num_train=21", ["data", "evaluation"]),
        ("data.num_tuning=11", ["data", "teacher", "student", "evaluation"]),
        ("teacher.good_frac=0.5", ["teacher", "evaluation"]),
        ("evaluation.num_problems=5", ["evaluation"]),
        ("threads=2", []),
    ],
)
def test_change_rebuilds_what_depends_on_it(world, make_config, override, missing):
    assert missing_stages(make_config(override), world) == missing


def test_student_of_self_distillation_joins_a_finished_world_and_changes_nothing_in_it(make_config, tmp_path):
    out = build(make_config(f"out={tmp_path}"))
    before = written(out)
    asked = make_config(f"out={tmp_path}", "with_self_student=true")
    assert missing_stages(asked, out) == ["self_student"]
    build(asked)
    assert {path: when for path, when in written(out).items() if path in before} == before
    # Its own card: in both roles, as it is its own teacher.
    card = json.loads((out / "self_student.json").read_text())
    assert card["config"]["training"]["num_steps"] == 5
    assert card["accuracy"]["student_greedy"] == card["accuracy"]["teacher_solve"]
    assert "teacher_privileged_solve" in card["accuracy"]
    num_tokens = len(AutoTokenizer.from_pretrained(out / "self_student"))
    assert Qwen3ForCausalLM.from_pretrained(out / "self_student").config.vocab_size >= num_tokens
    stronger = make_config(f"out={tmp_path}", "with_self_student=true", "student.training.num_steps=6")
    assert missing_stages(stronger, out) == ["student", "evaluation"]


def test_finished_world_is_not_touched_and_needs_no_torch(world):
    before = written(world)
    code = (
        "import json, sys; from rich.console import Console\n"
        "from recipe.trd.tiny_world.build import build_world\n"
        "from recipe.trd.tiny_world.world_config import TinyWorldConfig, from_mapping\n"
        "card = json.load(open(sys.argv[1] + '/world.json'))\n"
        "build_world(from_mapping(TinyWorldConfig, card['config']), Console(quiet=True))\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(world)], cwd=ROOT, check=True)
    assert written(world) == before


def test_weak_teacher_is_an_error_and_leaves_no_card(make_config, tmp_path):
    build(make_config(f"out={tmp_path}"))
    with pytest.raises(ValueError, match=r"rewrites only 0\.000 .* evaluation\.min_rewrite_accuracy=0\.9"):
        build(make_config(f"out={tmp_path}", "evaluation.min_rewrite_accuracy=0.9"))
    assert not (tmp_path / "world.json").exists()


def test_command_takes_overrides_and_leaves_nothing_else_behind(world, tmp_path):
    code = "import sys; from recipe.trd.tiny_world.__main__ import main; main()"
    command = [sys.executable, "-c", code, f"out={world}", "--cfg", "job"]
    printed = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, check=True, capture_output=True, text=True
    ).stdout
    assert f"out: {world}" in printed
    assert list(tmp_path.iterdir()) == []
