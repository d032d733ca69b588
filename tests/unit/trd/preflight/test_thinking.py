"""Thinking switches: whose chat template they reach, and whether a response begins at one place for both sides."""

import asyncio
import copy
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from verl.utils.config import omega_conf_to_dataclass

from recipe.trd.preflight import thinking
from recipe.trd.rewrite.chat_template import opening, reacts
from recipe.trd.rewrite.teacher import TeacherClient

CONFIGS = Path(__file__).parents[4] / "configs"
SYSTEM = {"role": "system", "content": "Answer in one line."}
PROBLEM = {"role": "user", "content": "12+34=?"}
MARKER = "<|im_start|>assistant\n"
EMPTY = "<think>\n\n</think>\n\n"
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
HYBRID = (
    TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
THINKER = TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
"""Hybrid as Qwen3 is; thinking always, as the Thinking models of July 2025."""


@pytest.fixture
def speak(tokenizer):
    """The tokenizer with a chat template; without one it is plain ChatML."""

    def make(template=None):
        made = copy.deepcopy(tokenizer)
        made.chat_template = template or tokenizer.chat_template
        return made

    return make


@cache
def composed(*overrides):
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return compose("trd_trainer", overrides=["model=tiny", "data=tiny_world", "cluster=cpu", *overrides])


def compose_run(*overrides):
    return copy.deepcopy(composed(*overrides))


def trd_of(config):
    return omega_conf_to_dataclass(config.trd)


def test_what_lies_between_question_and_response(speak):
    plain, hybrid, thinker = speak(), speak(HYBRID), speak(THINKER)
    assert opening(plain, {}) == opening(hybrid, {}) == MARKER
    assert opening(hybrid, {"enable_thinking": True}) == MARKER
    assert opening(hybrid, {"enable_thinking": False}) == MARKER + EMPTY
    assert opening(thinker, {}) == f"{MARKER}<think>\n"
    assert [reacts(each, {}) for each in (plain, hybrid, thinker)] == [False, True, False]


def test_the_students_switch_is_verls_own(speak):
    config = compose_run("trd.student_thinking=false")
    thinking.set_for_student(config, trd_of(config), speak(HYBRID))
    assert config.data.apply_chat_template_kwargs == {"enable_thinking": False}
    thinking.set_for_student(config, trd_of(config), speak(HYBRID))  # a second time changes nothing
    untouched = compose_run()
    thinking.set_for_student(untouched, trd_of(untouched), speak(HYBRID))
    assert untouched.data.apply_chat_template_kwargs == {}


def test_the_students_switch_against_verls(speak):
    config = compose_run("trd.student_thinking=false", "+data.apply_chat_template_kwargs.enable_thinking=true")
    with pytest.raises(ValueError, match=r"^trd\.student_thinking=False contradicts .*enable_thinking=True.*leave one"):
        thinking.set_for_student(config, trd_of(config), speak(HYBRID))


@pytest.mark.parametrize("template", [None, THINKER])
def test_a_switch_that_the_template_does_not_know(speak, template):
    config = compose_run("trd.student_thinking=false")
    with pytest.raises(ValueError, match=r"^trd\.student_thinking=False: the chat template .* does not know"):
        thinking.set_for_student(config, trd_of(config), speak(template))
    for method, role in (("opsd", "teacher"), ("trd_opd", "teacher"), ("trd_opd", "rewrite")):
        trd = trd_of(compose_run(f"method={method}", f"trd.{role}_thinking=true"))
        with pytest.raises(ValueError, match=rf"^trd\.{role}_thinking=True: the chat template .* does not know"):
            thinking.check_teacher(trd, {}, student=speak(HYBRID), teacher=speak(template))


def test_a_template_of_verls_own_counts(speak):
    config = compose_run("trd.student_thinking=true")
    OmegaConf.update(config, "data.apply_chat_template_kwargs", {"chat_template": HYBRID}, force_add=True)
    thinking.set_for_student(config, trd_of(config), speak())
    assert config.data.apply_chat_template_kwargs.enable_thinking is True


def warnings_of(capsys, *overrides, student, teacher, **template_kwargs):
    trd = trd_of(compose_run(*overrides))
    thinking.check_teacher(trd, template_kwargs, student=student, teacher=teacher)
    return capsys.readouterr().out.splitlines()


METHODS = ["method=trd_opd", "method=opsd", "method=trd_opsd", "method=opd_forward_kl", "method=sft_y_r"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("template", [None, HYBRID, THINKER])
@pytest.mark.parametrize("kwargs", [{}, {"enable_thinking": False}, {"enable_thinking": True}], ids=str)
def test_one_template_begins_alike(speak, capsys, method, template, kwargs):
    # The rewrite thinks not unless asked: a student that does begins elsewhere, which is said.
    lines = warnings_of(capsys, method, student=speak(template), teacher=speak(template), **kwargs)
    thinks = template == HYBRID and kwargs.get("enable_thinking", True)
    expected = ["refine context; trd.rewrite_thinking=True makes them alike"] * (
        thinks and method in {"method=trd_opd", "method=trd_opsd", "method=sft_y_r"}
    )
    assert [line[-len(expected[0]) :] if expected else line for line in lines] == expected


def test_a_rewrite_that_thinks_not_needs_no_switch_in_the_template(speak, capsys):
    assert trd_of(compose_run()).teacher_plan.refine.thinking is False
    assert warnings_of(capsys, "method=trd_opd", student=speak(), teacher=speak(THINKER)) != []
    assert warnings_of(capsys, "method=trd_opd", student=speak(), teacher=speak()) == []


def test_a_model_without_thoughts_and_an_empty_block_begin_alike(speak, capsys):
    # Qwen3-4B-Instruct-2507 and Qwen3-8B: the answer comes at once, behind the marker or behind the empty block.
    switch = ["method=opd_forward_kl", "trd.teacher_thinking=false"]
    assert warnings_of(capsys, *switch, student=speak(), teacher=speak(HYBRID)) == []
    off = {"enable_thinking": False}
    assert warnings_of(capsys, "method=trd_opd", student=speak(HYBRID), teacher=speak(), **off) == []
    (line,) = warnings_of(capsys, "method=opd_forward_kl", student=speak(HYBRID), teacher=speak(THINKER), **off)
    assert "no value of the switch helps" in line


def test_a_teacher_that_expects_thoughts_of_a_model_without_them_is_said(speak, capsys):
    sides = {"student": speak(), "teacher": speak(HYBRID)}
    (line,) = warnings_of(capsys, "method=opd_forward_kl", **sides)
    assert line.endswith("if the student writes none, set trd.teacher_thinking=False")
    # Not where the response is the teacher's own, nor where thoughts are asked for.
    assert warnings_of(capsys, "method=trd_opd", **sides) == []
    assert warnings_of(capsys, "method=opd_forward_kl", "trd.teacher_thinking=true", **sides) == []


def test_a_difference_that_was_asked_for_is_said(speak, capsys):
    # OPSD's scripts: the student answers at once, the teacher thinks.
    lines = warnings_of(
        capsys,
        *("method=opsd", "experiment=thinking_teacher"),
        student=speak(HYBRID),
        teacher=speak(HYBRID),
        enable_thinking=False,
    )
    (line,) = lines
    assert f"WARNING the first token of a response follows {MARKER + EMPTY!r} in the student's prompt" in line
    assert f"{MARKER!r} in the teacher's privileged context; trd.teacher_thinking=False makes them alike" in line


def test_every_context_is_looked_at(speak, capsys):
    sides = {"student": speak(HYBRID), "teacher": speak(HYBRID)}
    both = ["trd.teacher_thinking=false", "trd.rewrite_thinking=false"]
    for method, contexts in (("trd_opd", ["refine", "vanilla"]), ("trd_opsd", ["privileged", "refine"])):
        lines = warnings_of(capsys, f"method={method}", *both, **sides)
        assert [line.split("teacher's ")[1].split(" context")[0] for line in lines] == contexts
        (line,) = warnings_of(capsys, f"method={method}", both[1], **sides)
        assert "refine context; trd.rewrite_thinking=True makes them alike" in line


def test_a_difference_that_nobody_asked_for_is_refused(speak):
    late = HYBRID.replace("enable_thinking is false", "enable_thinking").replace(
        "enable_thinking is defined and", "not"
    )
    assert opening(speak(late), {}) == MARKER + EMPTY  # off by default
    trd = trd_of(compose_run("method=opd_forward_kl"))
    with pytest.raises(ValueError, match=r"vanilla context: set trd\.teacher_thinking=True, or the other value if it"):
        thinking.check_teacher(trd, {}, student=speak(HYBRID), teacher=speak(late))


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["method=grpo", "trd.teacher_thinking=true"], "trd.teacher_thinking=True"),
        (["method=opd", "trd.teacher_thinking=false"], "trd.teacher_thinking=False"),
        (["method=sft_y_r", "trd.teacher_thinking=false"], "trd.teacher_thinking=False"),
        (["method=trd_opd", "trd.rewrite.fallback=mask", "trd.teacher_thinking=false"], "trd.teacher_thinking=False"),
    ],
)
def test_a_switch_that_nothing_reads(overrides, key):
    with pytest.raises(Exception, match=f"{key}: no response of method .* is written or scored under the context"):
        trd_of(compose_run(*overrides))


