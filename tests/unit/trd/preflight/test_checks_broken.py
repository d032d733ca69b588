"""Set-ups that are wrong in a way that once started engines: each is refused, in a line that names the key.

What is refused here ends `recipe.trd.main` with exit code 2 before a process starts (test_main_refuses).
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from transformers import PreTrainedTokenizerFast

from recipe.trd import main
from recipe.trd.preflight import checks, surroundings
from verl_ext.runtime import checkpoints

ROOT = Path(__file__).parents[4]
ACTOR, ROLLOUT, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.model"

VALUES = [
    ("trd.faults.request_timeout_s", 0),
    ("trd.faults.reward_timeout_s", -1),
    ("trd.faults.restarts", -1),
    ("trd.faults.max_skipped_updates", 0),
    ("trd.rewrite.retries", -1),
    ("trd.rewrite.reject.repeated_frac_above", 1.5),
    ("trd.rewrite.reject.student_log_prob_below", 1),
    (f"{ACTOR}.optim.lr", -1e-3),
    (f"{ACTOR}.optim.lr", "fast"),
    (f"{ACTOR}.optim.lr", float("nan")),
    (f"{ACTOR}.optim.weight_decay", -0.1),
    (f"{ACTOR}.optim.lr_warmup_steps_ratio", 1.5),
    (f"{ACTOR}.optim.clip_grad", -1.0),
    (f"{ACTOR}.ppo_epochs", 0),
    (f"{ACTOR}.ppo_mini_batch_size", 0),
    (f"{ACTOR}.ppo_max_token_len_per_gpu", -5),
    (f"{ACTOR}.use_dynamic_bsz", "perhaps"),
    (f"{ROLLOUT}.n", 0),
    (f"{ROLLOUT}.n", 1.5),
    (f"{ROLLOUT}.temperature", -1),
    (f"{ROLLOUT}.top_p", 0),
    (f"{ROLLOUT}.top_p", 1.5),
    (f"{ROLLOUT}.top_k", 0),
    (f"{ROLLOUT}.gpu_memory_utilization", 1.7),
    (f"{ROLLOUT}.tensor_model_parallel_size", 0),
    (f"{ROLLOUT}.val_kwargs.n", 0),
    (f"{ROLLOUT}.val_kwargs.temperature", -0.1),
    (f"{ROLLOUT}.agent.num_workers", 0),
    (f"{MODEL}.lora_rank", -3),
    (f"{MODEL}.lora_alpha", 0),
    ("trainer.total_training_steps", 0),
    ("trainer.total_epochs", 0),
    ("trainer.save_freq", 0),
    ("trainer.test_freq", -2),
    ("trainer.nnodes", 0),
    ("trainer.n_gpus_per_node", 0),
    ("trainer.max_actor_ckpt_to_keep", 0),
    ("trainer.val_before_train", "yes please"),
    ("data.train_batch_size", 0),
    ("data.train_batch_size", 3.5),
    ("data.max_prompt_length", 0),
    ("data.max_response_length", -1),
    ("data.val_max_samples", 0),
    ("data.shuffle", 3),
    ("reward.num_workers", 0),
    ("distillation.n_gpus_per_node", 0),
]


def refusal(config):
    message = main.check(config)
    assert message is not None, "not refused"
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("key", "value"), VALUES, ids=[f"{key.rsplit('.')[-1]}={value}" for key, value in VALUES])
def test_values_that_cannot_be_meant(make_config, key, value):
    message = refusal(make_config(**{key: value}))
    assert message.startswith(f"{key}={value}")
    assert " must be " in message


OTHERS = [
    ("trd_opd", {"data.train_batch_size": 100000, f"{ACTOR}.ppo_mini_batch_size": 100000}, "exceeds the 64 samples"),
    ("trd_opd", {"data.train_max_samples": 10}, "exceeds the 10 samples"),
    ("trd_opd", {"data.train_batch_size": 8, f"{ACTOR}.ppo_mini_batch_size": 64}, "cannot be cut into mini-batches"),
    ("trd_opd", {"data.train_batch_size": 7, f"{ACTOR}.ppo_mini_batch_size": 4}, "cannot be cut into mini-batches"),
    ("trd_opd", {"data.max_prompt_length": 5}, "64 of 64 prompts of data.train_files are longer"),
    ("trd_opd", {"trd.rewrite.max_prompt_length": 10}, "trd.rewrite.max_prompt_length=10"),
    ("opsd", {"trd.teacher.max_prompt_length": 10}, "trd.teacher.max_prompt_length=10"),
    ("grpo", {f"{ROLLOUT}.n": 1}, "actor_rollout_ref.rollout.n=1 with algorithm.adv_estimator=grpo"),
    ("trd_grpo", {f"{ROLLOUT}.n": 1}, "actor_rollout_ref.rollout.n=1 with algorithm.adv_estimator=grpo"),
    ("trd_grpo", {"algorithm.adv_estimator": "rloo"}, "algorithm.adv_estimator=rloo with trd.trajectory=y_r"),
    ("trd_grpo", {"algorithm.adv_estimator": "reinforce_plus_plus"}, "which only grpo counts once"),
    ("trd_opd", {"data.reward_function": "/nope.py"}, "reward.custom_reward_function.path=/nope.py"),
    ("trd_opd", {"trainer.logger": ["file", "foo"]}, "trainer.logger has foo"),
    ("trd_opd", {"trainer.logger": ["file", "mlflow"]}, "trainer.logger has mlflow, which is not installed"),
    ("trd_opd", {"trainer.n_gpus_per_node": 8}, "trainer.n_gpus_per_node=8"),
    ("trd_opd", {"trainer.resume_mode": "sometimes"}, "trainer.resume_mode=sometimes"),
    ("trd_opd", {"trainer.resume_mode": "resume_path"}, "trainer.resume_from_path=None"),
    ("trd_opd", {f"{ROLLOUT}.name": "sglang"}, "sglang"),
    ("trd_opd", {f"{ROLLOUT}.agent.default_agent_loop": "tool_agent"}, "default_agent_loop=tool_agent"),
    ("trd_opd", {f"{ACTOR}.fsdp_config.model_dtype": "fp16"}, "fsdp_config.model_dtype=fp16"),
    ("trd_opd", {f"{MODEL}.lora_adapter_path": "/nowhere"}, "lora_adapter_path=/nowhere holds no adapter_config.json"),
    ("trd_opd", {"trd.preflight.skip": ["everything"]}, "no such check can be left out"),
    ("trd_opd", {"trainer.default_local_dir": "/proc/nothing/here"}, "trainer.default_local_dir=/proc/nothing/here"),
]


@pytest.mark.parametrize(("method", "changes", "text"), OTHERS, ids=[str(next(iter(case[1]))) for case in OTHERS])
def test_settings_that_contradict_the_rest(make_config, method, changes, text):
    message = refusal(make_config(method, **changes))
    assert text in message, message


def test_top_k_beyond_what_the_server_sends(make_config):
    config = make_config(**{"trd.objective.top_k": 200})
    key = "distillation.teacher_models.teacher_model.inference.engine_kwargs.vllm.max_logprobs"
    OmegaConf.update(config, key, 20, force_add=True)
    message = refusal(config)
    assert "200" in message
    assert "max_logprobs" in message


ROW = {"data_source": "x", "reward_model": {"ground_truth": "2"}, "extra_info": {"reference_solution": "1+1=2"}}
ASKED = [{"role": "user", "content": "1+1=?"}]

CONTENTS = {
    "empty": ([], "has no sample"),
    "a prompt that is a string": ([ROW | {"prompt": "1+1=?"}], "is str, not chat messages"),
    "a prompt without messages": ([ROW | {"prompt": []}], "has no message"),
    "messages without a role": ([ROW | {"prompt": [{"content": "1+1=?"}]}], "is no chat message"),
    "a message without text": ([ROW | {"prompt": [{"role": "user", "content": ""}]}], "not a text"),
    "an answer as the last message": (
        [ROW | {"prompt": [*ASKED, {"role": "assistant", "content": "2"}]}],
        "ends with a message of the assistant",
    ),
    "no ground truth": ([ROW | {"prompt": ASKED, "reward_model": {"style": "rule"}}], "has no ground_truth"),
    "a ground truth that is no answer": (
        [ROW | {"prompt": ASKED, "reward_model": {"ground_truth": ["1", "2"]}}],
        "is no answer; give a text or a number",
    ),
    "a ground truth of null": (
        [ROW | {"prompt": ASKED, "reward_model": {"ground_truth": None}}],
        "has no ground_truth",
    ),
}


@pytest.mark.parametrize("key", ["train_files", "val_files"])
@pytest.mark.parametrize("content", CONTENTS)
def test_data_that_no_run_can_use(make_config, tmp_path, content, key):
    rows, text = CONTENTS[content]
    path = tmp_path / "rows.parquet"
    columns = ["prompt", *ROW]
    pd.DataFrame(rows * 64, columns=columns).to_parquet(path)
    message = refusal(make_config(**{f"data.{key}": str(path)}))
    assert text in message, message
    assert str(path) in message


def test_rows_that_choose_an_agent_with_tools(make_config, tmp_path):
    path = tmp_path / "rows.parquet"
    rows = [
        ROW | {"prompt": [{"role": "user", "content": f"{number}"}], "agent_name": "single_turn_agent"}
        for number in range(64)
    ]
    pd.DataFrame(rows).to_parquet(path)
    assert main.check(make_config(**{"data.train_files": str(path)})) is None
    rows[9]["agent_name"] = "tool_agent"
    pd.DataFrame(rows).to_parquet(path)
    message = refusal(make_config(**{"data.train_files": str(path)}))
    assert f"{path}, row 9: agent_name=tool_agent: the teacher of method trd_opd is shown no tools" in message


def test_references_that_are_in_no_row(make_config, tmp_path):
    path = tmp_path / "rows.parquet"
    rows = [
        ROW | {"prompt": [{"role": "user", "content": f"{number}"}], "extra_info": {"a": 1}} for number in range(64)
    ]
    pd.DataFrame(rows).to_parquet(path)
    message = refusal(make_config("opsd", **{"data.train_files": str(path)}))
    assert "no sample of data.train_files" in message
    assert "trd.reference_key=extra_info.reference_solution" in message


@pytest.fixture
def copied_model(model_path, tmp_path):
    return Path(shutil.copytree(model_path, tmp_path / "model"))


def test_weights_that_are_not_whole(make_config, copied_model):
    for role in (f"{MODEL}.path", "distillation.teacher_models.teacher_model.model_path"):
        file = copied_model / "model.safetensors"
        whole = file.read_bytes()
        for left in (whole[:-2], b"", None):
            file.unlink() if left is None else file.write_bytes(left)
            message = refusal(make_config(**{role: str(copied_model)}))
            assert message.startswith(f"{role}={copied_model}")
            assert "copy the folder again" in message
        file.write_bytes(whole)
    index = {"weight_map": {"weight": "model.safetensors", "other": "model-2.safetensors"}}
    (copied_model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks model-2.safetensors" in refusal(make_config(**{f"{MODEL}.path": str(copied_model)}))


def test_one_of_two_formats_is_enough(make_config, copied_model):
    """As a snapshot of the hub without *.bin, whose index is a JSON file like others."""
    index = {"weight_map": {"weight": "pytorch_model-00001-of-00002.bin"}}
    (copied_model / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert main.check(make_config(**{f"{MODEL}.path": str(copied_model)})) is None


def test_weights_of_torch_that_are_cut_off(make_config, copied_model):
    (copied_model / "model.safetensors").unlink()
    file = copied_model / "pytorch_model.bin"
    torch.save({"weight": torch.zeros(9)}, file)
    config = {f"{MODEL}.path": str(copied_model)}
    assert main.check(make_config(**config)) is None
    file.write_bytes(file.read_bytes()[:-9])
    assert "pytorch_model.bin is no whole file of weights" in refusal(make_config(**config))


@pytest.mark.parametrize("roles", [("student",), ("teacher",), ("student", "teacher")], ids=" and ".join)
def test_chat_templates_that_do_not_open_the_turn(make_config, copied_model, roles):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(copied_model)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    )
    tokenizer.save_pretrained(copied_model)
    keys = {"student": f"{MODEL}.path", "teacher": "distillation.teacher_models.teacher_model.model_path"}
    message = refusal(make_config("opd_topk", **{keys[role]: str(copied_model) for role in roles}))
    assert message.startswith(
        f"{keys[roles[0]]}={copied_model}: its chat template writes nothing for add_generation_prompt"
    )
    assert ("actor_rollout_ref.model.custom_chat_template" in message) is (roles[0] == "student")


@pytest.mark.parametrize(
    ("key", "value"),
    [("trd.method", "opsd"), (f"{MODEL}.path", "another"), (f"{MODEL}.lora_rank", 16), ("data.train_files", "others")],
)
def test_a_checkpoint_of_another_run(make_config, tmp_path, key, value):
    config = make_config(**{"trainer.default_local_dir": str(tmp_path / "run")})
    before = config.copy()
    *parents, name = key.split(".")
    node = before
    for parent in parents:
        node = node[parent]
    node[name] = value
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "latest_checkpointed_iteration.txt").write_text("3")
    (tmp_path / "run" / "config.yaml").write_text(OmegaConf.to_yaml(before, resolve=True))
    message = refusal(config)
    assert message.startswith(f"{key}=")
    assert f"was made with {value}" in message
    assert "trainer.resume_mode=disable" in message


def test_batch_invariance_needs_cuda(make_config):
    message = refusal(make_config(**{f"{ROLLOUT}.full_determinism": True}))
    assert message.startswith(f"{ROLLOUT}.full_determinism=True: the batch invariance of vLLM")


@pytest.fixture
def saved(tmp_path):
    """A run folder with checkpoints of steps 5 and 6."""
    for step in (5, 6):
        written = tmp_path / checkpoints.ASIDE / f"global_step_{step}"
        written.mkdir(parents=True)
        torch.save({"step": step}, written / "model.pt")
        checkpoints.publish(written, tmp_path)
    return tmp_path


def test_a_run_that_is_finished_says_so(make_config, saved):
    run = {"trainer.default_local_dir": str(saved)}
    assert surroundings.finished_step(make_config(**run, **{"trainer.total_training_steps": 6})) == 6
    assert surroundings.finished_step(make_config(**run, **{"trainer.total_training_steps": 7})) is None
    (saved / "global_step_6" / "model.pt").write_bytes(b"")
    assert surroundings.finished_step(make_config(**run, **{"trainer.total_training_steps": 6})) is None


def test_checkpoints_that_cannot_be_resumed(make_config, saved):
    (saved / "global_step_6" / "model.pt").write_bytes(b"")
    assert main.check(make_config(**{"trainer.default_local_dir": str(saved)})) is None  # the one before is whole
    given = {"trainer.resume_mode": "resume_path", "trainer.resume_from_path": str(saved / "global_step_6")}
    assert "global_step_6 is damaged (model.pt: 0 bytes" in main.check(make_config(**given))
    (saved / "global_step_5" / "model.pt").unlink()
    refusal = main.check(make_config(**{"trainer.default_local_dir": str(saved)}))
    assert "none of its checkpoints is whole; set it to another folder, or trainer.resume_mode=disable" in refusal


def test_steps_are_reached_whatever_the_epochs_say(make_config):
    config = make_config(**{"trainer.total_training_steps": 6, "trainer.total_epochs": 1})
    assert main.check(config) is None
    assert config.trainer.total_epochs == 6


REWARDS = {
    "raises": "def compute_score(**kwargs):\n    raise KeyError('answer')\n",
    "returns text": "def compute_score(**kwargs):\n    return 'good'\n",
    "returns nothing": "def compute_score(**kwargs):\n    return None\n",
    "is not there": "def other(**kwargs):\n    return 1.0\n",
    "does not import": "import nothing_of_this_name\n",
}


@pytest.mark.parametrize("reward", REWARDS)
def test_reward_functions_that_do_not_work(make_config, tmp_path, reward):
    path = tmp_path / "my_reward.py"
    path.write_text(REWARDS[reward])
    message = refusal(make_config(**{"data.reward_function": str(path)}))
    assert f"reward.custom_reward_function.path={path}" in message


def test_a_reward_function_that_works(make_config, tmp_path):
    path = tmp_path / "my_reward.py"
    path.write_text("def compute_score(**kwargs):\n    return {'score': 1.0, 'acc': 1.0}\n")
    assert main.check(make_config(**{"data.reward_function": str(path)})) is None


def test_a_long_folder_for_sockets_is_replaced(monkeypatch, capsys):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + 80 * "x")
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", "")
    surroundings.shorten_socket_paths()
    assert os.environ["RAY_TMPDIR"] == os.environ["VLLM_RPC_BASE_PATH"] == "/tmp"
    assert "WARNING TMPDIR=" in capsys.readouterr().out


WARNINGS = [
    ("trd_opd", {"trainer.logger": ["console"]}, "without metrics.jsonl"),
    ("trd_opd", {}, "validation prompts are training prompts too"),
    ("eopd", {f"{ROLLOUT}.temperature": 0.6}, "their gradient is then biased"),
    ("trd_grpo", {f"{ROLLOUT}.top_p": 0.9}, "their gradient is then biased"),
    ("opd", {f"{ROLLOUT}.temperature": 0.6}, "but not the teacher's"),
    ("opd", {"data.train_batch_size": 64, f"{ACTOR}.ppo_mini_batch_size": 16}, "4 updates for a batch"),
]


@pytest.mark.parametrize(("method", "changes", "text"), WARNINGS, ids=[case[2] for case in WARNINGS])
def test_what_is_seldom_meant_is_warned_of(make_config, capsys, method, changes, text):
    assert main.check(make_config(method, **changes)) is None
    warned = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    assert any(text in line for line in warned), warned


def test_some_missing_references_are_counted(make_config, tmp_path, capsys):
    path = tmp_path / "rows.parquet"
    solutions = ["1+1=2" if number % 2 else "" for number in range(64)]
    rows = [
        ROW | {"prompt": [{"role": "user", "content": f"{number}"}], "extra_info": {"reference_solution": solution}}
        for number, solution in enumerate(solutions)
    ]
    pd.DataFrame(rows).to_parquet(path)
    assert main.check(make_config("opsd", **{"data.train_files": str(path)})) is None
    assert "WARNING 32 of 64 training samples have no reference solution" in capsys.readouterr().out


def test_a_check_can_be_left_out_by_name(make_config):
    config = make_config("grpo", **{f"{ROLLOUT}.n": 1, "trd.preflight.skip": ["groups"]})
    assert main.check(config) is None


@pytest.mark.parametrize("name", checks.FILL_IN)
def test_what_also_fills_in_cannot_be_left_out(make_config, name):
    assert name not in refusal(make_config(**{"trd.preflight.skip": [name]})).split("choose from")[1]


def test_what_is_left_to_the_method_is_filled_in_whatever_is_left_out(make_config):
    names = [name for name in checks.CHECKS if name not in checks.FILL_IN]
    config = make_config(**{"trd.preflight.skip": names, "trainer.total_training_steps": 99, "trainer.total_epochs": 1})
    assert main.check(config) is None
    assert (config.distillation.enabled, config.trainer.total_epochs) == (True, 99)


def test_checks_leave_no_run_folder(make_config, tmp_path):
    assert main.check(make_config(**{"trainer.default_local_dir": str(tmp_path / "a" / "run")})) is None
    assert not (tmp_path / "a").exists()


def test_samples_may_be_json_lines(make_config, tmp_path):
    path = tmp_path / "train.jsonl"
    rows = [ROW | {"prompt": [{"role": "user", "content": f"{number}\u2028=?"}]} for number in range(64)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert main.check(make_config(**{"data.train_files": str(path)})) is None


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("actor_rollout_ref.rollout.n=0", "actor_rollout_ref.rollout.n=0 must be a whole number of at least 1"),
        (
            "trainer.default_local_dir=/proc/nothing/here",
            "trainer.default_local_dir=/proc/nothing/here: nothing can be",
        ),
        ("trainer.default_local_dir={file}", "trainer.default_local_dir={file}: nothing can be written there"),
    ],
    ids=["a value", "no folder can be there", "a file in the way"],
)
def test_main_refuses(tmp_path, override, line):
    """The whole command: exit code 2, one line, nothing started."""
    file = tmp_path / "file"
    file.touch()
    command = [
        sys.executable,
        "-m",
        "recipe.trd.main",
        "method=trd_opd",
        "model=tiny",
        "data=tiny_world",
        "cluster=cpu",
    ]
    done = subprocess.run(
        [*command, f"trainer.default_local_dir={tmp_path / 'run'}", override.format(file=file)],
        cwd=ROOT,
        env=os.environ | {"VERL_PLATFORM": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"cannot start: {line.format(file=file)}" in done.stderr
    assert "Traceback" not in done.stderr
    assert "ray" not in done.stdout.lower()


@pytest.mark.parametrize(
    ("node", "name", "nearest"),
    [
        ("trd", "trajectorie", "trajectory"),
        ("trd.objective", "entropy_abov", "entropy_above"),
        ("trd.rewrite", "foo", ""),
    ],
)
def test_a_key_that_no_node_has(make_config, node, name, nearest):
    config = make_config()
    OmegaConf.update(config, f"{node}.{name}", 1, force_add=True)
    message = refusal(config)
    assert message.startswith(f"{node}.{name} is no key; {node} has {nearest}")


def test_what_methods_share_is_no_method(make_config):
    config = make_config()
    config.trd.method = "???"
    assert "choose method=trd_opd" in refusal(config)
