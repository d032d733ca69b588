"""Batched sampling with a cache, against sampling one by one."""

import torch

from recipe.trd.tiny_world.batch_sampling import sample
from recipe.trd.tiny_world.supervised_training import Batch, train
from recipe.trd.tiny_world.world_config import TrainingConfig

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [20]]


def greedy(model, prompts, max_response_tokens):
    return sample(
        model,
        prompts,
        max_response_tokens=max_response_tokens,
        temperature=0.0,
        generator=torch.Generator(),
    )


def test_greedy_samples_equal_generate_one_by_one(model):
    expected = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        expected.append(out[0, len(prompt) :].tolist())
    assert greedy(model, PROMPTS, 12) == expected


def test_responses_stop_at_their_own_eos(model):
    eos = model.config.eos_token_id
    responses = [[13, eos], [14, 15, 16, 17, eos], [18, 19, 21, eos]]
    config = TrainingConfig(num_steps=80, batch_size=3, muon_lr=0.02, adamw_lr=3e-3, warmup_steps=10, flat_frac=0.5)
    train(model, next_batch=lambda: Batch(PROMPTS, responses), config=config, on_step=lambda *_: None)
    assert greedy(model, PROMPTS, 12) == responses


def test_samples_follow_the_generator(model):
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return sample(model, PROMPTS, max_response_tokens=12, temperature=1.0, generator=generator)

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)
