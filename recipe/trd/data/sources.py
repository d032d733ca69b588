"""The public sets: where each lies on the hub, and which function turns its rows into items.

Columns and splits were read off the sets' pages on the hub and off public code that loads them; `docs/data.md` has the
table. Sets that come with a loading script, which `datasets` no longer runs, are read from their files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from recipe.trd.data import mathematics, programs
from recipe.trd.data.items import Item, Row

TRAIN, TEST = "train", "test"
MATH, CODE = "math", "code"

MATH_INSTRUCTION = r"Reason step by step, and put the final answer inside \boxed{}."
INSTRUCTIONS = {MATH: MATH_INSTRUCTION, CODE: programs.STDIN_INSTRUCTION}
"""Form of the answer that is asked for, where neither the row nor `--instruction` says it."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A set: where its rows are and what they mean."""

    hub: str
    """Identifier on the hub."""

    row: Callable[[Row], Item]
    """One of its rows to an item; raises `UnusableRow`."""

    data_source: str
    """The column of this name: verl groups its metrics and chooses its own graders by it."""

    splits: Mapping[str, str]
    """Split of the prepared files (`train`, `test`) to the source's."""

    kind: str = MATH
    """`math` or `code`: the default instruction, and the evaluation sets that training rows are compared with."""

    config: str | None = None
    """The hub's configuration, where a set has several."""

    files: Mapping[str, str] = field(default_factory=dict)
    """Split of the prepared files to a pattern of files on the hub, for sets that `datasets` cannot load by name, or
    not in every state of their repository."""

    license: str = "not stated"
    """As its page on the hub says."""

    rows: str = ""
    """Number of rows per split, as its page or its loaders say; the card of a preparation has what was read."""


_TEST_OF_TRAIN = {TEST: "train"}
_TEST = {TEST: "test"}
_BOTH = {TRAIN: "train", TEST: "test"}

SOURCES: dict[str, Source] = {
    "deepscaler": Source(
        hub="agentica-org/DeepScaleR-Preview-Dataset",
        row=mathematics.math_row,
        data_source="deepscaler",
        splits={TRAIN: "train"},
        license="mit",
        rows="40,315",
    ),
    "dapo_math": Source(
        hub="BytedTsinghua-SIA/DAPO-Math-17k",
        row=mathematics.dapo_row,
        data_source="math_dapo",
        splits={TRAIN: "train"},
        license="apache-2.0",
        rows="1.79M (about 17k problems, 100 times each)",
    ),
    "openthoughts_math": Source(
        hub="siyanzhao/Openthoughts_math_30k_opsd",
        row=mathematics.openthoughts_row,
        data_source="openthoughts_math",
        splits={TRAIN: "train"},
        rows="about 30k",
    ),
    "math": Source(
        hub="DigitalLearningGmbH/MATH-lighteval",
        row=partial(mathematics.math_row, answer=None),
        data_source="DigitalLearningGmbH/MATH-lighteval",
        splits=_BOTH,
        license="mit",
        rows="7,500 + 5,000",
    ),
    "gsm8k": Source(
        hub="openai/gsm8k",
        row=mathematics.gsm8k_row,
        data_source="openai/gsm8k",
        splits=_BOTH,
        config="main",
        license="mit",
        rows="7,473 + 1,319",
    ),
    "taco": Source(
        hub="BAAI/TACO",
        row=programs.taco_row,
        data_source="taco",
        splits=_BOTH,
        kind=CODE,
        config="ALL",
        files={TRAIN: "train/*.arrow", TEST: "test/*.arrow"},
        license="apache-2.0",
        rows="25,443 + 1,000",
    ),
    "aime24": Source(
        hub="HuggingFaceH4/aime_2024",
        row=partial(mathematics.math_row, id_column="id"),
        data_source="aime24",
        splits=_TEST_OF_TRAIN,
        rows="30",
    ),
    "aime25": Source(
        hub="math-ai/aime25",
        row=partial(mathematics.math_row, id_column="id"),
        data_source="aime25",
        splits=_TEST,
        rows="30",
    ),
    "hmmt25": Source(
        hub="MathArena/hmmt_feb_2025",
        row=partial(mathematics.math_row, id_column="problem_idx"),
        data_source="hmmt25",
        splits=_TEST_OF_TRAIN,
        license="cc-by-nc-sa-4.0",
        rows="30",
    ),
    "beyond_aime": Source(
        hub="ByteDance-Seed/BeyondAIME",
        row=mathematics.math_row,
        data_source="beyond_aime",
        splits=_TEST,
        license="cc0-1.0",
        rows="100",
    ),
    "amo_bench": Source(
        hub="meituan-longcat/AMO-Bench",
        row=mathematics.amo_row,
        data_source="amo_bench",
        splits=_TEST,
        license="mit",
        rows="50 (39 that a rule grades)",
    ),
    "math500": Source(
        hub="HuggingFaceH4/MATH-500",
        row=partial(mathematics.math_row, id_column="unique_id"),
        data_source="HuggingFaceH4/MATH-500",
        splits=_TEST,
        rows="500",
    ),
    "humaneval_plus": Source(
        hub="evalplus/humanevalplus",
        row=programs.humaneval_row,
        data_source="humaneval_plus",
        splits=_TEST,
        kind=CODE,
        license="apache-2.0",
        rows="164",
    ),
    "mbpp_plus": Source(
        hub="evalplus/mbppplus",
        row=programs.mbpp_row,
        data_source="mbpp_plus",
        splits=_TEST,
        kind=CODE,
        license="apache-2.0",
        rows="378",
    ),
    "livecodebench": Source(
        hub="livecodebench/code_generation_lite",
        row=programs.livecodebench_row,
        data_source="livecodebench",
        splits=_TEST,
        kind=CODE,
        files={TEST: "test*.jsonl"},
        license="cc",
        rows="1,055 (release_v6)",
    ),
}

EVALUATION_SETS = {
    MATH: ("aime24", "aime25", "hmmt25", "beyond_aime", "amo_bench", "math500", "gsm8k"),
    CODE: ("humaneval_plus", "mbpp_plus", "livecodebench"),
}
"""What training rows of a kind are compared with, unless `--against` says otherwise."""


def table() -> list[tuple[str, str, str, str, str]]:
    """Name, identifier on the hub, splits, rows and licence of every set, for `list` and the documentation."""
    return [
        (name, source.hub, " + ".join(source.splits), source.rows, source.license) for name, source in SOURCES.items()
    ]
