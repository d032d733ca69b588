"""Loss and gradient of one update, by the engine in its many ways and by plain PyTorch in float64.

engine_steps.py runs every case of METHODS x packed or padded x BATCHINGS on FSDP2 with one and with two processes.
"""

import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

SCRIPT = Path(__file__).with_name("engine_steps.py")
NUM_TOKENS, NUM_LAST = 33, 19
"""Counted tokens of the batch, and those among the last three of their responses."""


@pytest.fixture(scope="module")
def steps():
    spec = spec_from_file_location("engine_steps", SCRIPT)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("models")
    for seed, (name, hidden_size, num_layers, vocab_size) in enumerate(
        (
            ("student", 32, 2, 96),
            ("teacher", 48, 3, 104),
            ("twin", 32, 2, 96),
            ("local_student", 32, 1, 96),
            ("local_teacher", 48, 1, 104),
        )
    ):
        torch.manual_seed(seed)
        config = Qwen3Config(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=16,
            intermediate_size=2 * hidden_size,
            max_position_embeddings=64,
            tie_word_embeddings=False,
        )
        model = Qwen3ForCausalLM(config)
        model.lm_head.weight.data.normal_(0, 0.3)
        if name.startswith("local"):
            model.model.layers[0].self_attn.o_proj.weight.data.zero_()
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def results(models):
    """{number of processes: {(method, packed, batching, mode): result}}."""
    return {num: run(models, num) for num in (1, 2)}


