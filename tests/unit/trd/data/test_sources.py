"""Every public set: invented rows in its real columns, from a copy on disk to the parquet file and back."""

import base64
import json
import pickle
import zlib
from pathlib import Path

import pyarrow as pa
import pytest
from omegaconf import OmegaConf
from pyarrow import parquet

from recipe.trd.data import programs
from recipe.trd.data.__main__ import main
from recipe.trd.data.prepared_file import COLUMNS
from recipe.trd.data.sources import SOURCES, TEST, TRAIN
from recipe.trd.rewards import math_reward

DAPO_OPENING = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
DAPO_CLOSING = '\n\nRemember to put your answer on its own line after "Answer:".'
AMO_CLOSING = "After solving the above problem, please output your final answer in the following format:\n### ..."


def math_rows(**columns):
    """Two rows; a column is a pair of values."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def dapo(problem, answer, index):
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": f"{DAPO_OPENING}{problem}{DAPO_CLOSING}", "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": index},
    }


def hidden(tests):
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def livecodebench(question_id, public, private, **other):
    return {
        "question_title": "t",
        "question_content": f"Task {question_id}: print what is asked.",
        "platform": "atcoder",
        "question_id": question_id,
        "contest_id": "c",
        "contest_date": "2025-01-04T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": json.dumps(public),
        "private_test_cases": private,
        "metadata": "{}",
        **other,
    }


def stdin(given, wanted):
    return {"input": given, "output": wanted, "testtype": "stdin"}


TACO_ROW = {
    "solutions": json.dumps(["print(int(input()) + 1)", "print(1 + int(input()))"]),
    "starter_code": "",
    "difficulty": "EASY",
    "raw_tags": "[]",
    "name": None,
    "source": "codeforces",
    "tags": "[]",
    "skill_types": "[]",
    "url": "u",
    "Expected Auxiliary Space": None,
    "time_limit": None,
    "date": None,
    "picture_num": None,
    "memory_limit": None,
    "Expected Time Complexity": None,
}
CALL = {"fn_name": "shift", "inputs": [[[1, 2], 1]], "outputs": [[[2, 3]]]}

RAW = {
    "deepscaler": math_rows(
        problem=("A crate holds 6 rows of 7 jars. How many jars?", "Halve $\\frac{3}{2}$."),
        answer=("42", "\\frac{3}{4}"),
        solution=("Six times seven is $\\boxed{42}$.", ""),
    ),
    "dapo_math": [dapo("A kite has 4 corners. How many corners have 9 kites?", "36", "a1"), dapo("1+6=?", "7", "a2")],
    "openthoughts_math": math_rows(
        source=("olympiads", "olympiads"),
        problem=("Twice a number is 18. Which number?", "Which prime is even?"),
        solution=("Divide by two: $\\boxed{9}$.", "Only $\\boxed{2}$."),
        messages=([{"role": "user", "content": "m"}], [{"role": "user", "content": "m"}]),
        system=("s", "s"),
        conversations=([{"from": "user", "value": "v"}], [{"from": "user", "value": "v"}]),
        generated_token_count=(10, 12),
        correct=(True, True),
        Question=("q", "q"),
        COT_Reason=("r", "r"),
        Answer=("9", "2"),
    ),
    "math": math_rows(
        problem=("Add $5$ and $8$.", "What is $3^3$?"),
        level=("Level 1", "Level 2"),
        type=("Algebra", "Algebra"),
        solution=("The sum is $\\boxed{13}$.", "Three times nine is $\\boxed{27}$."),
    ),
    "gsm8k": math_rows(
        question=(
            "Ada buys 3 pens for 500 dollars each. What does she pay?",
            "Bo has 8 figs and eats 3. How many left?",
        ),
        answer=("3 pens cost 3*500=<<3*500=1500>>1500.\n#### 1,500", "8-3=5\n#### 5"),
    ),
    "taco": [
        {"question": "Read n, print n+1.", "input_output": '{"inputs": ["4\\n"], "outputs": ["5\\n"]}', **TACO_ROW},
        {
            "question": "Shift every value.",
            "input_output": json.dumps(CALL),
            **TACO_ROW,
            "starter_code": "def shift(values, by):",
            "solutions": "[]",
        },
    ],
    "aime24": math_rows(
        id=(60, 61),
        problem=("How many primes are below $12$?", "Sum the digits of $999$."),
        solution=("They are 2, 3, 5, 7, 11. $\\boxed{005}$", "Nine and nine and nine. $\\boxed{027}$"),
        answer=("005", "027"),
        url=("u", "u"),
        year=("2024", "2024"),
    ),
    "aime25": math_rows(problem=("Count the cats: 3+4.", "Count: 5+5."), answer=("7", "10"), id=("0", "1")),
    "hmmt25": math_rows(
        problem_idx=(1, 2),
        problem=("Simplify $\\sqrt{8}$.", "Halve $1$."),
        answer=("$2\\sqrt{2}$", "\\frac{1}{2}"),
        problem_type=(["Algebra"], ["Algebra", "Number Theory"]),
    ),
    "beyond_aime": math_rows(problem=("Ten times ten?", "Ten less one?"), answer=(100, 9)),
    "amo_bench": math_rows(
        question_id=(1, 2),
        prompt=(f"Find all odd primes below 8.\n{AMO_CLOSING}", f"Find $2^5$.\n\n{AMO_CLOSING}"),
        solution=("Try them.", "Double five times."),
        answer=("\\boxed{\\{3,5,7\\}}", "\\boxed{32}"),
        answer_type=("set", "number"),
    ),
    "math500": math_rows(
        problem=("Subtract $4$ from $20$.", "Is $7$ prime? Give its square."),
        solution=("It is $\\boxed{16}$.", "Yes: $\\boxed{49}$."),
        answer=("16", "49"),
        subject=("Algebra", "Prealgebra"),
        level=(1, 2),
        unique_id=("test/algebra/1.json", "test/prealgebra/2.json"),
    ),
    "humaneval_plus": math_rows(
        task_id=("HumanEval/0", "HumanEval/1"),
        prompt=('def twice(x):\n    """Double x."""\n', 'def half(x):\n    """Halve x."""\n'),
        canonical_solution=("    return 2 * x\n", "    return x / 2\n"),
        entry_point=("twice", "half"),
        test=(
            "def check(candidate):\n    assert candidate(2) == 4",
            "def check(candidate):\n    assert candidate(4) == 2",
        ),
    ),
    "mbpp_plus": math_rows(
        task_id=(2, 3),
        code=("def add_one(x):\n    return x + 1", "def neg(x):\n    return -x"),
        prompt=("Write a function that adds one.", "Write a function that negates."),
        source_file=("f", "f"),
        test_imports=([], ["import math"]),
        test_list=(["assert add_one(1) == 2"], ["assert neg(1) == -1"]),
        test=("assert add_one(1) == 2", "assert neg(math.floor(1.5)) == -1"),
    ),
    "livecodebench": [
        livecodebench("abc1", [stdin("1\n", "2\n")], hidden([stdin("3\n", "4\n")])),
        livecodebench(
            "lc2",
            [{"input": "[1, 2]\n1", "output": "[2, 3]", "testtype": "functional"}],
            hidden([{"input": "[]\n4", "output": "[]", "testtype": "functional"}]),
            starter_code="class Solution:\n    def shift(self, values, by):",
            metadata='{"func_name": "shift"}',
        ),
    ],
}
GROUND_TRUTH = {
    "deepscaler": ["42", "\\frac{3}{4}"],
    "dapo_math": ["36", "7"],
    "openthoughts_math": ["9", "2"],
    "math": ["13", "27"],
    "gsm8k": ["1500", "5"],
    "aime24": ["005", "027"],
    "aime25": ["7", "10"],
    "hmmt25": ["2\\sqrt{2}", "\\frac{1}{2}"],
    "beyond_aime": ["100", "9"],
    "amo_bench": ["\\{3,5,7\\}", "32"],
    "math500": ["16", "49"],
}
NO_REFERENCE = {"dapo_math", "aime25", "hmmt25", "beyond_aime", "livecodebench"}


def save(rows, path):
    """Rows in the format that the set has on the hub."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        parquet.write_table(pa.Table.from_pylist(rows), path)


