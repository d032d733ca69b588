import re

import jinja2
import pytest

from recipe.trd.rewrite import prompts

NAMED = sorted(path.stem for path in prompts.TEMPLATE_DIR.glob("*.jinja"))
REFINE = [name for name in NAMED if name.endswith("refine")]
PRIVILEGED = [name for name in NAMED if name.endswith("privileged")]


@pytest.mark.parametrize("name", NAMED)
def test_named_templates_show_the_problem_and_the_reference(name):
    text = prompts.render(name, problem="PROBLEM", y_o="ROLLOUT", y_star="REFERENCE")
    assert "PROBLEM" in text
    assert "REFERENCE" in text
    assert "{{" not in text
    assert "{%" not in text


@pytest.mark.parametrize("name", REFINE)
def test_refine_templates_show_the_rollout_once_and_need_no_reference(name):
    text = prompts.render(name, problem="PROBLEM", y_o="ROLLOUT")
    assert text.count("ROLLOUT") == 1
    assert "None" not in text
    assert "eference" not in text


@pytest.mark.parametrize("name", PRIVILEGED)
def test_privileged_templates_show_the_rollout_only_where_they_rewrite_it(name):
    text = prompts.render(name, problem="PROBLEM", y_o="ROLLOUT", y_star="REFERENCE")
    assert text.count("ROLLOUT") == int("refine" in name)
    assert text.count("REFERENCE") == text.count("PROBLEM") == 1
    assert text.index("PROBLEM") < text.index("REFERENCE")


@pytest.mark.parametrize("name", [name for name in NAMED if not name.startswith("tiny")])
def test_templates_ask_for_the_answer_where_the_reward_looks_for_it(name):
    text = prompts.render(name, problem="x", y_o="y", y_star="z")
    assert text.endswith("in one ```python block." if name.startswith("code") else "inside \\boxed{}.")


@pytest.mark.parametrize("name", [name for name in PRIVILEGED if not name.startswith("tiny")])
def test_privileged_templates_forbid_to_speak_of_the_reference(name):
    text = prompts.render(name, problem="x", y_o="y", y_star="z").lower()
    assert re.search(r"nothing may say or hint that a reference (or an earlier version )?exists", text)


@pytest.mark.parametrize(
    "content", ["a {{ y_star }} b", "{% raw %}", "<b>&amp;</b>", "  indented\n\n\ttabs ", "\\frac{1}{2}"]
)
def test_texts_are_inserted_as_they_are(content):
    text = prompts.render("tiny_refine", problem=content, y_o="y")
    assert f"Problem: {content}\n" in text


def test_path_of_a_template_of_the_users_own(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("{{ problem }} / {{ y_o }}")
    assert prompts.template_path(str(path)) == path
    assert prompts.render(str(path), problem="1", y_o="2") == "1 / 2"


@pytest.mark.parametrize("name", ["tiny_refin", "nowhere/mine.jinja", ""])
def test_unknown_template_is_refused_with_the_names_that_exist(name):
    with pytest.raises(ValueError, match=r"trd\.rewrite\.template=.*math_refine.*tiny_refine.*\.jinja") as caught:
        prompts.template_path(name)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_variable_that_a_template_has_no_value_for_is_an_error(tmp_path):
    path = tmp_path / "typo.jinja"
    path.write_text("{{ problm }}")
    with pytest.raises(jinja2.UndefinedError, match="problm"):
        prompts.render(str(path), problem="1", y_o="2")
