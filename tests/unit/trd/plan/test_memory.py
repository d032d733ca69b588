"""Shapes of models against published numbers, and the plan against sums made by hand."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from recipe.trd.plan import architectures, memory
from recipe.trd.plan.architectures import KNOWN

CONFIGS = Path(__file__).parents[4] / "configs"
GIB = 2**30


def composed(*overrides):
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return compose("trd_trainer", overrides=list(overrides))


LENGTHS = ["data.max_response_length=8192", "data.max_refine_length=11264"]


@pytest.fixture(scope="module")
def seven():
    """Student of 7.6B parameters on four GPUs, teacher of 32.8B on four others."""
    return composed("method=trd_opd", "model=qwen2_5_7b", "data=math", "cluster=gpu", *LENGTHS)


def changed(config, **changes):
    copy = OmegaConf.create(OmegaConf.to_container(config))
    OmegaConf.resolve(copy)
    for key, value in changes.items():
        OmegaConf.update(copy, key.replace("__", "."), value)
    return copy


# Sizes of the weights' files on the hub, in elements; tied embeddings once.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("Qwen/Qwen2.5-32B-Instruct", 32_763_876_352),
        ("Qwen/Qwen3-1.7B", 1_720_574_976),
        ("Qwen/Qwen3-4B-Instruct-2507", 4_022_468_096),
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("Qwen/Qwen3-32B", 32_762_123_264),
        ("meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824),
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("google/gemma-2-2b-it", 2_614_341_888),
        ("google/gemma-2-9b-it", 9_241_705_984),
    ],
)
def test_parameters_are_those_of_the_published_weights(name, expected):
    assert KNOWN[name].num_parameters == expected


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma2"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_real_classes(kind, tied):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model(
        kind, **sizes, head_dim=12, intermediate_size=80, vocab_size=100, tie_word_embeddings=tied, pad_token_id=0
    )
    model = AutoModelForCausalLM.from_config(config)
    shape = architectures.from_config(json.loads(config.to_json_string(use_diff=False)), name=kind)
    assert shape.num_parameters == sum(weight.numel() for weight in model.parameters())


def test_a_folder_comes_before_the_table_and_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not known here: give a folder"):
        architectures.read(str(tmp_path))
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    (tmp_path / "config.json").write_text(json.dumps({**shape, "vocab_size": 10, "max_position_embeddings": 64}))
    assert architectures.read(str(tmp_path)).head_dim == 4
    with pytest.raises(ValueError, match="mixture of experts"):
        architectures.from_config({"num_experts": 8}, name="x")
    with pytest.raises(ValueError, match="'num_attention_heads'"):
        architectures.from_config({}, name="x")


def test_lora_parameters_by_hand():
    shape = KNOWN["Qwen/Qwen3-1.7B"]
    # q, k, v, o, gate, up, down of a layer, inputs plus outputs.
    sums = (2048 + 2048) + 2 * (2048 + 1024) + (2048 + 2048) + 3 * (2048 + 6144)
    assert shape.lora_parameters(64) == 28 * 64 * sums


def test_states_of_the_trainer_by_hand(seven):
    states = memory.trainer_states(seven, KNOWN["Qwen/Qwen2.5-7B-Instruct"])
    quarter = 7_615_616_512 * 4 / 4 / GIB
    assert states == pytest.approx({"parameters": quarter, "gradients": quarter, "optimiser": 2 * quarter})


def test_a_reference_policy_costs_its_weights_but_not_with_lora(seven):
    student = KNOWN["Qwen/Qwen2.5-7B-Instruct"]
    with_reference = changed(seven, actor_rollout_ref__actor__use_kl_loss=True)
    assert memory.trainer_states(with_reference, student)["reference"] == pytest.approx(7.0925, rel=1e-4)
    lora = changed(with_reference, actor_rollout_ref__model__lora_rank=64)
    states = memory.trainer_states(lora, student)
    assert states["reference"] == 0
    assert states["optimiser"] == pytest.approx(2 * student.lora_parameters(64) / GIB)


def test_phases_by_hand(seven):
    student = KNOWN["Qwen/Qwen2.5-7B-Instruct"]
    phases = memory.student_phases(seven, student, 80)
    # Parameters and moments of a quarter, 0.6 of the GPU for vLLM, and the context.
    assert phases["rollout"].total == pytest.approx(3 * 7.0925 + 48 + memory.CONTEXT_GIB, rel=1e-4)
    assert "vLLM" not in phases["update"].parts
    # Inputs of 28 layers and one layer's products, of 24576 tokens in bfloat16.
    inner = 2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944)
    activations = 24576 * 2 * (28 * 3584 + inner) / GIB
    assert phases["update"].parts["activations"] == pytest.approx(activations)


def test_what_sleep_and_offload_change(seven):
    student = KNOWN["Qwen/Qwen2.5-7B-Instruct"]
    awake = memory.student_phases(changed(seven, actor_rollout_ref__rollout__enable_sleep_mode=False), student, 80)
    assert awake["update"].parts["vLLM"] == 48
    fsdp = "actor_rollout_ref__actor__fsdp_config"
    offloaded = changed(seven, **{f"{fsdp}__param_offload": True, f"{fsdp}__optimizer_offload": True})
    assert set(memory.student_phases(offloaded, student, 80)["rollout"].parts) == {"CUDA", "vLLM"}


def test_verls_own_losses_hold_the_logits_of_a_micro_batch(seven):
    student = KNOWN["Qwen/Qwen2.5-7B-Instruct"]
    opd = composed("method=opd", "model=qwen2_5_7b", "data=math", "cluster=gpu", *LENGTHS)
    upstream = memory.update_extras(opd, student)
    assert upstream["logits"] == pytest.approx(2 * 2 * 24576 * 152064 / GIB)
    assert memory.update_extras(seven, student)["logits"] < 1.1


def test_servers_by_hand(seven):
    teacher = KNOWN["Qwen/Qwen2.5-32B-Instruct"]
    inference = seven.distillation.teacher_models.teacher_model.inference
    served, problems = memory.server(inference, teacher, name="t", num_gpus=4, longest=19457, gpu_gib=80)
    assert problems == []
    assert (served.replicas, served.tensor_parallel) == (2, 2)
    assert served.weights_gib == pytest.approx(32_763_876_352 / GIB)
    cache = 68 - 32_763_876_352 / GIB - memory.VLLM_OVERHEAD_GIB
    # Keys and values of 64 layers and 4 of 8 heads on each GPU, 128 numbers of 2 bytes.
    assert served.cache_tokens == int(cache * GIB / (2 * 64 * 4 * 128 * 2))


def test_the_plan_of_7b_and_32b_fits_eight_gpus_of_80_gib_and_not_of_40(seven):
    made = memory.make(changed(seven), gpu_gib=80)
    assert made.problems == []
    text = "\n".join(made.lines)
    for needle in ("7.62B", "32.76B", "in all     8 GPUs", "85 GiB a checkpoint"):
        assert needle in text
    small = memory.make(changed(seven), gpu_gib=40).problems
    assert any(problem.startswith("student's GPUs: rollout takes 46.8 of 40 GiB: lower") for problem in small)
    assert any(problem.startswith("teacher's server: after 30.5 GiB of weights") for problem in small)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"distillation__n_gpus_per_node": 3}, "teacher's server: 3 GPUs cannot be cut into servers of"),
        ({"actor_rollout_ref__rollout__tensor_model_parallel_size": 3}, "28 attention heads cannot be cut by 3"),
        ({"trd__rewrite__max_prompt_length": 28672}, "teacher's server: requests of 36,865 tokens"),
        ({"data__max_response_length": 40000}, "student's server: requests of 42,048 tokens"),
    ],
)
def test_what_cannot_be_is_said(seven, changes, problem):
    config = changed(seven, **changes)
    config.trd.rewrite.max_response_length = config.data.max_response_length
    problems = memory.make(config, gpu_gib=80).problems
    assert any(problem in line for line in problems), problems


def test_a_teacher_beside_the_student_has_no_server_but_a_shard():
    config = composed("method=opd_forward_kl", "model=qwen3_1_7b", "data=math", "cluster=gpu")
    made = memory.make(config, gpu_gib=80)
    assert "in all     4 GPUs" in "\n".join(made.lines)
    assert not any(line.startswith("teacher") for line in made.lines)
    phases = memory.student_phases(config, KNOWN["Qwen/Qwen3-1.7B"], 80)
    for phase in phases.values():
        assert phase.parts["teacher"] == pytest.approx(8_190_735_360 * 2 / 4 / GIB)
    config.trd.teacher.engine.offload = True
    assert "teacher" not in memory.student_phases(config, KNOWN["Qwen/Qwen3-1.7B"], 80)["rollout"].parts


def test_a_student_that_teaches_itself_is_held_again_unless_its_weights_can_be_shared():
    config = composed("method=trd_opsd", "model=qwen3_1_7b", "data=math", "cluster=gpu")
    made = "\n".join(memory.make(config, gpu_gib=80).lines)
    assert "teacher  Qwen/Qwen3-1.7B" in made
    student = KNOWN["Qwen/Qwen3-1.7B"]
    shard = memory.student_phases(config, student, 80)["rollout"].parts["teacher"]
    assert shard == pytest.approx(1_720_574_976 * 2 / 4 / GIB)
    for shared in (
        ["actor_rollout_ref.model.lora_rank=64"],
        *([f"trd.teacher.weights={weights}", "trd.rewrite.weights=live"] for weights in ("live", "ema")),
    ):
        config = composed("method=trd_opsd", "model=qwen3_1_7b", "data=math", "cluster=gpu", *shared)
        parts = memory.student_phases(config, student, 80)["update"].parts
        assert "teacher" not in parts
        assert ("average" in parts) is ("trd.teacher.weights=ema" in shared)
    assert parts["average"] == pytest.approx(1_720_574_976 * 4 / 4 / GIB)


def test_one_card_for_everything():
    """The shares of both servers stand beside the trainer in the rollout; those that sleep are free in the update."""
    shared = composed("method=trd_opd", "model=qwen3_1_7b", "data=math", "cluster=gpu_shared")
    plan = memory.make(changed(shared), gpu_gib=80)
    assert plan.problems == []
    assert "  GPUs      the student's" in plan.lines
    assert any(line.startswith("in all     1 GPUs") for line in plan.lines)
    student = KNOWN["Qwen/Qwen3-1.7B"]
    phases = memory.student_phases(changed(shared), student, 80)
    assert phases["rollout"].parts["vLLM"] == pytest.approx(0.3 * 80)
    assert phases["rollout"].parts["teacher's vLLM"] == pytest.approx(0.4 * 80)
    assert not {"vLLM", "teacher's vLLM"} & set(phases["update"].parts)
    awake = changed(shared, distillation__teacher_models__teacher_model__inference__free_cache_engine=False)
    assert memory.student_phases(awake, student, 80)["update"].parts["teacher's vLLM"] == pytest.approx(0.4 * 80)