SUFFIX = {"taco": ".arrow", "livecodebench": ".jsonl", "aime25": ".jsonl", "math500": ".jsonl", "deepscaler": ".json"}


@pytest.fixture
def prepared(tmp_path):
    """Prepare a set from its invented rows; rows of its first split, in the order of the source, and the card."""

    def run(name, *extra, rows=None):
        source = SOURCES[name]
        split = next(iter(source.splits))
        file = tmp_path / "copy" / f"{source.splits[split]}-00000-of-00001{SUFFIX.get(name, '.parquet')}"
        save(RAW[name] if rows is None else rows, file)
        arguments = ["prepare", name, "--from", str(tmp_path / "copy"), "--out", str(tmp_path / "out")]
        arguments += ["--splits", split, *extra]
        if split == TRAIN:
            arguments += ["--against", "none", "--val-size", "0"]
        assert main(arguments) == 0
        folder = tmp_path / "out" / name
        written = parquet.read_table(folder / f"{split}.parquet")
        assert written.schema.equals(COLUMNS)
        ordered = sorted(written.to_pylist(), key=lambda row: row["extra_info"]["index"])
        return ordered, json.loads((folder / "card.json").read_text())

    return run


@pytest.mark.parametrize("name", SOURCES)
def test_rows_become_verls(prepared, name):
    rows, card = prepared(name)
    split = next(iter(SOURCES[name].splits))
    assert [row["extra_info"]["index"] for row in rows] == [0, 1]
    assert {row["extra_info"]["split"] for row in rows} == {split}
    assert {row["data_source"] for row in rows} == {SOURCES[name].data_source}
    assert {row["ability"] for row in rows} == {SOURCES[name].kind}
    assert [message["role"] for row in rows for message in row["prompt"]] == ["user", "user"]
    for row in rows:
        assert row["prompt"][0]["content"].startswith(row["extra_info"]["problem"] + "\n\n")
    references = [row["reference_solution"] for row in rows]
    assert (references[0] is None) is (name in NO_REFERENCE)
    part = card["splits"][split]
    assert (part["read"], part["dropped"], part["written"]) == (2, {}, {f"{split}.parquet": 2})
    assert part["with_reference"] == sum(reference is not None for reference in references)


