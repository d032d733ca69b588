"""Exports of checkpoints that FSDP2 wrote, from one rank and from several, trained and not, whole and damaged."""

import copy
import json
import math
import re
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from recipe.trd.evaluate import model_weights
from recipe.trd.export import __main__ as command
from recipe.trd.export import compared_models, proof, proved_export
from verl_ext.runtime import weight_files

RANK, ALPHA = 4, 16
QUESTIONS = [f"Problem: {number}+{number + 1}=?" for number in range(6)]


def small_model(tokenizer, *, tied):
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer) + 5,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    return Qwen3ForCausalLM(config)


def with_adapters(model):
    """As verl wraps a model, with B matrices as after some training."""
    config = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules="all-linear", bias="none")
    wrapped = get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05)
    return wrapped


def save_shards(model, folder, *, world_size=1, replicas=1):
    """What every rank of an FSDP2 run writes; ranks that only exist in name need no others to write it."""
    folder.mkdir(parents=True)
    for rank in range(world_size):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
        try:
            shape, names = ((world_size,), ("fsdp",))
            if replicas > 1:
                shape, names = ((replicas, world_size // replicas), ("ddp", "fsdp"))
            mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
            sharded = copy.deepcopy(model)
            for layer in sharded.get_decoder().layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(sharded, mesh=mesh)
            torch.save(sharded.state_dict(), folder / f"model_world_size_{world_size}_rank_{rank}.pt")
        finally:
            dist.destroy_process_group()
    (folder / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": world_size}))


@pytest.fixture
def make_run(tmp_path, tokenizer):
    """A run with a base model, one validation and a checkpoint of step 7."""

    def build(*, lora=True, tied=True, trained=True, change=None, **shards):
        base = small_model(tokenizer, tied=tied)
        base.save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        model = with_adapters(copy.deepcopy(base)) if lora else copy.deepcopy(base)
        if trained and not lora:
            for parameter in model.parameters():
                parameter.data += 0.02 * torch.randn_like(parameter)
        if lora and not trained:
            for name, parameter in model.named_parameters():
                parameter.data.mul_("lora_B" not in name)
        if change:
            change(model)
        folder = tmp_path / "run" / "global_step_7" / "actor"
        save_shards(model, folder, **shards)
        base.config.save_pretrained(folder / "huggingface")
        GenerationConfig(eos_token_id=tokenizer.eos_token_id, max_length=77).save_pretrained(folder / "huggingface")
        tokenizer.save_pretrained(folder / "huggingface")
        if lora:
            metadata = {"r": RANK, "lora_alpha": ALPHA, "task_type": "CAUSAL_LM"}
            (folder / "lora_train_meta.json").write_text(json.dumps(metadata))
        settings = {"lora_rank": RANK if lora else 0, "lora_alpha": ALPHA, "target_modules": "all-linear"}
        write_run(tmp_path, tokenizer, settings)
        return SimpleNamespace(path=tmp_path / "run" / "global_step_7", folder=folder, model=model, base=base)

    return build


def dumped(tokenizer, prompt):
    """A prompt as verl's dump has it."""
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False)
    return tokenizer.decode(ids, skip_special_tokens=True)


def write_run(tmp_path, tokenizer, settings):
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    pd.DataFrame({"prompt": prompts}).to_parquet(tmp_path / "held_out.parquet")
    config = {
        "data": {"val_files": str(tmp_path / "held_out.parquet"), "prompt_key": "prompt"},
        "actor_rollout_ref": {"model": {"path": str(tmp_path / "base"), **settings}},
    }
    OmegaConf.save(OmegaConf.create(config), tmp_path / "run" / "config.yaml")
    (tmp_path / "run" / "validation").mkdir()
    for step in (0, 7):
        rows = [
            {"input": dumped(tokenizer, prompt), "output": f"Your solution: {step}-{number}"}
            for number, prompt in enumerate(prompts)
        ]
        path = tmp_path / "run" / "validation" / f"{step}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def export(tmp_path, capsys):
    """The command; exit code, what it said, and the folder."""

    def call(path, *arguments):
        out = tmp_path / "out"
        code = command.main([str(path), str(out), "--device", "cpu", *arguments])
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, said=captured.out + captured.err, out=out)

    return call


@torch.no_grad()
def logits(model, tokenizer):
    ids = tokenizer("Problem: 12+34=46", return_tensors="pt")["input_ids"]
    return model.eval()(input_ids=ids).logits


def nothing_is_left(out):
    return {path.name for path in out.parent.iterdir()} == {"base", "run", "held_out.parquet"}


def shard_files(checkpoint):
    return sorted(checkpoint.folder.glob("model_world_size_*.pt"))


def rewrite(checkpoint, change):
    """Replace the tensors of every shard; `change` takes a dictionary and returns one."""
    for path in shard_files(checkpoint):
        torch.save(change(torch.load(path)), path)


@pytest.mark.parametrize(
    ("shards", "tied"), [({}, False), ({"world_size": 3}, True), ({"world_size": 4, "replicas": 2}, True)]
)
def test_adapters_are_merged_from_any_number_of_ranks(make_run, export, tokenizer, shards, tied):
    trained = make_run(tied=tied, **shards)
    done = export(trained.path)
    assert done.code == 0, done.said
    model = AutoModelForCausalLM.from_pretrained(done.out)
    assert model.dtype == torch.float32
    torch.testing.assert_close(logits(model, tokenizer), logits(trained.model, tokenizer), atol=1e-4, rtol=1e-4)
    assert (logits(model, tokenizer) - logits(trained.base, tokenizer)).abs().max() > 0.1
    layer = trained.model.base_model.model.model.layers[1].mlp.up_proj
    delta = layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double() * (ALPHA / RANK)
    wanted = layer.base_layer.weight.double() + delta
    torch.testing.assert_close(model.model.layers[1].mlp.up_proj.weight.double(), wanted, atol=1e-6, rtol=0)
    result = json.loads((done.out / "export.json").read_text())
    assert result["checkpoint"]["world_size"] == shards.get("world_size", 1)
    assert result["checkpoint"]["step"] == 7
    assert result["kind"] == "merged"
    assert result["adapters"] == {
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": sorted(["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"]),
        "num_adapters": 14,
        "num_idle": 0,
    }
    assert result["weights_against_base"]["num_changed"] == 14
    assert result["text"]["num_texts"] == len(QUESTIONS)
    assert result["text"]["num_plain_prompts"] == 0
    assert result["text"]["source"].endswith("7.jsonl")


@pytest.mark.parametrize("shards", [{}, {"world_size": 2}])
def test_all_parameters(make_run, export, tokenizer, shards):
    trained = make_run(lora=False, **shards)
    done = export(trained.path / "actor")
    assert done.code == 0, done.said
    model = AutoModelForCausalLM.from_pretrained(done.out)
    for name, value in trained.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert GenerationConfig.from_pretrained(done.out).max_length == 77
    reloaded = AutoTokenizer.from_pretrained(done.out)
    assert reloaded.get_vocab() == tokenizer.get_vocab()
    assert reloaded.chat_template == tokenizer.chat_template
    result = json.loads((done.out / "export.json").read_text())
    assert result["kind"] == "full"
    assert result["adapters"] is None
    assert result["differences_nats"]["exported"] == {"max": 0.0, "mean": 0.0, "kl": 0.0}
    assert result["fingerprint"] == weight_files.fingerprint(weight_files.hash_tensors(done.out))
    assert "trainer - exported" in done.said


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_rounded_after_they_are_merged(make_run, export, tokenizer, tmp_path, dtype):
    trained = make_run()
    done = export(trained.path, "--dtype", dtype)
    assert done.code == 0, done.said
    model = AutoModelForCausalLM.from_pretrained(done.out, dtype="auto")
    assert model.dtype == getattr(torch, dtype)
    whole = trained.model.merge_and_unload().state_dict()
    for name, value in model.state_dict().items():
        error = (value.float() - whole[name]).abs()
        assert (error <= torch.finfo(value.dtype).eps * whole[name].abs()).all(), name
    result = json.loads((done.out / "export.json").read_text())
    assert result["differences_nats"]["merged"]["max"] < 1e-4
    assert result["tolerance_nats"]["max"] == proof.TOLERANCES[model.dtype].max
    assert 0 < result["differences_nats"]["exported"]["kl"] < result["differences_nats"]["trained"]["kl"] / 10


def test_adapter_only(make_run, export, tokenizer, tmp_path):
    trained = make_run(world_size=2)
    done = export(trained.path, "--adapter-only")
    assert done.code == 0, done.said
    files = {"adapter_config.json", "adapter_model.safetensors", "export.json"}
    assert {path.name for path in done.out.iterdir()} == files
    config = json.loads((done.out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["inference_mode"]) == (RANK, ALPHA, True)
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    assert sorted(config["target_modules"])[0] == "down_proj"
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), done.out)
    assert torch.equal(logits(model, tokenizer), logits(trained.model, tokenizer))
    result = json.loads((done.out / "export.json").read_text())
    assert result["kind"] == "adapter"
    assert result["weights_against_base"] is None
    assert not model_weights.adapter_is_zero(done.out)