def run(models, num_processes):
    out = models / f"{num_processes}.pt"
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={num_processes}", "--master_port=0"]
    done = subprocess.run(
        [*launch, "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", str(SCRIPT), str(models), str(out)],
        env={**os.environ, "VERL_ENGINE_VENDOR": "verl_ext", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(out)


def distance(found, expected):
    """Relative distance of two gradients, over all parameters together."""
    assert found.keys() == expected.keys()
    difference = sum((found[name].double() - expected[name].double()).square().sum() for name in expected)
    return (difference / sum(value.double().square().sum() for value in expected.values())).sqrt().item()


def test_the_cut_into_micro_batches_padding_and_processes_change_nothing(results, steps):
    references = {(key[0], key[3]): value for key, value in results[1].items() if key[1:3] == (True, "micro_1")}
    num_cases = 2 * len(steps.BATCHINGS) * (len(steps.METHODS) + 1)
    for num_processes, found in results.items():
        steps_of_methods = {key: result for key, result in found.items() if len(key) == 4}
        assert len(steps_of_methods) == num_cases
        for key, result in steps_of_methods.items():
            if key[0] == "self":
                continue
            reference = references[key[0], key[3]]
            assert result["loss"] == pytest.approx(reference["loss"], rel=1e-5), (num_processes, key)
            assert distance(result["gradient"], reference["gradient"]) < 1e-5, (num_processes, key)


def test_micro_batches_are_cut_by_the_teachers_longer_sequences(results, steps):
    num_student = sum(num_prompt + num_response for num_prompt, num_response, _ in steps.LENGTHS)
    num_longer = sum(num_response + max(prompts) for *prompts, num_response in ((p, t, r) for p, r, t in steps.LENGTHS))
    limit = steps.BATCHINGS["dynamic"]["max_token_len_per_gpu"]
    with_teacher = results[1]["forward_kl", True, "dynamic", "token-mean"]["num_micro_batches"]
    without = results[1]["generation", True, "dynamic", "token-mean"]["num_micro_batches"]
    assert without >= -(-num_student // limit)
    assert with_teacher >= -(-num_longer // limit) > without


@pytest.mark.parametrize("method", ["forward_kl", "eopd", "generation", "policy"])
def test_slices_of_sequences_change_nothing(results, method):
    whole, sliced = results[1][method, "slices"], results[2][method, "slices"]
    assert sliced["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    gradients = [
        {name: value for name, value in result["gradient"].items() if "self_attn" not in name}
        for result in (sliced, whole)
    ]
    assert distance(*gradients) < 1e-5
    assert sliced["num_values"] == whole["num_values"] == NUM_TOKENS
    for name, value in whole["metrics"].items():
        assert sliced["metrics"][name] == pytest.approx(value, rel=1e-5, abs=1e-7), name


def test_a_model_does_not_diverge_from_itself(results):
    for found in results.values():
        for key, result in found.items():
            if key[0] == "self" and len(key) == 4:
                assert abs(result["loss"]) < 1e-6, key
                assert max(gradient.abs().max() for gradient in result["gradient"].values()) < 1e-5, key
    agreement = results[1]["self", True, "dynamic", "token-mean"]["metrics"]["trd/argmax_agreement"]
    assert agreement == pytest.approx(1)


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("weights", ["live", "ema", "lora"])
def test_the_students_own_module_teaches_as_a_second_one_would(results, weights, num_processes):
    from_self, from_engine = results[num_processes][weights, "self"], results[num_processes][weights, "engine"]
    assert from_self["loss"] == pytest.approx(from_engine["loss"], rel=1e-5)
    assert distance(from_self["gradient"], from_engine["gradient"]) < 1e-5


@pytest.mark.parametrize("num_processes", [1, 2])
def test_the_average_is_its_definition_and_leaves_the_student_alone(results, num_processes):
    found = results[num_processes]
    assert found["ema", "error"] < 1e-6
    assert found["ema", "student is untouched"]
    assert found["ema", "restored"]


def test_adapters_are_trained_and_taught_without(results):
    found = results[1]
    assert all("lora_" in name for name in found["lora", "trained"])
    assert abs(found["lora", "self"]["loss"] - found["lora", "live"]["loss"]) > 1e-3


def test_hidden_states_use_no_output_head(results):
    assert "lm_head.weight" not in results[1]["hidden", True, "micro_4", "token-mean"]["gradient"]
    assert "lm_head.weight" in results[1]["mixed", True, "micro_4", "token-mean"]["gradient"]


def states(model, ids):
    output = model(input_ids=ids.unsqueeze(0), output_hidden_states=True)
    return output.logits[0], [layer[0] for layer in output.hidden_states[1:]]


def expected_losses(models, steps, method):
    """The loss of a method from its equation, float64, sample by sample, and its gradient."""
    student, teacher, twin = (
        AutoModelForCausalLM.from_pretrained(models / name, dtype=torch.float64)
        for name in ("student", "teacher", "twin")
    )
    shared = slice(0, 96)
    total = torch.zeros((), dtype=torch.float64)
    for sample in steps.samples():
        num_prompt, num_response = len(sample["prompts"]), len(sample["responses"])
        mask = sample["response_mask"].double()
        last = mask * (mask.cumsum(0) > mask.sum() - 3)
        logits, layers = states(student, sample["input_ids"])
        log_s = logits[num_prompt - 1 : -1].log_softmax(-1)
        with torch.no_grad():
            num_context = len(sample["teacher_input_ids"]) - num_response
            log_t = states(teacher, sample["teacher_input_ids"])[0][num_context - 1 : -1, shared].log_softmax(-1)
            twin_layers = states(twin, sample["teacher_input_ids"])[1]
        if method == "forward_kl":
            total = total + (mask * (log_t.exp() * (log_t - log_s)).sum(-1)).sum() / NUM_TOKENS
        elif method == "eopd":
            sampled = sample["responses"].unsqueeze(-1)
            advantage = (log_t - log_s).gather(-1, sampled).squeeze(-1).detach()
            ratio = (log_s - log_s.detach()).gather(-1, sampled).squeeze(-1).exp()
            best = log_t.topk(steps.TOP_K, -1)
            target = best.values.log_softmax(-1)
            forward = (target.exp() * (target - log_s.gather(-1, best.indices))).sum(-1)
            gate = (-(log_t.exp() * log_t).sum(-1) > 2.9).double()
            total = total + (mask * (-ratio * advantage + gate * forward)).sum() / NUM_TOKENS
        elif method == "hidden":
            for student_layer, teacher_layer in zip(layers, twin_layers, strict=True):
                squared = (student_layer[num_prompt:] - teacher_layer[num_context:]).square().mean(-1)
                total = total + 2.0 * (last * squared).sum() / NUM_LAST / len(layers)
        else:
            top, positions = sample["teacher_logprobs"].double(), slice(num_prompt - 1, num_prompt + num_response - 1)
            known, ids = top[positions].exp(), sample["teacher_ids"][positions].long()
            rest_t, rest_s = 1 - known.sum(-1), 1 - log_s.exp().gather(-1, ids).sum(-1)
            bucket = (known * (top[positions] - log_s.gather(-1, ids))).sum(-1) + rest_t * (rest_t / rest_s).log()
            policy = -log_s.gather(-1, sample["responses"].unsqueeze(-1)).squeeze(-1) * sample["advantages"].double()
            # At a ratio of 1 the policy loss is -A, and its gradient that of -A log p.
            value = -sample["advantages"].double() + policy - policy.detach()
            total = total + (mask * (bucket + (value if method == "policy" else 0))).sum() / NUM_TOKENS
    total.backward()
    return total.item(), {
        name: parameter.grad for name, parameter in student.named_parameters() if parameter.grad is not None
    }


@pytest.mark.parametrize("method", ["forward_kl", "eopd", "hidden", "generation", "policy"])
def test_an_update_is_that_of_the_equations_in_float64(results, steps, models, method):
    loss, gradient = expected_losses(models, steps, method)
    result = results[2][method, True, "dynamic", "token-mean"]
    assert result["loss"] == pytest.approx(loss, rel=1e-5)
    assert distance(result["gradient"], gradient) < 1e-5


def test_every_counted_token_reaches_the_quantiles(results):
    assert results[1]["forward_kl", True, "dynamic", "token-mean"]["num_values"] == NUM_TOKENS
    assert results[1]["hidden", False, "micro_4", "token-mean"]["num_values"] == NUM_LAST