@pytest.mark.parametrize("name", SOURCES)
def test_the_preflight_of_a_run_accepts_the_file(prepared, name, tmp_path):
    from recipe.trd.preflight import data_files

    prepared(name)
    (file,) = (tmp_path / "out" / name).glob("*.parquet")
    files = {"train_files": str(file), "val_files": [str(file)]}
    data = {"prompt_key": "prompt", "reward_fn_key": "data_source", **files}
    data_files.check_columns(OmegaConf.create({"data": data}))


@pytest.mark.parametrize("name", GROUND_TRUTH)
def test_the_reward_grades_the_answers(prepared, name):
    rows, _ = prepared(name)
    truths = [row["reward_model"]["ground_truth"] for row in rows]
    assert truths == GROUND_TRUTH[name]
    for row, truth in zip(rows, truths, strict=True):
        right = math_reward.compute_score(row["data_source"], f"So it is \\boxed{{{truth}}}.", truth)
        wrong = math_reward.compute_score(row["data_source"], "So it is \\boxed{12345}.", truth)
        assert (right["score"], wrong["score"]) == (1.0, 0.0)


def test_every_set_has_invented_rows():
    assert set(RAW) == set(SOURCES)
    assert set(GROUND_TRUTH) == {name for name, source in SOURCES.items() if source.kind == "math"}


def test_dapo_loses_its_instruction_and_gets_ours(prepared):
    rows, _ = prepared("dapo_math")
    assert rows[1]["extra_info"] == {"split": "train", "index": 1, "id": "a2", "problem": "1+6=?"}
    assert "Answer:" not in rows[1]["prompt"][0]["content"]
    assert rows[1]["prompt"][0]["content"].endswith("put the final answer inside \\boxed{}.")


def test_amo_bench_keeps_its_own_instruction(prepared):
    rows, _ = prepared("amo_bench")
    assert rows[0]["extra_info"]["problem"] == "Find all odd primes below 8."
    assert rows[0]["prompt"][0]["content"] == f"Find all odd primes below 8.\n\n{AMO_CLOSING}"


def flagged_rows(name):
    last = {"openthoughts_math": {"correct": False}, "amo_bench": {"answer_type": "description"}}[name]
    return [RAW[name][0], RAW[name][1] | last]


