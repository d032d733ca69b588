"""A run folder that is started in again: resumed, or made room in."""

from recipe.trd.reports import run_folder
from recipe.trd.reports.run_folder import METRICS, metrics_files, prepare
from verl_ext.runtime.checkpoints import MARK


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_new_folder_is_made(tmp_path):
    prepare(tmp_path / "a" / "b", resume=True)
    assert (tmp_path / "a" / "b").is_dir()


def test_a_run_from_scratch_moves_what_lay_there(tmp_path):
    for content in ("first", "second"):
        (tmp_path / METRICS).write_text(content)
        (tmp_path / "rollouts").mkdir()
        (tmp_path / "rollouts" / "1.jsonl").write_text(content)
        prepare(tmp_path, resume=True)
    assert names(tmp_path) == [f"previous/{n}/{name}" for n in (1, 2) for name in (METRICS, "rollouts/1.jsonl")]
    assert (tmp_path / "previous" / "2" / METRICS).read_text() == "second"


def test_a_resumed_run_keeps_everything_and_its_metrics_get_a_number(tmp_path):
    (tmp_path / MARK).write_text("3")
    for content in ("first", "second"):
        (tmp_path / METRICS).write_text(content)
        prepare(tmp_path, resume=True)
    assert names(tmp_path) == [MARK, "metrics_1.jsonl", "metrics_2.jsonl"]
    assert [path.name for path in metrics_files(tmp_path)] == ["metrics_1.jsonl", "metrics_2.jsonl", METRICS]


def test_without_resume_a_checkpoint_is_moved_too(tmp_path):
    (tmp_path / MARK).write_text("3")
    prepare(tmp_path, resume=False)
    assert names(tmp_path) == [f"previous/1/{MARK}"]


def test_numbers_go_on_after_nine(tmp_path):
    for number in (2, 9, 10):
        (tmp_path / f"metrics_{number}.jsonl").touch()
    assert run_folder._next(tmp_path, "metrics_*.jsonl") == 11
    assert [path.stem for path in metrics_files(tmp_path)][:3] == ["metrics_2", "metrics_9", "metrics_10"]