def test_shards_of_adapters_alone_are_merged_into_the_base(make_run, export, tokenizer):
    trained = make_run()
    rewrite(trained, lambda shard: {name: value for name, value in shard.items() if "lora_" in name})
    done = export(trained.path)
    assert done.code == 0, done.said
    model = AutoModelForCausalLM.from_pretrained(done.out)
    torch.testing.assert_close(logits(model, tokenizer), logits(trained.model, tokenizer), atol=1e-4, rtol=1e-4)


def zeroed(shard):
    for name, value in shard.items():
        if "lora_B" in name:
            value._local_tensor.zero_()
    return shard


def without_adapters(shard):
    return {name: value for name, value in shard.items() if "lora_" not in name}


def base_by_its_own_names(shard):
    kept = without_adapters(shard)
    return {name.removeprefix("base_model.model.").replace(".base_layer", ""): value for name, value in kept.items()}


@pytest.mark.parametrize("arguments", [[], ["--adapter-only"], ["--dtype", "bfloat16"]])
def test_adapters_that_were_zeroed_are_noticed(make_run, export, arguments):
    trained = make_run(world_size=2)
    rewrite(trained, zeroed)
    done = export(trained.path, *arguments)
    assert done.code == command.FAILED
    assert "the trainer's model equals the base model: adapters were dropped from the checkpoint" in done.said
    assert nothing_is_left(done.out)


