"""The command as a whole: rows of your own, formats, splits, the card, and what it refuses."""

import json
import re
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from recipe.trd.data import sources
from recipe.trd.data.__main__ import REFUSED, _parser, main, options

ROWS = [{"q": f"What is {number} plus {number}?", "a": 2 * number, "s": f"It is {2 * number}."} for number in range(40)]
CUSTOM = ["prepare", "custom", "--prompt-column", "q", "--answer-column", "a", "--data-source", "mine"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(path):
    return parquet.read_table(path).to_pylist()


def card(folder="data/custom"):
    return json.loads(Path(folder, "card.json").read_text())


def save(name, rows=ROWS):
    frame = pd.DataFrame(rows)
    if name.endswith(".jsonl"):
        frame.to_json(name, orient="records", lines=True)
    elif name.endswith(".json"):
        frame.to_json(name, orient="records")
    elif name.endswith(".csv"):
        frame.to_csv(name, index=False)
    elif name.endswith(".arrow"):
        table = pa.Table.from_pandas(frame)
        with pa.OSFile(name, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        frame.to_parquet(name)
    return name


def refusal(capsys, *arguments):
    """The one line that a user gets."""
    assert main(arguments) == REFUSED
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("nothing prepared: ").rstrip("\n")


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "arrow", "parquet"])
def test_rows_of_your_own_in_every_format(folder, suffix):
    file = save(f"rows.{suffix}")
    assert main([*CUSTOM, "--from", file, "--against", "none", "--solution-column", "s", "--system", "Be brief."]) == 0
    rows = read("data/custom/train.parquet") + read("data/custom/val.parquet")
    assert {row["extra_info"]["index"] for row in rows} == set(range(40))
    for row in rows:
        raw = ROWS[row["extra_info"]["index"]]
        assert row["prompt"][0] == {"role": "system", "content": "Be brief."}
        assert row["prompt"][1]["content"] == f"{raw['q']}\n\n{sources.MATH_INSTRUCTION}"
        assert row["reward_model"] == {"style": "rule", "ground_truth": str(raw["a"])}
        assert row["reference_solution"] == raw["s"]
        assert row["data_source"] == "mine"


def test_programs_of_your_own(folder):
    rows = [{"q": f"Print {n}.", "a": json.dumps({"assert_case": [f"assert f() == {n}"]})} for n in (1, 2, 3)]
    save("rows.jsonl", [*rows, {"q": "Print 4.", "a": "not JSON"}])
    extra = ["--kind", "code", "--against", "none", "--val-size", "1", "--instruction", "", "--name", "programs"]
    assert main([*CUSTOM, "--from", "rows.jsonl", *extra]) == 0
    (row,) = read("data/programs/val.parquet")
    assert row["ability"] == "code"
    assert row["prompt"][0]["content"] == row["extra_info"]["problem"]
    assert "assert_case" in json.loads(row["reward_model"]["ground_truth"])
    assert card("data/programs")["splits"]["train"]["dropped"] == {"tests cannot be read as JSON": 1}


def test_malformed_rows_are_counted_by_reason(folder):
    lines = [json.dumps(row) for row in ROWS[:10]]
    lines += ["{broken", "[1, 2]", '{"q": "", "a": 1}', '{"q": 5, "a": 1}', '{"q": "No answer?", "a": null}']
    lines += ['{"q": "True?", "a": true}', '{"a": 1}', '{"q": [{"content": "x"}, {"content": "y"}], "a": 1}']
    (folder / "rows.jsonl").write_text("\n".join(lines))
    assert main([*CUSTOM, "--from", "rows.jsonl", "--against", "none"]) == 0
    part = card()["splits"]["train"]
    assert part["dropped"] == {
        "answer is not text": 1,
        "empty answer": 1,
        "empty problem": 1,
        "no column q": 1,
        "not a row but a single value or a broken line": 2,
        "problem is a conversation of several messages": 1,
        "problem is not text": 1,
    }
    assert part["read"] == 18
    assert part["written"] == {"val.parquet": 1, "train.parquet": 9}


def test_seed_decides_the_order_and_nothing_else_does(folder):
    save("rows.csv")
    orders = {}
    for run, seed in enumerate(("0", "0", "1")):
        out = f"out{run}"
        assert main([*CUSTOM, "--from", "rows.csv", "--against", "none", "--out", out, "--seed", seed]) == 0
        orders[run] = [row["extra_info"]["index"] for row in read(f"{out}/custom/train.parquet")]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != sorted(orders[0])


def test_validation_rows_are_no_training_rows(folder):
    save("rows.csv")
    arguments = [*CUSTOM, "--from", "rows.csv", "--against", "none", "--max-rows", "30", "--val-size", "12"]
    assert main(arguments) == 0
    train, val = (
        {row["extra_info"]["index"] for row in read(f"data/custom/{name}.parquet")} for name in ("train", "val")
    )
    assert (len(train), len(val), train & val) == (18, 12, set())
    assert card()["splits"]["train"]["dropped"] == {"beyond the first 30 after shuffling": 10}


