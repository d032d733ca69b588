import pytest
import torch

from recipe.trd.tiny_world.supervised_training import Batch, build_model, lr_scale, response_loss, train
from recipe.trd.tiny_world.world_config import ModelConfig, TrainingConfig

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [20]]
RESPONSES = [[13, 14, 15], [16, 17], [18, 19, 21, 22, 23]]


def training_config(num_steps: int) -> TrainingConfig:
    return TrainingConfig(
        num_steps=num_steps, batch_size=3, muon_lr=0.02, adamw_lr=3e-3, warmup_steps=10, flat_frac=0.5
    )


def test_model_has_tied_embeddings_padded_vocabulary_and_wide_heads(model, tokenizer):
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.vocab_size % 16 == 0
    assert 0 <= model.config.vocab_size - len(tokenizer) < 16
    assert model.model.layers[0].self_attn.q_proj.weight.shape == (64, 16)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_same_seed_gives_same_weights(model, tokenizer):
    config = ModelConfig(num_layers=2, hidden_size=16, num_heads=2, head_dim=32, intermediate_size=16)
    twin = build_model(config, tokenizer=tokenizer, max_position_embeddings=64, seed=0)
    other = build_model(config, tokenizer=tokenizer, max_position_embeddings=64, seed=1)
    assert torch.equal(model.lm_head.weight, twin.lm_head.weight)
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)


def test_loss_is_the_mean_over_response_tokens_of_unpadded_samples(model):
    total = torch.zeros(())
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        log_probs = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        for offset, token in enumerate(response):
            total -= log_probs[len(prompt) + offset - 1, token]
    loss = response_loss(model, Batch(PROMPTS, RESPONSES), pad_token_id=0)
    assert loss.item() == pytest.approx(total.item() / sum(map(len, RESPONSES)), rel=1e-5)


def test_loss_does_not_depend_on_the_padding_token(model):
    losses = [response_loss(model, Batch(PROMPTS, RESPONSES), pad_token_id=pad).item() for pad in (0, 30)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("step", "expected"), [(0, 0.1), (9, 1.0), (50, 1.0), (75, 0.5), (99, 0.02)])
def test_lr_warms_up_stays_flat_and_decays(step, expected):
    assert lr_scale(step, training_config(100)) == pytest.approx(expected)


def test_training_learns_a_batch_by_heart_and_reports_each_step(model):
    batch = Batch(PROMPTS, RESPONSES)
    losses = {}
    train(model, next_batch=lambda: batch, config=training_config(60), on_step=losses.__setitem__)
    assert list(losses) == list(range(1, 61))
    assert losses[60] < 0.5 * losses[1]
    assert not model.training
