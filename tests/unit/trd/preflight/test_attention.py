"""Which attention a run gets, and which it is refused."""

import pytest
from omegaconf import OmegaConf

from recipe.trd.preflight import attention

PACKED_LIB = "verl_ext.engine.packed_attention"


def config_of(asked=None, *, packs=True, ranks=1, library=None):
    override = {} if asked is None else {"attn_implementation": asked}
    model = {"override_config": override, "use_remove_padding": packs, "external_lib": library}
    config = {"actor_rollout_ref": {"model": model, "actor": {"ulysses_sequence_parallel_size": ranks}}}
    return OmegaConf.create(config)


@pytest.fixture(params=[False, True], ids=["without flash-attn", "with flash-attn"])
def has_flash(request, monkeypatch):
    monkeypatch.setattr(attention, "find_spec", lambda name: object() if request.param else None)
    return request.param


def chosen(config):
    attention.choose(config)
    model = config.actor_rollout_ref.model
    return model.override_config.attn_implementation, model.external_lib


def test_it_is_chosen_by_what_is_there(has_flash, capsys):
    assert chosen(config_of()) == (("flash_attention_2", None) if has_flash else ("packed", PACKED_LIB))
    assert chosen(config_of(packs=False)) == ("flash_attention_2" if has_flash else "sdpa", None)
    assert ("flash-attn is not installed" in capsys.readouterr().out) == (not has_flash)


@pytest.mark.usefixtures("has_flash")
@pytest.mark.parametrize("asked", ["sdpa", "eager", "flex_attention"])
def test_what_is_asked_for_stays(asked):
    assert chosen(config_of(asked)) == (asked, None)


@pytest.mark.usefixtures("has_flash")
def test_packed_is_imported_by_the_workers():
    assert chosen(config_of("packed")) == ("packed", PACKED_LIB)
    assert chosen(config_of("packed", library="mine")) == ("packed", "mine")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"asked": "flash_attention_2"},
            "=flash_attention_2: the package flash-attn is not installed",
        ),
        ({"asked": "packed", "packs": False}, "use_remove_padding=false: it is for packed sequences"),
        ({"ranks": 2}, "ulysses_sequence_parallel_size=2 with attention packed"),
        ({"library": "mine"}, "external_lib=mine: attention without flash-attn comes from"),
    ],
)
def test_what_cannot_work_is_refused(monkeypatch, changes, message):
    monkeypatch.setattr(attention, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        attention.choose(config_of(**changes))
