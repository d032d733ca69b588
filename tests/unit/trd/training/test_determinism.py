import pytest
from omegaconf import OmegaConf

from recipe.trd.training.determinism import is_wanted, order_by_content, request_seed

SAMPLE = {"raw_prompt": [{"role": "user", "content": "12+34=?"}], "global_steps": 3, "index": 7, "session_id": 0}


def test_a_seed_belongs_to_one_request():
    seed = request_seed(SAMPLE, seed=42, purpose="y_o")
    assert seed == request_seed(dict(SAMPLE, uid="another name"), seed=42, purpose="y_o")
    others = [
        request_seed(SAMPLE, seed=43, purpose="y_o"),
        request_seed(SAMPLE, seed=42, purpose="y_r 0"),
        *(
            request_seed(dict(SAMPLE, **changes), seed=42, purpose="y_o")
            for changes in ({"global_steps": 4}, {"index": 8}, {"session_id": 1}, {"raw_prompt": []})
        ),
    ]
    assert len({seed, *others}) == 1 + len(others)
    assert 0 <= seed < 2**32


def test_the_order_is_that_of_the_content():
    prompts, responses = [[2], [1], [1, 0], [1]], [[5], [6], [4], [3]]
    assert order_by_content(prompts, responses) == [3, 1, 2, 0]
    assert order_by_content([], []) == []


@pytest.mark.parametrize(("servers", "trainer"), [(False, False), (True, False), (False, True)])
def test_either_of_verls_switches_wants_it(servers, trainer):
    fsdp = {"fsdp_config": {"full_determinism": trainer}}
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": {"full_determinism": servers}, "actor": fsdp}})
    assert is_wanted(config) == (servers or trainer)
