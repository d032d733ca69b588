r"""Rows of mathematics sets to items: where problem, answer and solution are, and which answers no rule can grade."""

import re
from dataclasses import replace

from recipe.trd.data.items import FlaggedRow, Item, Row, UnusableRow, optional_text, scalar_text, text
from recipe.trd.rewards.math_reward import last_boxed

# DAPO asks for a line "Answer: ..." around every problem; we ask for a box instead.
_DAPO_OPENING = re.compile(r"\ASolve the following math problem step by step\.[^\n]*\n+")
_DAPO_CLOSING = re.compile(r"\n+Remember to put your answer on its own line after \"Answer:\"\.?\s*\Z")
# AMO-Bench says at the end of each problem which form its answer has to have.
_AMO_INSTRUCTION = re.compile(r"\n\s*(?=After solving the above problem, please output)")


def clean_answer(answer: str) -> str:
    r"""An answer without the box and the dollar signs around all of it.

    Raises:
        UnusableRow: nothing is left.
    """
    answer = answer.strip()
    # Twice: a box may be inside dollar signs or around them.
    for _ in range(2):
        if len(answer) > 1 and answer[0] == answer[-1] == "$" and "$" not in answer.strip("$"):
            answer = answer.strip("$").strip()
        if answer.startswith("\\boxed{") and answer == f"\\boxed{{{last_boxed(answer)}}}":
            answer = last_boxed(answer)
    if not answer:
        raise UnusableRow("empty answer")
    return answer


def math_row(
    row: Row,
    *,
    problem: str = "problem",
    answer: str | None = "answer",
    solution: str | None = "solution",
    id_column: str | None = None,
) -> Item:
    r"""Item from columns of these names; without a column of answers, the answer is the solution's last box.

    Raises:
        UnusableRow: no problem, or no answer.
    """
    worked = optional_text(row, solution)
    if answer is not None and answer in row:
        found = scalar_text(row, answer, "answer")
    elif worked is not None:
        found = last_boxed(worked)
        if not found:
            raise UnusableRow("no boxed answer in the solution")
    else:
        raise UnusableRow("neither an answer nor a solution")
    if worked is not None and worked.strip("$ .") == f"\\boxed{{{last_boxed(worked)}}}":
        # Only the boxed answer: no solution to learn from.
        worked = None
    name = "" if id_column is None or row.get(id_column) is None else str(row[id_column])
    return Item(text(row, problem, "problem"), clean_answer(found), worked, name)


def gsm8k_row(row: Row) -> Item:
    """GSM8K: the answer comes after `####` at the end of the solution; thousands separators are removed.

    Raises:
        UnusableRow: no problem, or no `####`.
    """
    worked, mark, answer = text(row, "answer", "answer").rpartition("####")
    if not mark:
        raise UnusableRow("no #### before the answer")
    solution = worked.strip() or None
    return Item(text(row, "question", "problem"), clean_answer(answer.replace(",", "")), solution)


def dapo_row(row: Row) -> Item:
    """DAPO-Math-17k: already in verl's format; its instructions are removed.

    Raises:
        UnusableRow: no problem, or no answer.
    """
    problem = _DAPO_CLOSING.sub("", _DAPO_OPENING.sub("", text(row, "prompt", "problem"))).strip()
    reward_model, extra_info = row.get("reward_model"), row.get("extra_info")
    if not problem:
        raise UnusableRow("empty problem")
    if not isinstance(reward_model, dict):
        raise UnusableRow("no column reward_model")
    answer = clean_answer(scalar_text(reward_model, "ground_truth", "answer"))
    return Item(problem, answer, id=str(extra_info.get("index") or "") if isinstance(extra_info, dict) else "")


def openthoughts_row(row: Row) -> Item:
    """OPSD's OpenThoughts set: rows whose recorded solution missed the answer are marked so.

    Raises:
        UnusableRow: no problem, or no answer.
        FlaggedRow: `correct` is false.
    """
    item = math_row(row, answer="Answer")
    if str(row.get("correct", True)).lower() == "false":
        raise FlaggedRow("its solution is marked as wrong by the set", item)
    return item


def amo_row(row: Row) -> Item:
    """AMO-Bench: each problem brings its own instruction; answers that are descriptions need a judge, not a rule.

    Raises:
        UnusableRow: no problem, or no answer.
        FlaggedRow: `answer_type` is `description`.
    """
    item = math_row(row, problem="prompt", id_column="question_id")
    problem, *instruction = _AMO_INSTRUCTION.split(item.problem, maxsplit=1)
    item = replace(item, problem=problem.strip(), instruction=instruction[0].strip() if instruction else None)
    if row.get("answer_type") == "description":
        raise FlaggedRow("its answer is a description, which no rule grades", item)
    return item