def test_a_switch_that_is_no_switch():
    with pytest.raises(Exception, match=r"trd\.student_thinking=maybe must be true, false or null"):
        trd_of(compose_run("trd.student_thinking=maybe"))


@pytest.fixture
def contexts_of(speak):
    """Text of all three contexts of a teacher with the switches."""

    def make(*overrides, template=HYBRID, messages=(SYSTEM, PROBLEM)):
        tokenizer = speak(template)
        trd = trd_of(compose_run("method=trd_opsd", "trd.teacher.context=privileged", *overrides))
        teacher = TeacherClient(
            config=trd,
            client=SimpleNamespace(),
            tokenizer=tokenizer,
            eos_token_ids=[tokenizer.eos_token_id],
            student_eos_token_id=tokenizer.eos_token_id,
            max_response_length=16,
            template_kwargs={"enable_thinking": False},
        )
        made = {
            context.name: teacher.prompt(context, messages, y_o_ids=tokenizer.encode("47"), y_star="12+34=46")
            for context in trd.teacher_plan.possible
        }
        assert set(made) == {"vanilla", "privileged", "refine"}
        return {kind: tokenizer.decode(prompt.ids) for kind, prompt in made.items()}

    return make


@pytest.mark.parametrize(
    ("overrides", "thinks"),
    [
        ([], set()),
        (["trd.teacher_thinking=true"], {"vanilla", "privileged"}),
        (["trd.rewrite_thinking=true"], {"refine"}),
        (["trd.teacher_thinking=true", "trd.rewrite_thinking=false"], {"vanilla", "privileged"}),
    ],
)
def test_switches_reach_their_contexts_and_no_other(contexts_of, overrides, thinks):
    texts = contexts_of(*overrides)
    assert {kind for kind, text in texts.items() if text.endswith(f"<|im_end|>\n{MARKER}")} == thinks
    assert all(text.endswith(MARKER if kind in thinks else MARKER + EMPTY) for kind, text in texts.items())


@pytest.mark.parametrize("template", [None, HYBRID])
def test_the_system_message_survives_in_every_context(contexts_of, template):
    for text in contexts_of(template=template).values():
        assert text.startswith(f"<|im_start|>system\n{SYSTEM['content']}<|im_end|>\n<|im_start|>user\n")
        assert text.count(SYSTEM["content"]) == 1
        assert PROBLEM["content"] in text


def test_the_rewrite_is_asked_for_and_scored_in_one_context(speak):
    tokenizer = speak(HYBRID)
    asked = []

    async def generate(prompt_ids, **_):
        asked.append(prompt_ids)
        raise ConnectionError

    teacher = TeacherClient(
        config=trd_of(compose_run("method=trd_opd", "trd.rewrite_thinking=false")),
        client=SimpleNamespace(generate=generate),
        tokenizer=tokenizer,
        eos_token_ids=[tokenizer.eos_token_id],
        student_eos_token_id=tokenizer.eos_token_id,
        max_response_length=16,
        template_kwargs={},
    )
    rewrite = asyncio.run(teacher.rewrite([PROBLEM], tokenizer.encode("47")))
    assert asked == [rewrite.prompt.ids]
    assert tokenizer.decode(asked[0]).endswith(MARKER + EMPTY)
