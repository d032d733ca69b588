import json
import subprocess
import sys

import pandas as pd
import pytest

from recipe.trd.evaluate import settings, store, suites


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_torn_last_line_is_cut_off_and_the_rest_is_kept(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"problem": "a", "sample": 0}\n{"problem": "a", "sam')
    with store.Log(path) as log:
        log.append({"problem": "a", "sample": 1})
    assert rows_of(path) == [{"problem": "a", "sample": 0}, {"problem": "a", "sample": 1}]
    assert list(store.read_samples(path)) == [("a", 0), ("a", 1)]


def test_row_is_in_the_file_before_the_process_ends(tmp_path):
    path = tmp_path / "samples.jsonl"
    code = (
        "import os, signal, sys, pathlib\n"
        "from recipe.trd.evaluate.store import Log\n"
        "with Log(pathlib.Path(sys.argv[1])) as log:\n"
        "    log.append({'problem': 'a', 'sample': 0})\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == -9
    assert rows_of(path) == [{"problem": "a", "sample": 0}]


def test_damage_inside_of_a_file_is_an_error_and_so_is_a_sample_that_is_there_twice(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"problem": "a", "sample": 0}\n{"probl\n{"problem": "a", "sample": 1}\n')
    with pytest.raises(ValueError, match="line 2 is damaged"):
        store.read_samples(path)
    path.write_text('{"problem": "a", "sample": 0}\n' * 2)
    with pytest.raises(ValueError, match="twice"):
        store.read_samples(path)


def test_two_processes_do_not_share_a_folder(tmp_path):
    with store.FolderLock(tmp_path), pytest.raises(ValueError, match="another process"), store.FolderLock(tmp_path):
        pass
    with store.FolderLock(tmp_path):
        pass


SAMPLING = {"num_samples": 4, "temperature": 1.0, "top_p": 0.9, "top_k": -1, "max_tokens": 64, "seed": 0}


def build(**changes):
    return settings.build(
        sampling=settings.Sampling(**{**SAMPLING, **changes.pop("sampling", {})}),
        weights={"model": "abc", "adapter": None},
        data={"set": "d1"},
        chat={"template": None, "arguments": {}},
        engine=changes.pop("engine", {}),
    )


def test_other_settings_are_refused_with_the_difference(tmp_path):
    settings.adopt(tmp_path, build())
    settings.adopt(tmp_path, build())
    with pytest.raises(ValueError, match="other settings") as error:
        settings.adopt(tmp_path, build(sampling={"temperature": 0.6, "seed": 3}, engine={"dtype": "float32"}))
    for line in ("engine.dtype: (none) -> ", "sampling.seed: 0 -> 3", "sampling.temperature: 1.0 -> 0.6"):
        assert line in str(error.value)
    # The folder is still that of its samples.
    settings.adopt(tmp_path, build())


def test_more_samples_are_no_other_setting_but_fewer_are(tmp_path):
    settings.adopt(tmp_path, build())
    settings.adopt(tmp_path, build(sampling={"num_samples": 8}))
    with pytest.raises(ValueError, match=r"num_samples: 8 -> 4"):
        settings.adopt(tmp_path, build())


def test_where_the_model_runs_is_no_setting(tmp_path):
    settings.adopt(tmp_path, build(engine={"tensor_parallel_size": 1, "gpu_memory_utilization": 0.5}))
    settings.adopt(tmp_path, build(engine={"tensor_parallel_size": 2}))


def test_provenance_lies_beside_the_settings(tmp_path):
    settings.adopt(tmp_path, build())
    assert set(json.loads((tmp_path / "versions.json").read_text())) >= {"packages", "commit", "dirty"}
    assert settings.read(tmp_path) == build()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_p": 0.0}, "top-p"),
        ({"top_k": 0}, "top-k"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": 0.0}, "num-samples 1"),
        ({"num_samples": 0}, "at least 1"),
    ],
)
def test_sampling_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        settings.Sampling(**{**SAMPLING, **change})


def test_seed_of_a_sample_depends_on_what_it_is():
    seeds = {settings.sample_seed(s, p, n) for s in (0, 1) for p in ("a", "b") for n in range(100)}
    assert len(seeds) == 400
    assert settings.sample_seed(0, "a", 0) == settings.sample_seed(0, "a", 0)
    assert all(0 <= seed < 2**32 for seed in seeds)


def problem(text="1+1", answer="2", **columns):
    row = {"prompt": [{"role": "user", "content": text}], "reward_model": {"style": "rule", "ground_truth": answer}}
    return {"data_source": "s", "ability": "math", "extra_info": {"index": 0}, **row, **columns}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(path)
    return path


def test_problem_has_the_same_id_wherever_it_stands(tmp_path):
    first = suites.load("a", write(tmp_path / "a.parquet", [problem("1+1"), problem("1+2", "3")]))
    other = suites.load("b", write(tmp_path / "b.parquet", [problem("1+2", "3", data_source="t"), problem("1+1")]))
    assert {p.id for p in first.problems} == {p.id for p in other.problems}
    assert first.fingerprint == other.fingerprint
    assert first.problems[0].messages == ({"role": "user", "content": "1+1"},)


def test_problem_that_is_asked_twice_is_two_problems_and_limit_takes_the_first(tmp_path):
    path = write(tmp_path / "a.parquet", [problem(), problem(), problem("1+2", "3")])
    ids = [p.id for p in suites.load("a", path).problems]
    assert len(set(ids)) == 3
    assert ids[1] == f"{ids[0]}-2"
    assert [p.id for p in suites.load("a", path, limit=2).problems] == ids[:2]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": [{"role": "user", "content": "x"}]}], "lacks the columns reward_model"),
        ([problem(), problem(reward_model={"style": "rule", "ground_truth": None})], "row 1: .*ground_truth"),
        ([problem(prompt=[])], "row 0: prompt holds no message"),
        ([problem(prompt="text")], "row 0"),
    ],
)
def test_file_in_another_format_is_refused(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        suites.load("a", write(tmp_path / "a.parquet", rows))


def test_file_that_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(ValueError, match="not a readable parquet"):
        suites.load("a", tmp_path / "a.parquet")


def test_suites_are_lists_of_prepared_sets_and_files_come_on_top(tmp_path, monkeypatch):
    monkeypatch.setitem(suites.SUITES, "both", ("one", "two"))
    for name in ("one/test.parquet", "two/held_out.parquet", "three/test.parquet"):
        write(tmp_path / name, [problem()])
    extra = write(tmp_path / "mine.parquet", [problem()])
    found = suites.find(["both", "three", "one"], [extra], data_dir=tmp_path)
    assert list(found) == ["one", "two", "three", "mine"]


def test_set_that_is_not_there_is_named_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(ValueError, match=r"recipe\.trd\.data prepare aime24"):
        suites.find(["math"], [], data_dir=tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        suites.find([], [tmp_path / "no.parquet"], data_dir=tmp_path)
    with pytest.raises(ValueError, match="nothing to evaluate on"):
        suites.find([], [], data_dir=tmp_path)


def test_named_sets_are_those_that_can_be_prepared():
    sources = pytest.importorskip("recipe.trd.data.sources")
    named = {name for sets in suites.SUITES.values() for name in sets} - {"tiny_world"}
    assert named <= set(sources.SOURCES)