@pytest.mark.parametrize("name", ["openthoughts_math", "amo_bench"])
def test_rows_that_the_set_itself_doubts(prepared, name):
    rows, card = prepared(name, rows=flagged_rows(name))
    (reason,) = card["splits"][next(iter(SOURCES[name].splits))]["dropped"]
    assert len(rows) == 1
    assert reason in ("its solution is marked as wrong by the set", "its answer is a description, which no rule grades")
    kept, card = prepared(name, "--keep-flagged", rows=flagged_rows(name))
    assert len(kept) == 2
    assert card["settings"]["keep_flagged"] is True


def test_taco_tests_are_in_verls_two_forms(prepared):
    rows, _ = prepared("taco")
    program, function = (json.loads(row["reward_model"]["ground_truth"]) for row in rows)
    assert program == {"inputs": ["4\n"], "outputs": ["5\n"]}
    assert function == {"fn_name": "shift", "inputs": ["[1, 2]\n1"], "outputs": ["[[2, 3]]"]}
    assert rows[0]["reference_solution"] == "print(int(input()) + 1)"
    assert rows[1]["reference_solution"] is None
    assert "reads the input from standard input" in rows[0]["prompt"][0]["content"]
    assert "def shift(values, by):" in rows[1]["prompt"][0]["content"]


@pytest.mark.parametrize(("right", "program"), [(True, "return [v + by for v in values]"), (False, "return values")])
def test_verls_grader_of_programs_reads_our_tests(prepared, right, program):
    from verl.utils.reward_score import prime_code

    rows, _ = prepared("taco")
    code = f"```python\ndef shift(values, by):\n    {program}\n```"
    # As verl calls it; the score is the share of the tests that pass.
    score, _ = prime_code.compute_score(code, rows[1]["reward_model"]["ground_truth"], continuous=True)
    assert score == float(right)


def test_livecodebench_has_public_and_hidden_tests(prepared):
    rows, _ = prepared("livecodebench")
    program, function = (json.loads(row["reward_model"]["ground_truth"]) for row in rows)
    assert program == {"inputs": ["1\n", "3\n"], "outputs": ["2\n", "4\n"]}
    assert function == {"inputs": ["[1, 2]\n1", "[]\n4"], "outputs": ["[2, 3]", "[]"], "fn_name": "shift"}
    assert [row["extra_info"]["id"] for row in rows] == ["abc1", "lc2"]
    cut, _ = prepared("livecodebench", "--max-tests", "1")
    assert json.loads(cut[0]["reward_model"]["ground_truth"]) == {"inputs": ["1\n"], "outputs": ["2\n"]}


class Dangerous:
    def __reduce__(self):
        return Path.touch, (Path("made by a pickle"),)


def test_pickle_that_is_more_than_text_is_not_run(prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evil = base64.b64encode(zlib.compress(pickle.dumps(Dangerous()))).decode()
    rows, card = prepared("livecodebench", rows=[RAW["livecodebench"][0], livecodebench("x", [], evil)])
    assert [row["extra_info"]["id"] for row in rows] == ["abc1"]
    assert card["splits"][TEST]["dropped"] == {"hidden tests cannot be read": 1}
    assert not Path("made by a pickle").exists()


@pytest.mark.parametrize("name", ["humaneval_plus", "mbpp_plus"])
def test_asserts_hold_for_the_reference_and_for_nothing_else(prepared, name):
    rows, _ = prepared(name)
    for row in rows:
        (check,) = json.loads(row["reward_model"]["ground_truth"])["assert_case"]
        exec(f"{row['reference_solution']}\n\n{check}", {})
        names = ("twice", "half", "add_one", "neg")
        broken = "\n".join(f"def {function}(*_): return None" for function in names)
        with pytest.raises(AssertionError):
            exec(f"{broken}\n\n{check}", {})
        assert row["prompt"][0]["content"].endswith(programs.FUNCTION_INSTRUCTION)


def test_mbpp_shows_one_of_its_simple_tests(prepared):
    rows, _ = prepared("mbpp_plus")
    assert "assert neg(1) == -1" in rows[1]["prompt"][0]["content"]
    assert "math.floor" not in rows[1]["prompt"][0]["content"]
