"""Contexts of the teacher as text: named Jinja templates, rendered to one user message.

A template is a file `recipe/trd/rewrite/templates/<name>.jinja`, or any path that ends in `.jinja`. It sees `problem`
(the student's last user message), `y_o` (the student's solution as text, end-of-turn token removed) and `y_star` (the
reference solution, or None). Everything about tokens (chat template, truncation, lengths) is in `teacher_prompt.py`.
"""

from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template

TEMPLATE_DIR = Path(__file__).parent / "templates"


def template_path(name: str) -> Path:
    """Path of a named or user-supplied template.

    Raises:
        ValueError: no such template; the message lists the named ones.
    """
    path = Path(name) if name.endswith(".jinja") else TEMPLATE_DIR / f"{name}.jinja"
    if not path.is_file():
        named = ", ".join(sorted(p.stem for p in TEMPLATE_DIR.glob("*.jinja")))
        raise ValueError(
            f"trd.rewrite.template={name!r} is neither a named template ({named}) nor a path to a .jinja file"
        )
    return path


@lru_cache(maxsize=16)
def _load(name: str) -> Template:
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template_path(name).read_text(encoding="utf-8"))


def render(name: str, *, problem: str, y_o: str | None = None, y_star: str | None = None) -> str:
    """Text of the user message that shows the teacher its context.

    Raises:
        ValueError: no such template.
        jinja2.UndefinedError: the template asks for a variable that is not one of problem, y_o, y_star.
    """
    return _load(name).render(problem=problem, y_o=y_o, y_star=y_star)
