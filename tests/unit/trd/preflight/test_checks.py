"""What is refused before anything starts: each mistake a user makes gives one line that names the key to change."""

import copy
from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra.errors import HydraException
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config

from recipe.trd.config.schema import TrdConfig
from recipe.trd.preflight import checks
from recipe.trd.rewards import sandbox

CONFIGS = Path(__file__).parents[4] / "configs"
METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("[!_]*.yaml"))
TEACHER = "distillation.teacher_models.teacher_model"
MAX_POSITIONS, VOCAB = 256, 300


def refusal(config):
    """The one line that a user gets."""
    with pytest.raises(ValueError, match=r".+") as caught:
        checks.check(config)
    message = str(caught.value)
    assert "\n" not in message
    assert "Error in call to target" not in message
    return message


@pytest.mark.parametrize("method", [method for method in METHODS if method != "oprd_bridge"])
def test_every_method_can_run(make_config, method):
    trd = checks.check(make_config(method))
    assert isinstance(trd, TrdConfig)
    assert trd.method == method


@pytest.mark.parametrize("method", ["opsd", "trd_opsd", "trd_opd", "opd", "grpo"])
def test_published_adapters_go_with_any_method(make_config, method):
    config = make_config(method, "experiment=lora")
    checks.check(config)
    model = config.actor_rollout_ref.model
    assert (model.lora_rank, model.lora_alpha) == (64, 128)
    assert config.actor_rollout_ref.rollout.load_format == "safetensors"
    for kind in (Qwen2Config, Qwen3Config, LlamaConfig):
        with torch.device("meta"):
            sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8}
            block = AutoModelForCausalLM.from_config(kind(**sizes, intermediate_size=8)).model.layers[0]
        linear = {name.split(".")[-1] for name, module in block.named_modules() if isinstance(module, torch.nn.Linear)}
        assert linear == set(model.target_modules)


def test_experiments_can_be_combined(make_config):
    config = make_config("opsd", "experiment=[lora,thinking_teacher]")
    assert config.actor_rollout_ref.model.lora_rank == 64
    assert (config.trd.student_thinking, config.trd.teacher_thinking) == (False, True)


def test_grpo_needs_no_teacher(compose_run, model_path, data_file):
    config = compose_run(
        "method=grpo",
        f"actor_rollout_ref.model.path={model_path}",
        f"{TEACHER}.model_path=nowhere",
        f"data.train_files={data_file}",
        f"data.val_files={data_file}",
    )
    assert checks.check(config).method == "grpo"


@pytest.mark.parametrize("key", ["actor_rollout_ref.model.path", f"{TEACHER}.model_path"])
def test_path_without_a_model(make_config, tmp_path, key):
    message = refusal(make_config(**{key: str(tmp_path / "nothing")}))
    assert message.startswith(f"{key}={tmp_path / 'nothing'}: no model can be read there (no such folder here")
    assert refusal(make_config(**{key: str(tmp_path)})).startswith(f"{key}={tmp_path}: no model can be read there: ")


@pytest.mark.parametrize("key", ["actor_rollout_ref.model.path", f"{TEACHER}.model_path"])
def test_no_model_at_all(make_config, key):
    assert refusal(make_config(**{key: ""})) == f"{key} is not set; choose model=... or set it"


@pytest.mark.parametrize("key", ["train_files", "val_files"])
def test_data_file_that_is_not_there(make_config, key):
    message = refusal(make_config(**{f"data.{key}": "data/nowhere.parquet"}))
    assert message == f"data.{key}=data/nowhere.parquet: no such file; prepare the data first, or set data.{key}"


def test_one_missing_file_of_several(make_config, data_file):
    assert "gone.parquet: no such file" in refusal(make_config(**{"data.train_files": [data_file, "gone.parquet"]}))


@pytest.mark.parametrize("name", ["other.parquet", "other.jsonl", "other.json"])
def test_data_without_the_columns_that_are_read(make_config, tmp_path, name):
    frame = pd.DataFrame([{"question": "1+1=?", "data_source": "x"}])
    path = tmp_path / name
    if name.endswith(".parquet"):
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=name.endswith("l"))
    message = refusal(make_config(**{"data.val_files": str(path)}))
    assert message.startswith(f"data.val_files={path} lacks the columns ['prompt', 'reward_model']")
    assert "question" in message