def test_file_of_an_earlier_preparation_does_not_stay(folder):
    save("rows.csv")
    assert main([*CUSTOM, "--from", "rows.csv", "--against", "none"]) == 0
    assert (folder / "data/custom/val.parquet").exists()
    assert main([*CUSTOM, "--from", "rows.csv", "--against", "none", "--val-size", "0"]) == 0
    assert not (folder / "data/custom/val.parquet").exists()


def test_long_prompts_are_left_out_and_counted(folder, tokenizer):
    tokenizer.save_pretrained("model")
    long = {"q": "Count. " * 100, "a": 1, "s": ""}
    save("rows.jsonl", [*ROWS, long])
    limits = ["--tokenizer", "model", "--max-prompt-length", "200"]
    assert main([*CUSTOM, "--from", "rows.jsonl", "--against", "none", *limits]) == 0
    part = card()["splits"]["train"]
    assert part["dropped"] == {"prompt longer than 200 tokens": 1}
    assert sum(part["written"].values()) == 40
    assert 0 < part["prompt_tokens"]["median"] <= part["prompt_tokens"]["max"] <= 200


def math500(*problems):
    return [
        {"problem": text, "solution": "\\boxed{1}", "answer": "1", "unique_id": str(number)}
        for number, text in enumerate(problems)
    ]


def test_training_rows_are_compared_with_prepared_sets(folder):
    save("bench.jsonl", math500(ROWS[3]["q"], ROWS[3]["q"].upper(), ROWS[5]["q"]))
    assert main(["prepare", "math500", "--from", "bench.jsonl"]) == 0
    # Evaluation sets keep every row, copies too.
    assert len(read("data/math500/test.parquet")) == 3
    save("rows.jsonl")
    against = ["--against", "math500,data/math500/test.parquet"]
    assert main([*CUSTOM, "--from", "rows.jsonl", *against]) == 0
    part = card()["splits"]["train"]
    assert part["dropped"] == {"repeats a problem of math500": 2}
    assert [(found["index"], found["id"], found["overlap"]) for found in part["matches"]] == [
        (3, "0", 1.0),
        (5, "2", 1.0),
    ]
    assert card()["compared_with"] == {"math500": 3, "data/math500/test.parquet": 3}


def test_sets_with_both_splits_are_compared_with_their_own_test(folder):
    copy = folder / "copy" / "main"
    copy.mkdir(parents=True)
    rows = [{"question": f"How many are {n} and {n}?", "answer": f"Add.\n#### {2 * n}"} for n in range(20)]
    save(str(copy / "train-00000-of-00001.parquet"), rows)
    save(str(copy / "test-00000-of-00001.parquet"), rows[:4])
    (folder / "copy" / "socratic").mkdir()
    save(str(folder / "copy" / "socratic" / "train-00000-of-00001.parquet"), rows)
    names = [name for name in sources.EVALUATION_SETS["math"] if name != "gsm8k"]
    assert main(["prepare", "gsm8k", "--from", "copy", "--against", "none", "--out", "plain"]) == 0
    assert card("plain/gsm8k")["splits"]["train"]["dropped"] == {}
    for name in names:
        data = folder / "data" / name
        data.mkdir(parents=True)
        parquet.write_table(parquet.read_table("plain/gsm8k/test.parquet").slice(0, 0), data / "test.parquet")
    assert main(["prepare", "gsm8k", "--from", "copy"]) == 0
    assert card("data/gsm8k")["splits"]["train"]["read"] == 20
    assert card("data/gsm8k")["splits"]["train"]["dropped"] == {"repeats a problem of gsm8k": 4}
    assert len(read("data/gsm8k/test.parquet")) == 4


def test_folder_with_one_set_in_two_formats_is_read_once(folder):
    (folder / "copy").mkdir()
    rows = math500("One?", "Two?")
    save("copy/test.jsonl", rows)
    save("copy/test-00000-of-00001.parquet", rows)
    (folder / "copy" / "dataset_info.json").write_text("{}")
    assert main(["prepare", "math500", "--from", "copy"]) == 0
    assert len(read("data/math500/test.parquet")) == 2


def test_printed_card_is_the_saved_one(folder, capsys):
    save("rows.csv", [*ROWS, ROWS[0]])
    assert main([*CUSTOM, "--from", "rows.csv", "--against", "none"]) == 0
    printed = capsys.readouterr().out
    saved = (folder / "data/custom/card.md").read_text()
    assert saved in printed
    for line in ("| read | 41 |", "| left out: copy of an earlier row | 1 |", "| **val.parquet** | 4 |"):
        assert line in saved
    assert "compared with evaluation problems of: no set" in saved


