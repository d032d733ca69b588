"""Hidden states and head of real architectures against what the models themselves say, value and gradient."""

import inspect

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from verl_ext.divergence import Objective, Term, Tokens, linear_divergence
from verl_ext.engine.causal_lm import check_head, expose_hidden_states

V, NUM_LAYERS = 61, 3
SIZES = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
MODELS = {
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16, "tie_word_embeddings": False}),
    "tied": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16, "tie_word_embeddings": True}),
    "llama": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": False}),
    "soft cap": (Gemma2ForCausalLM, Gemma2Config, {"head_dim": 16, "final_logit_softcapping": 1.5}),
    "divided": (GraniteForCausalLM, GraniteConfig, {"logits_scaling": 3.0}),
    "multiplied": (CohereForCausalLM, CohereConfig, {"logit_scale": 0.25}),
    "bias": (PhiForCausalLM, PhiConfig, {}),
}
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)


def build(name, dtype=torch.float32):
    model_class, config_class, options = MODELS[name]
    torch.manual_seed(0)
    model = model_class(config_class(**SIZES, **options, attn_implementation="eager")).to(dtype).eval()
    # A trained model is far from uniform.
    head = model.get_output_embeddings()
    head.weight.data.normal_(0, 0.5)
    if head.bias is not None:
        head.bias.data.normal_()
    return model


def inputs_of(batch=2, length=9):
    ids = torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "position_ids": torch.arange(length).expand(batch, -1), "use_cache": False}


def logits_of(head):
    """From the documentation of `Head`."""
    logits = head.hidden @ head.weight.T
    if head.bias is not None:
        logits = logits + head.bias
    if head.soft_cap is not None:
        logits = head.soft_cap * torch.tanh(logits / head.soft_cap)
    return logits / head.temperature


def own_logits(states):
    return states.with_head(states.last, logits_of)


@EVERY_MODEL
def test_logits_of_the_head_are_the_models_own(name):
    model = build(name)
    expected = model(**inputs_of()).logits
    expose_hidden_states(model)
    torch.testing.assert_close(model(**inputs_of(), consumer=own_logits), expected, rtol=1e-5, atol=1e-5)


@EVERY_MODEL
def test_without_a_consumer_nothing_changes(name):
    model = build(name)
    before = model(**inputs_of(), labels=inputs_of()["input_ids"])
    signature = inspect.signature(model.forward)
    expose_hidden_states(model)
    after = model(**inputs_of(), labels=inputs_of()["input_ids"])
    assert torch.equal(after.logits, before.logits)
    assert torch.equal(after.loss, before.loss)
    # verl looks there for arguments that only some models take.
    assert inspect.signature(model.forward) == signature


@EVERY_MODEL
def test_layers_are_the_models_own_hidden_states(name):
    model = build(name)
    expected = model(**inputs_of(), output_hidden_states=True).hidden_states
    expose_hidden_states(model)
    states = model(**inputs_of(), consumer=lambda states: states, with_layers=True)
    assert len(states.layers) == NUM_LAYERS
    torch.testing.assert_close(states.layers, expected[1:], rtol=0, atol=0)
    torch.testing.assert_close(states.last, expected[-1], rtol=0, atol=0)
    assert model(**inputs_of(), consumer=lambda states: states.layers) == ()


def gradients(model, loss):
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@EVERY_MODEL
def test_gradients_are_those_of_the_plain_forward_pass(name):
    model = build(name)
    factor = torch.randn(2, 9, V, generator=torch.Generator().manual_seed(2))
    expose_hidden_states(model)
    expected = gradients(model, (model(**inputs_of()).logits * factor).sum())
    found = gradients(model, model(**inputs_of(), consumer=lambda states: (own_logits(states) * factor).sum()))
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@EVERY_MODEL
def test_linear_divergence_understands_the_head(name):
    # Cross-entropy at chosen positions, formed inside the head's forward pass, against plain autograd over all logits.
    model = build(name)
    expose_hidden_states(model)
    labels = torch.randint(V, (4,), generator=torch.Generator().manual_seed(3))
    objective = Objective(terms=(Term(divergence="cross_entropy", support="sampled"),))

    def loss_of(head):
        tokens = Tokens(weights=torch.full((4,), 0.25), ids=labels)
        return linear_divergence(student=head, teacher=None, tokens=tokens, objective=objective).loss

    def consumer(states):
        return states.with_head(states.last[1, 2:6], loss_of)

    loss = model(**inputs_of(), consumer=consumer)
    found = gradients(model, loss)
    plain = nn.functional.cross_entropy(model(**inputs_of()).logits[1, 2:6], labels)
    expected = gradients(model, plain)
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def with_adapters(**options):
    """A LoRA model as verl builds it: the model first, then the adapters, here with weights that are not 0."""
    model = build("qwen3")
    expose_hidden_states(model)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", **options)
    wrapped = get_peft_model(model, config).eval()
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    return wrapped


def test_lora_model():
    model = with_adapters()
    factor = torch.randn(2, 9, V, generator=torch.Generator().manual_seed(2))
    expected = model(**inputs_of(), output_hidden_states=True)
    states = model(**inputs_of(), consumer=lambda states: states, with_layers=True)
    torch.testing.assert_close(states.layers, expected.hidden_states[1:], rtol=0, atol=0)
    torch.testing.assert_close(model(**inputs_of(), consumer=own_logits), expected.logits, rtol=1e-5, atol=1e-5)
    wanted = gradients(model, (expected.logits * factor).sum())
    found = gradients(model, model(**inputs_of(), consumer=lambda states: (own_logits(states) * factor).sum()))
    assert found.keys() == wanted.keys()
    assert all("lora_" in name for name in found)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_disabled_adapters_are_the_model_without_them():
    model = with_adapters()
    with model.disable_adapter():
        off = model(**inputs_of(), consumer=own_logits)
    torch.testing.assert_close(off, build("qwen3")(**inputs_of()).logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(off, model(**inputs_of(), consumer=own_logits), atol=1e-2)


@pytest.mark.parametrize("options", [{"modules_to_save": ["lm_head"]}, {}], ids=["copied", "adapted"])
def test_head_that_was_replaced_is_refused(options):
    # The old head would be used, and the new one would stay as it is without a word.
    model = build("qwen3")
    expose_hidden_states(model)
    targets = {"target_modules": ["q_proj"] if options else ["q_proj", "lm_head"]}
    wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, **targets, **options))
    with pytest.raises(RuntimeError, match="output head of Qwen3ForCausalLM was replaced"):
        wrapped(**inputs_of(), consumer=own_logits)


@EVERY_MODEL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_known_architectures_pass_the_check(name, dtype):
    model = build(name, dtype).train()
    expose_hidden_states(model)
    check_head(model, vocab_size=V, device="cpu")
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


class Louder(Qwen3ForCausalLM):
    """Does to its logits what its configuration does not say."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 1.05
        return output


class Gone(Qwen3ForCausalLM):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * float("nan")
        return output


@pytest.mark.parametrize("model_class", [Louder, Gone])
def test_model_that_alters_its_logits_fails_the_check(model_class):
    torch.manual_seed(0)
    model = model_class(Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=False))
    model.get_output_embeddings().weight.data.normal_(0, 0.5)
    expose_hidden_states(model)
    with pytest.raises(RuntimeError, match=f"{model_class.__name__}: probabilities .* differ from the model's own"):
        check_head(model, vocab_size=V, device="cpu")