def test_teacher_with_other_tokens(make_config, save_model, tokenizer):
    other = PreTrainedTokenizerFast(
        tokenizer_object=copy.deepcopy(tokenizer.backend_tokenizer), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    other.add_tokens(["<think>"])
    message = refusal(make_config(**{f"{TEACHER}.model_path": save_model(other)}))
    assert "different tokenizers (for one, '<think>' is None for the student" in message
    assert "choose a teacher of the student's family" in message


def test_teacher_that_ends_its_turns_differently(make_config, save_model, tokenizer):
    other = copy.deepcopy(tokenizer)
    other.eos_token = "<|endoftext|>"
    message = refusal(make_config(**{f"{TEACHER}.model_path": save_model(other)}))
    assert message.startswith("student and teacher end a turn differently ('<|im_end|>' and '<|endoftext|>')")
    assert "trd.teacher.eos_remap=True, by which the teacher's token counts as the student's" in message
    for method in ("trd_opd", "opd_forward_kl"):
        remapped = {f"{TEACHER}.model_path": save_model(other), "trd.teacher.eos_remap": True}
        assert checks.check(make_config(method, **remapped)).teacher.eos_remap


@pytest.mark.parametrize(
    ("changes", "needed", "limit"),
    [
        ({"data.max_response_length": 225}, 257, MAX_POSITIONS),
        ({"actor_rollout_ref.rollout.max_model_len": 95}, 96, 95),
    ],
)
def test_lengths_that_the_student_cannot_hold(make_config, changes, needed, limit):
    message = refusal(make_config(**changes))
    assert message.startswith(
        f"data.max_prompt_length + data.max_response_length = {needed} tokens do not fit into {limit}: raise "
        "actor_rollout_ref.rollout.max_model_len"
    )


@pytest.mark.parametrize(
    ("changes", "context", "needed", "limit"),
    [
        ({"trd.rewrite.max_prompt_length": 192}, "the refine context", 257, MAX_POSITIONS),
        ({f"{TEACHER}.inference.max_model_len": 192}, "the refine context", 193, 192),
        (
            {"data.max_prompt_length": 192, "trd.rewrite.max_prompt_length": 9},
            "the vanilla context",
            257,
            MAX_POSITIONS,
        ),
    ],
)
def test_contexts_that_the_teacher_cannot_hold(make_config, changes, context, needed, limit):
    message = refusal(make_config(**changes))
    assert message.startswith(f"{context} needs {needed} tokens on the teacher's server, which has {limit}: raise ")
    assert f"{TEACHER}.inference.max_model_len" in message


def test_lengths_that_fit_exactly(make_config):
    fits = make_config(**{f"{TEACHER}.inference.max_model_len": 193, "actor_rollout_ref.rollout.max_model_len": 96})
    assert checks.check(fits).rewrite.max_prompt_length == 128


def test_more_log_probs_than_there_are_tokens(make_config):
    assert "trd.objective.top_k=301 exceeds the vocabulary of 300" in refusal(
        make_config(**{"trd.objective.top_k": 301})
    )


def test_log_probs_after_sampling_parameters(make_config):
    message = refusal(make_config(**{f"{TEACHER}.inference.logprobs_mode": "processed_logprobs"}))
    assert message.startswith(f"{TEACHER}.inference.logprobs_mode must be raw_logprobs")


def test_template_that_is_not_there(make_config):
    assert "trd.rewrite.template='tiny_refin'" in refusal(make_config(**{"trd.rewrite.template": "tiny_refin"}))


def test_rule_of_the_trd_node_is_told_as_it_is(make_config):
    assert refusal(make_config(**{"trd.rewrite.top_p": 0})) == "trd.rewrite.top_p=0 must be in (0, 1]"


def test_rule_of_one_of_verls_nodes_is_told_as_it_is(make_config):
    message = refusal(make_config(**{"actor_rollout_ref.actor.loss_agg_mode": "token-men"}))
    assert "token-men" in message


def test_tools_are_refused_for_rewritten_trajectories(make_config):
    message = refusal(make_config(**{"actor_rollout_ref.rollout.multi_turn.enable": True}))
    assert message.startswith("actor_rollout_ref.rollout.multi_turn.enable=True with trd.trajectory=y_r")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.use_v1", False),
        ("trainer.v1.trainer_mode", "sync"),
        ("algorithm.use_kl_in_reward", True),
        ("distillation.enabled", False),
        ("actor_rollout_ref.model.use_fused_kernels", True),
        ("actor_rollout_ref.rollout.agent.agent_loop_manager_class", None),
        ("actor_rollout_ref.rollout.calculate_log_probs", True),
        ("actor_rollout_ref.actor.use_kl_loss", True),
        ("actor_rollout_ref.actor.entropy_coeff", 0.1),
        ("actor_rollout_ref.actor.fsdp_config.pad_to_length", True),
        ("actor_rollout_ref.actor.strategy", "megatron"),
        ("distillation.distillation_loss.loss_mode", "k1"),
        ("distillation.distillation_loss.topk", 32),
        ("distillation.distillation_loss.use_task_rewards", True),
        ("distillation.distillation_loss.use_policy_gradient", True),
    ],
)
def test_setting_that_our_objective_would_ignore(make_config, key, value):
    assert refusal(make_config(**{key: value})).startswith(f"{key}={value}")