def test_list_prints_every_set(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert all(f"| {name} | {source.hub} |" in printed for name, source in sources.SOURCES.items())


def test_set_that_cannot_be_had_comes_with_the_way_out(folder, capsys):
    message = refusal(capsys, "prepare", "beyond_aime")
    assert message.startswith("beyond_aime: ByteDance-Seed/BeyondAIME could not be had from the hub (")
    assert "`hf download ByteDance-Seed/BeyondAIME --repo-type dataset --local-dir DIR`; then add --from DIR" in message


@pytest.mark.parametrize(
    ("name", "tried"),
    [
        ("gsm8k", [("openai/gsm8k", "main", "train")]),
        ("taco", [("BAAI/TACO", "ALL", "train"), ("arrow", "hf://datasets/BAAI/TACO/train/*.arrow", "train")]),
        ("livecodebench", [("json", "hf://datasets/livecodebench/code_generation_lite/test*.jsonl", "test")]),
    ],
)
def test_what_is_asked_of_the_hub(folder, capsys, monkeypatch, name, tried):
    asked = []

    def load(path, name=None, data_files=None, split=None):
        asked.append((path, name or data_files[split], split))
        raise ConnectionError("no network\nand much more")

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert "(no network)" in refusal(capsys, "prepare", name)
    assert asked == tried


def test_rows_of_the_hub_are_read_like_those_of_a_copy(folder, monkeypatch):
    rows = datasets.Dataset.from_list(math500("One?", "Two?"))
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name, split: rows)
    assert main(["prepare", "math500"]) == 0
    assert [row["extra_info"]["problem"] for row in read("data/math500/test.parquet")] == ["One?", "Two?"]
    assert card("data/math500")["splits"]["test"]["origin"] == "the hub"
    # Evaluation sets that are not prepared come from there too.
    save("rows.jsonl", [*ROWS, {"q": "one", "a": 1}])
    assert main([*CUSTOM, "--from", "rows.jsonl", "--against", "math500", "--out", "elsewhere"]) == 0
    assert card("elsewhere/custom")["splits"]["train"]["dropped"] == {"repeats a problem of math500": 1}


def test_evaluation_sets_that_cannot_be_had_are_all_named(folder, capsys):
    message = refusal(capsys, *CUSTOM, "--from", save("rows.csv"), "--against", "aime24,aime25")
    assert "aime24, aime25 are neither prepared in data nor to be had from the hub" in message
    assert "--against none" in message
    assert not (folder / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "nowhere.jsonl"], "--from nowhere.jsonl: no such file or folder"),
        (["--from", "empty"], "--from empty: no file with the suffix"),
        (["--from", "rows.txt"], "--from rows.txt: cannot read .txt"),
        (["--from", "fake.parquet"], "--from fake.parquet: cannot be read as parquet"),
        (["--from", "nothing.jsonl"], "custom, nothing.jsonl: no rows"),
        (["--from", "rows.csv", "--prompt-column", "question"], "none of 40 rows can be used: no column question (40)"),
        (["--from", "rows.csv", "--val-size", "40"], "custom: 40 rows are left, and --val-size takes 40"),
        (["--from", "rows.csv", "--max-prompt-length", "9"], "--max-prompt-length counts tokens: it needs --tokenizer"),
        (["--from", "rows.csv", "--tokenizer", "empty"], "--tokenizer empty: none can be read there"),
        (["--from", "rows.csv", "--splits", "test"], "--splits: custom has train, not test"),
        (
            ["--from", "rows.csv", "--against", "math50"],
            "--against math50: neither a prepared file (*.parquet) nor one",
        ),
        (["--from", "rows.csv", "--against", "fake.parquet"], "fake.parquet was not written by"),
        (["--from", "rows.csv", "--min-overlap", "2"], "--min-overlap=2.0 must be in [0, 1]"),
        (["--from", "rows.csv", "--ngram", "0"], "--ngram=0 must be at least 1"),
        (["--from", "rows.csv", "--template-kwargs", "[]"], "--template-kwargs []: not a mapping"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(folder, capsys, arguments, message):
    save("rows.csv")
    (folder / "empty").mkdir()
    (folder / "rows.txt").write_text("x")
    (folder / "fake.parquet").write_text("x")
    (folder / "nothing.jsonl").write_text("")
    against = [] if "--against" in arguments else ["--against", "none"]
    assert message in refusal(capsys, *CUSTOM, *against, *arguments)


def test_custom_says_what_it_needs(folder, capsys):
    message = refusal(capsys, "prepare", "custom", "--prompt-column", "q")
    assert message == "custom needs --from, --answer-column, --data-source"


def test_columns_of_a_known_set_are_known(folder, capsys):
    message = refusal(capsys, "prepare", "gsm8k", "--answer-column", "a")
    assert message == "columns and names are those of gsm8k; answer go with `prepare custom`"


def test_folder_without_the_wanted_split(folder, capsys):
    (folder / "copy").mkdir()
    save("copy/train.parquet", [{"question": "q?", "answer": "#### 1"}])
    message = refusal(capsys, "prepare", "gsm8k", "--from", "copy")
    assert message.startswith("--from copy: no file is named after the split 'test' (there are train.parquet)")


def test_documentation_has_the_table_that_is_printed(capsys):
    assert main(["list"]) == 0
    text = (Path(__file__).parents[4] / "docs" / "data.md").read_text()
    assert capsys.readouterr().out in text


def test_every_command_of_the_documentation_parses():
    text = (Path(__file__).parents[4] / "docs" / "data.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^    python -m recipe\.trd\.data (.*)$", text, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        assert options(_parser().parse_args(command.split())).name