@pytest.mark.parametrize("change", [without_adapters, base_by_its_own_names])
def test_adapters_that_were_taken_out_are_noticed(make_run, export, change):
    trained = make_run(world_size=2)
    rewrite(trained, change)
    done = export(trained.path)
    assert done.code == command.FAILED
    assert "the run trained adapters, and the shards" in done.said
    assert nothing_is_left(done.out)


def test_base_weights_without_any_trace_of_adapters_are_noticed(make_run, export):
    trained = make_run()
    rewrite(trained, base_by_its_own_names)
    (trained.folder / "lora_train_meta.json").unlink()
    path = trained.path.parent / "config.yaml"
    config = OmegaConf.load(path)
    config.actor_rollout_ref.model.lora_rank = 0
    OmegaConf.save(config, path)
    done = export(trained.path)
    assert done.code == command.FAILED
    assert "equals the base model" in done.said
    assert nothing_is_left(done.out)


@pytest.mark.parametrize("arguments", [[], ["--adapter-only"]])
def test_adapters_that_the_export_loses_are_noticed(make_run, export, monkeypatch, arguments):
    """What the published code did: base weights written, adapters aside."""
    trained = make_run()
    monkeypatch.setattr(compared_models, "merged", lambda model: model.unload())
    write_adapter = compared_models.write_adapter

    def write_nothing(model, out, **options):
        for name, value in model.state_dict().items():
            value.mul_("lora_B" not in name)
        write_adapter(model, out, **options)

    monkeypatch.setattr(compared_models, "write_adapter", write_nothing)
    done = export(trained.path, *arguments)
    assert done.code == command.FAILED
    assert "the exported model is not the trainer's" in done.said
    assert "it equals the base model: the adapters were lost" in done.said
    assert nothing_is_left(done.out)


def test_merge_with_another_scale_is_noticed(make_run, export, monkeypatch):
    trained = make_run()

    def merge(model):
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.scaling["default"] *= 1.05
        return model.merge_and_unload()

    monkeypatch.setattr(compared_models, "merged", merge)
    for arguments, message in (([], "is not the trainer's"), (["--dtype", "bfloat16"], "merging changed the model")):
        done = export(trained.path, *arguments)
        assert done.code == command.FAILED
        assert message in done.said
        assert nothing_is_left(done.out)


@pytest.mark.parametrize("lora", [True, False])
def test_checkpoint_of_step_0_is_exported_on_request(make_run, export, lora):
    untrained = make_run(lora=lora, trained=False)
    assert export(untrained.path).code == command.FAILED
    done = export(untrained.path, "--allow-unchanged")
    assert done.code == 0, done.said
    assert json.loads((done.out / "export.json").read_text())["weights_against_base"]["equal"]


def test_training_that_rounding_undoes_is_noticed(make_run, export):
    def nudge(model):
        for parameter in model.parameters():
            parameter.data.mul_(1 + 1e-4 * torch.randn_like(parameter))

    trained = make_run(lora=False, trained=False, change=nudge)
    done = export(trained.path, "--dtype", "bfloat16")
    assert done.code == command.FAILED
    assert "rounding to bfloat16 changes the model about as much as the training did" in done.said
    assert nothing_is_left(done.out)
    assert export(trained.path, "--dtype", "float32").code == 0