def test_batch_that_cannot_be_cut_into_equal_parts(make_config):
    sizes = {"use_dynamic_bsz": False, "ppo_mini_batch_size": 64, "ppo_micro_batch_size_per_gpu": 24}
    changes = {f"actor_rollout_ref.actor.{key}": value for key, value in sizes.items()}
    message = refusal(make_config(**changes, **{"actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 16}))
    assert message.startswith("ppo_mini_batch_size * rollout.n = 64 samples cannot be cut into micro-batches of 24")
    assert "set actor_rollout_ref.actor.use_dynamic_bsz=True" in message


def test_server_is_there_where_the_method_needs_one(make_config):
    for method, needed in (("trd_opd", True), ("opd_topk", True), ("opd_forward_kl", False), ("grpo", False)):
        config = make_config(method)
        checks.check(config)
        assert config.distillation.enabled is needed
    assert refusal(make_config("opd_forward_kl", **{"distillation.enabled": True})).startswith(
        "distillation.enabled=True does not go with method opd_forward_kl, which needs False"
    )


def test_task_reward_without_advantages(make_config):
    message = refusal(make_config(**{"trd.objective.task_reward_coef": 0.5}))
    assert message.startswith("trd.objective.task_reward_coef=0.5 needs advantages: set algorithm.adv_estimator=grpo")


def test_mean_that_would_depend_on_the_longest_response(make_config):
    mode = {"actor_rollout_ref.actor.loss_agg_mode": "seq-mean-token-sum-norm"}
    message = refusal(make_config(**mode))
    assert message.startswith("actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm needs ")
    assert "actor_rollout_ref.actor.loss_scale_factor" in message
    checks.check(make_config(**mode, **{"actor_rollout_ref.actor.loss_scale_factor": 64}))


def test_teacher_in_the_trainer_is_named_by_its_own_key(make_config, tmp_path, model_path):
    changes = {"trd.teacher.engine.path": str(tmp_path / "nothing")}
    assert refusal(make_config("opd_jsd", **changes)).startswith(f"trd.teacher.engine.path={tmp_path / 'nothing'}: no ")
    # Nobody asks for the server's model then.
    alone = {"trd.teacher.engine.path": model_path, f"{TEACHER}.model_path": "nowhere"}
    checks.check(make_config("opd_jsd", **alone))
    scorer = {"trd.teacher.scorer": "engine", "trd.objective.support": "full"}
    both = refusal(make_config("trd_opd", **scorer, **alone))
    assert both.startswith(f"{TEACHER}.model_path=nowhere: no model can be read there")


def test_sequences_that_the_teacher_in_the_trainer_cannot_hold(make_config, save_model):
    short = save_model(max_position_embeddings=95)
    message = refusal(make_config("opd_forward_kl", **{"trd.teacher.engine.path": short}))
    assert message.startswith(f"the teacher's context and the response need 96 tokens, and {short} has 95: lower ")
    checks.check(make_config("opd_forward_kl", **{"trd.teacher.engine.path": save_model(max_position_embeddings=96)}))
    refine = {"trd.teacher.engine.path": save_model(max_position_embeddings=191), "trd.teacher.context": "refine"}
    message = refusal(make_config("opd_forward_kl", **refine))
    assert "the teacher's context and the response need 192 tokens" in message
    assert "trd.rewrite.max_prompt_length" in message


def test_micro_batches_that_the_teachers_sequences_do_not_fit(make_config):
    actor = "actor_rollout_ref.actor"
    sizes = {f"{actor}.use_dynamic_bsz": True, f"{actor}.ppo_max_token_len_per_gpu": 191}
    sizes |= {"actor_rollout_ref.rollout.log_prob_use_dynamic_bsz": True, "trd.teacher.context": "refine"}
    message = refusal(make_config("opd_forward_kl", **sizes))
    assert message.startswith(f"{actor}.ppo_max_token_len_per_gpu=191 is less than the 192 tokens of the teacher's ")
    checks.check(make_config("opd_forward_kl", **{**sizes, f"{actor}.ppo_max_token_len_per_gpu": 192}))
    # The student's own sequences are shorter: another scorer needs no more.
    checks.check(make_config("opd_topk", **{**sizes, "trd.teacher.context": "vanilla"}))


@pytest.mark.parametrize("method", ["trd_opd", "opd_forward_kl"])
def test_heads_of_other_size(make_config, save_model, tokenizer, method):
    num_tokens = len(tokenizer)
    assert num_tokens <= VOCAB
    for rows in (num_tokens, VOCAB + 20):
        checks.check(make_config(method, **{f"{TEACHER}.model_path": save_model(vocab_size=rows)}))
    message = refusal(make_config(method, **{f"{TEACHER}.model_path": save_model(vocab_size=num_tokens - 1)}))
    assert message.startswith(
        f"the output heads of student and teacher have {VOCAB} and {num_tokens - 1} rows for a tokenizer of "
        f"{num_tokens} tokens: the smaller one lacks tokens"
    )


def test_top_k_of_the_second_term(make_config):
    assert "top_k=301 exceeds the vocabulary of 300" in refusal(
        make_config("eopd", **{"trd.objective.plus.top_k": 301})
    )


@pytest.mark.parametrize("sizes", [{"num_hidden_layers": 2}, {"hidden_size": 32}])
def test_hidden_states_that_cannot_be_compared(make_config, save_model, sizes):
    message = refusal(make_config("oprd", **{f"{TEACHER}.model_path": save_model(**sizes)}))
    layers, size = sizes.get("num_hidden_layers", 1), sizes.get("hidden_size", 16)
    assert message.startswith(
        "hidden_mse compares layer by layer, but the student has 1 layers of 16 and the "
        f"teacher {layers} of {size}: choose method=oprd_bridge"
    )
    # Beside a distribution too; without hidden states sizes do not matter.
    beside = {f"{TEACHER}.model_path": save_model(**sizes), "trd.objective.plus.divergence": "hidden_mse"}
    assert refusal(make_config("opd_jsd", **beside)).startswith("hidden_mse compares layer by layer")
    checks.check(make_config("opd_jsd", **{f"{TEACHER}.model_path": save_model(**sizes)}))


def test_bridge_that_is_not_there(make_config, tmp_path):
    assert refusal(make_config("oprd_bridge")).startswith("trd.objective.hidden.bridge is not set")
    message = refusal(make_config("oprd_bridge", **{"trd.objective.hidden.bridge": str(tmp_path)}))
    assert message.startswith(f"{tmp_path} holds no bridge")


@pytest.mark.parametrize(("platform", "device"), [("", "cpu"), ("nvidia", "cpu"), ("cpu", "cuda")])
def test_platform_and_device_that_do_not_agree(make_config, monkeypatch, platform, device):
    monkeypatch.setenv("VERL_PLATFORM", platform)
    message = refusal(make_config(**{"trainer.device": device}))
    assert message.startswith(f"trainer.device={device} with VERL_PLATFORM={platform!r}: cluster=cpu needs")


def test_context_that_shows_a_reference_which_the_data_lack(make_config, tmp_path):
    path = tmp_path / "bare.parquet"
    row = {"prompt": [{"role": "user", "content": "1+1=?"}], "data_source": "x", "reward_model": {"ground_truth": "2"}}
    pd.DataFrame([row] * 64).to_parquet(path)
    bare = {"data.train_files": str(path)}
    for method in ("opsd", "trd_opsd"):
        message = refusal(make_config(method, **bare))
        assert message.startswith(f"method {method} shows the teacher a reference solution")
        assert f"data.train_files={path} has no column extra_info" in message
        assert "(trd.reference_key=extra_info.reference_solution)" in message
    checks.check(make_config("trd_opd", **bare))
    checks.check(make_config("opsd", **bare, **{"trd.reference_key": "reward_model.ground_truth"}))


def test_average_of_weights_that_cannot_be_exchanged(make_config):
    ema, strategy = {"trd.teacher.weights": "ema"}, "actor_rollout_ref.actor.strategy"
    assert checks.check(make_config("opsd", **ema)).teacher.weights == "ema"
    assert refusal(make_config("opsd", **ema, **{strategy: "fsdp"})).startswith(
        f"trd.teacher.weights=ema needs {strategy}=fsdp2"
    )
    checks.check(make_config("opsd", **{strategy: "fsdp"}))


def test_refine_context_that_the_students_server_cannot_hold(make_config):
    live = {"trd.rewrite.weights": "live", "actor_rollout_ref.rollout.max_model_len": 191}
    message = refusal(make_config("trd_opsd", **live))
    assert "192 tokens on the student's server, which has 191" in message
    assert "actor_rollout_ref.rollout.max_model_len" in message
    checks.check(make_config("trd_opsd", **{**live, "actor_rollout_ref.rollout.max_model_len": 192}))


THINK = "{% if add_generation_prompt and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"


def test_thinking_of_each_role(make_config, save_model, tokenizer, capsys):
    hybrid = copy.deepcopy(tokenizer)
    hybrid.chat_template += THINK.replace("enable_thinking is", "enable_thinking is defined and enable_thinking is")
    sides = {"actor_rollout_ref.model.path": save_model(hybrid), "data.max_prompt_length": 64}
    config = make_config("opsd", **sides, **{"trd.student_thinking": False})
    checks.check(config)
    assert config.data.apply_chat_template_kwargs == {"enable_thinking": False}
    assert "first token" not in capsys.readouterr().out
    checks.check(make_config("opsd", **sides, **{"trd.student_thinking": False, "trd.teacher_thinking": True}))
    assert "WARNING the first token of a response follows" in capsys.readouterr().out
    assert refusal(make_config("grpo", **{"trd.student_thinking": False})).startswith("trd.student_thinking=False: the")
    # The run's own chat template is that of the student, and of the student as its own teacher.
    custom = {"actor_rollout_ref.model.custom_chat_template": hybrid.chat_template, "trd.teacher_thinking": False}
    custom["data.max_prompt_length"] = 64
    checks.check(make_config("opsd", **custom))
    assert refusal(make_config("opd_forward_kl", **custom)).startswith("trd.teacher_thinking=False: the chat template")


CODE = {"reward.custom_reward_function.path": "pkg://recipe.trd.rewards.code_reward"}
CODE["trd.preflight.skip"] = ["reward"]  # the ground truth is that of a sum


def test_programs_run_before_a_run_depends_on_them(make_config, monkeypatch, tmp_path):
    checks.check(make_config(**CODE))
    monkeypatch.setattr(sandbox, "CHILD", tmp_path / "gone.py")
    sandbox.check.cache_clear()
    message = refusal(make_config(**CODE))
    assert message.startswith(
        "reward.custom_reward_function.path=pkg://recipe.trd.rewards.code_reward: programs cannot be "
    )
    assert "set reward.sandbox_fusion.url to a service" in message
    checks.check(make_config())  # no program runs for other rewards
    unknown = refusal(make_config(**CODE, **{"reward.custom_reward_function.reward_kwargs": {"timeout": 3}}))
    assert "unexpected keyword argument 'timeout'" in unknown


def test_key_that_nobody_set(make_config):
    message = refusal(make_config(**{"trd.trajectory": "???", "trd.objective.support": "???"}))
    assert message == (
        "not set: trd.objective.support, trd.trajectory; choose method=, model=, data= and cluster=, or set the keys"
    )


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("trd.rewrit.top_p=1", "Could not override 'trd.rewrit.top_p'."),
        ("trainer.total_epoch=1", "Could not override 'trainer.total_epoch'."),
        ("method=trd_odp", "In 'trd_trainer': Could not find 'method/trd_odp'"),
        ("model=tny", "In 'trd_trainer': Could not find 'model/tny'"),
    ],
)
def test_typo_on_the_command_line_is_found_while_composing(compose_run, override, line):
    with pytest.raises(HydraException) as caught:
        compose_run(override)
    assert str(caught.value).splitlines()[0] == line


def test_unknown_method_comes_with_those_that_exist(compose_run):
    with pytest.raises(HydraException) as caught:
        compose_run("method=trd_odp")
    assert {"grpo", "opd", "trd_opd"} <= set(str(caught.value).split())