def test_values_that_are_not_numbers_are_noticed(make_run, export):
    trained = make_run(change=lambda model: model.get_input_embeddings().weight.data[3].fill_(math.nan))
    done = export(trained.path)
    assert done.code == command.FAILED
    assert "embed_tokens.weight and 1 more hold values that are no numbers" in done.said
    assert nothing_is_left(done.out)


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (lambda run: shard_files(run)[1].unlink(), [], r"of 3 ranks, the shards of \[1\] are missing"),
        (lambda run: shard_files(run)[2].write_bytes(b"PK"), [], "rank_2.pt cannot be read, is it whole"),
        (lambda run: (run.folder / "huggingface" / "config.json").unlink(), [], "huggingface has no config.json"),
        (lambda run: shutil.rmtree(run.path.parent / "validation"), [], "no validation of the run .* give --text"),
        (lambda run: (run.path.parent / "config.yaml").unlink(), [], "names the base model: give --base"),
        (lambda run: shutil.rmtree(run.path.parents[1] / "base"), [], "the base model cannot be read: .*; give --base"),
        (lambda run: (run.folder / "lora_train_meta.json").write_text("{"), [], "lora_train_meta.json is damaged"),
        (lambda run: (run.path.parents[1] / "out").touch(), [], "is there already: choose another folder"),
        (lambda run: None, ["--text", "nowhere.txt"], "nowhere.txt cannot be read as text"),
        (lambda run: None, ["--num-texts", "0"], "have to be 1 or more"),
        (
            lambda run: rewrite(run, lambda shard: dict(list(shard.items())[1:])),
            [],
            r"they lack \['base_model.model.model.embed_tokens.weight'\] \(1\)",
        ),
        (
            lambda run: (run.folder / "lora_train_meta.json").write_text('{"r": 4, "lora_alpha": 32}'),
            [],
            r"lora_alpha of the adapters is 32 in lora_train_meta.json, 16 in config.yaml",
        ),
    ],
)
def test_what_cannot_work_is_refused(make_run, export, tmp_path, spoil, arguments, message):
    trained = make_run(world_size=3)
    spoil(trained)
    done = export(trained.path, *arguments)
    assert done.code == command.REFUSED, done.said
    assert re.search(message, done.said), done.said
    assert not (tmp_path / "out").is_dir()


def test_run_folder_and_full_run_with_adapter_only_are_refused(make_run, export):
    trained = make_run(lora=False)
    done = export(trained.path.parent)
    assert done.code == command.REFUSED
    assert "give one of its steps: global_step_7" in done.said
    done = export(trained.path, "--adapter-only")
    assert done.code == command.REFUSED
    assert "there is no adapter; leave it out" in done.said


def test_another_base_is_refused(make_run, export, tokenizer, tmp_path):
    trained = make_run(lora=False)
    config = Qwen3Config(**{**trained.base.config.to_dict(), "vocab_size": 400})
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "other")
    done = export(trained.path, "--base", str(tmp_path / "other"))
    assert done.code == command.REFUSED
    assert "has a vocabulary of 400" in done.said


def test_head_and_embedding_that_came_apart_are_refused(make_run, export):
    trained = make_run(lora=False)

    def pull_apart(shard):
        shard["lm_head.weight"] = shard["lm_head.weight"] + 1
        return shard

    rewrite_plain(trained, pull_apart)
    done = export(trained.path)
    assert done.code == command.REFUSED
    assert "one tensor by the model's configuration, and two that differ in the shards" in done.said


def rewrite_plain(checkpoint, change):
    """As `rewrite`, with plain tensors, as they come from a run of one rank without DTensors."""

    def to_plain(shard):
        return change({name: value._local_tensor.clone() for name, value in shard.items()})

    rewrite(checkpoint, to_plain)


def test_plain_tensors(make_run, export):
    trained = make_run()
    rewrite_plain(trained, lambda shard: shard)
    assert export(trained.path).code == 0


def test_metadata_or_configuration_is_enough(make_run, export, tmp_path, tokenizer):
    trained = make_run()
    (trained.folder / "lora_train_meta.json").unlink()
    assert export(trained.path).code == 0
    shutil.rmtree(tmp_path / "out")
    (trained.folder / "lora_train_meta.json").write_text(json.dumps({"r": RANK, "lora_alpha": ALPHA}))
    (trained.path.parent / "config.yaml").unlink()
    done = export(trained.path, "--base", str(tmp_path / "base"))
    assert done.code == 0, done.said
    result = json.loads((done.out / "export.json").read_text())
    assert len(result["adapters"]["target_modules"]) == 7
    assert result["text"]["num_plain_prompts"] == len(QUESTIONS)


def test_interrupted_export_leaves_nothing(make_run, export, monkeypatch):
    trained = make_run()

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(proved_export, "measure", interrupt)
    done = export(trained.path)
    assert done.code == command.INTERRUPTED
    assert nothing_is_left(done.out)
