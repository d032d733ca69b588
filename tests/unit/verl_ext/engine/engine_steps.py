"""One update's loss and gradient, computed many ways. Started by test_distillation_engine.py on one and two processes:

torchrun --nproc_per_node=N engine_steps.py MODELS OUT

MODELS has student/, teacher/ (other size, larger head) and twin/ (the student's shape), and local_student/ and
local_teacher/, whose attention adds nothing: only flash-attn can cut attention over ranks (Ulysses). OUT gets
{case: result}.
"""

import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPActorConfig, FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine.base import EngineRegistry

from recipe.trd.rewrite.alignment import at_student_positions
from recipe.trd.rewrite.topk import TopKLogProbs
from recipe.trd.training.loss import MASKS, Loss, add_masks, trd_loss
from verl_ext.divergence import Objective, Term
from verl_ext.engine.ema import WeightAverage
from verl_ext.engine.self_teacher import SelfTeacher
from verl_ext.engine.worker import build_teacher

LENGTHS = ((3, 5, 9), (1, 1, 4), (6, 2, 2), (2, 7, 11), (4, 3, 1), (2, 4, 6), (5, 6, 3), (1, 8, 8))
"""(P, R, P_t) of every sample: the teacher's prompt is mostly longer."""

TOP_K, VOCAB = 5, 90

SETTINGS = {
    "divergence": None,
    "policy": None,
    "hidden_coef": 0.0,
    "normalize": False,
    "last_layer_only": False,
    "projections": None,
    "teacher_layers": None,
    "swapped": None,
}


def objective(*terms):
    return Objective(terms=tuple(Term(**term) for term in terms))


FORWARD = {"divergence": "forward_kl", "support": "full"}
TOP = {"divergence": "forward_kl", "support": "teacher_topk", "tail": "bucket", "top_k": TOP_K}
METHODS = {
    "forward_kl": ("teacher", {"divergence": objective(FORWARD)}),
    "jsd": ("teacher", {"divergence": objective({"divergence": "jsd", "support": "full", "beta": 0.3})}),
    "student_topk": (
        "teacher",
        {"divergence": objective({**TOP, "divergence": "reverse_kl", "support": "student_topk"})},
    ),
    "eopd": (
        "teacher",
        {
            "divergence": objective(
                {"divergence": "sampled_kl", "support": "sampled", "estimator": "k1"},
                {**TOP, "tail": "renormalize_teacher", "entropy_above": 2.9},
            )
        },
    ),
    "generation": (None, {"divergence": objective(TOP)}),
    "hidden": ("twin", {"hidden_coef": 2.0}),
    "mixed": ("twin", {"divergence": objective(FORWARD), "hidden_coef": 0.5}),
    "policy": (
        None,
        {"divergence": objective(TOP), "policy": objective({"divergence": "policy_gradient", "support": "sampled"})},
    ),
    "self": ("student", {"divergence": objective(FORWARD), "same_context": True}),
}

BATCHINGS = {
    "micro_1": {"use_dynamic_bsz": False, "micro_batch_size_per_gpu": 1},
    "micro_4": {"use_dynamic_bsz": False, "micro_batch_size_per_gpu": 4},
    "dynamic": {"use_dynamic_bsz": True, "max_token_len_per_gpu": 24},
}


def samples():
    generator = torch.Generator().manual_seed(0)

    def ids(num):
        return torch.randint(VOCAB, (num,), generator=generator)

    batch = []
    for index, (num_prompt, num_response, num_teacher) in enumerate(LENGTHS):
        prompt, response, context = ids(num_prompt), ids(num_response), ids(num_teacher)
        mask = torch.ones(num_response, dtype=torch.int64)
        if index == 2:
            mask[:] = 0
        if index == 3:
            mask[2] = 0
        best = torch.randn(num_response, VOCAB, generator=generator).log_softmax(-1).topk(TOP_K, -1)
        teacher_ids, teacher_log_probs = at_student_positions(
            TopKLogProbs(best.indices.int().numpy(), best.values.numpy()),
            num_prompt=num_prompt,
            num_response=num_response,
            top_k=TOP_K,
        )
        batch.append(
            {
                "prompts": prompt,
                "responses": response,
                "input_ids": torch.cat([prompt, response]),
                "position_ids": torch.arange(num_prompt + num_response),
                "teacher_input_ids": torch.cat([context, response]),
                "response_mask": mask,
                "loss_mask": mask,
                "teacher_ids": teacher_ids,
                "teacher_logprobs": teacher_log_probs,
                "advantages": torch.randn(num_response, generator=generator),
            }
        )
    return batch


def batch_of(batch, trd, **settings):
    columns = {name: [sample[name] for sample in batch] for name in batch[0]}
    data = tu.get_tensordict(
        {name: torch.nested.as_nested_tensor(values, layout=torch.jagged) for name, values in columns.items()}
    )
    add_masks(data, trd)
    tu.assign_non_tensor(data, global_batch_size=len(LENGTHS), temperature=1.0, use_fused_kernels=False, **settings)
    return data


def build_student(path, packed, num_shards=1, lora_rank=0):
    model = HFModelConfig(
        path=path,
        use_remove_padding=packed,
        enable_gradient_checkpointing=packed,
        override_config={"attn_implementation": "sdpa"},
        lora_rank=lora_rank,
    )
    fp32 = dict.fromkeys(("param_dtype", "reduce_dtype", "buffer_dtype"), "fp32")
    config = FSDPEngineConfig(
        strategy="fsdp2",
        model_dtype="fp32",
        mixed_precision=fp32,
        use_torch_compile=False,
        ulysses_sequence_parallel_size=num_shards,
    )
    engine = EngineRegistry.new(
        model_type="language_model",
        backend="fsdp2",
        model_config=model,
        engine_config=config,
        optimizer_config=FSDPOptimizerConfig(lr=1e-3, total_training_steps=1),
        checkpoint_config=CheckpointConfig(save_contents=[], load_contents=[]),
    )
    engine.initialize()
    engine.counted = MASKS
    return engine


def step(engine, teacher, settings, batch, trd, batching, mode):
    """Loss over the global batch, metrics of this rank, and the whole gradient."""
    settings = dict(settings)
    if settings.pop("same_context", False):
        batch = [{**sample, "teacher_input_ids": sample["input_ids"]} for sample in batch]
    config = FSDPActorConfig(strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=1, loss_agg_mode=mode)
    loss, recorded = Loss(**{**SETTINGS, **settings}), []
    engine.teacher, engine.with_layers = teacher, loss.hidden_coef > 0
    engine.with_head = loss.divergence is not None
    data = batch_of(batch, trd, use_remove_padding=engine.use_remove_padding, **batching)
    with engine.train_mode():
        engine.optimizer_zero_grad()
        output = engine.forward_backward_batch(
            data,
            partial(trd_loss, config=config, distillation_config=None, loss=loss, record=recorded.append),
        )
        gradient = {}
        for name, parameter in engine.module.named_parameters():
            grad = parameter.grad
            if grad is not None:
                gradient[name] = (grad.full_tensor() if isinstance(grad, DTensor) else grad).clone()
        engine.optimizer_zero_grad()
    total = torch.tensor(sum(output["loss"]))
    dist.all_reduce(total)
    num_values = torch.tensor(sum(len(values) for values in recorded))
    dist.all_reduce(num_values)
    return {
        "loss": total.item() / dist.get_world_size(),
        "metrics": {name: float(metric.aggregate()) for name, metric in output["metrics"].items()},
        "gradient": gradient,
        "num_values": num_values.item(),
        "num_micro_batches": len(output["loss"]),
    }


def main(models, out):
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    share = samples()[rank * len(LENGTHS) // world : (rank + 1) * len(LENGTHS) // world]
    results = {}
    for packed in (True, False):
        engine = build_student(str(models / "student"), packed)
        teachers = {None: None}
        for name in ("teacher", "twin", "student"):
            teachers[name] = build_teacher(
                path=str(models / name), dtype="fp32", offload=name == "twin", student=engine
            )
        for method, (teacher, settings) in METHODS.items():
            modes = ("token-mean", "seq-mean-token-mean") if method == "forward_kl" else ("token-mean",)
            for name, batching in BATCHINGS.items():
                for mode in modes:
                    results[method, packed, name, mode] = step(
                        engine, teachers[teacher], settings, share, trd_config(settings), batching, mode
                    )
    # Whole sequences on one rank, slices of the same sequences on two.
    engine = build_student(str(models / "local_student"), True, num_shards=world)
    teacher = build_teacher(path=str(models / "local_teacher"), dtype="fp32", offload=False, student=engine)
    for method in ("forward_kl", "eopd", "generation", "policy"):
        settings = METHODS[method][1]
        results[method, "slices"] = step(
            engine,
            teacher if METHODS[method][0] else None,
            settings,
            samples(),
            trd_config(settings),
            BATCHINGS["dynamic"],
            "token-mean",
        )
    results |= self_teachers(models, share)
    if rank == 0:
        torch.save(results, out)
    dist.barrier()
    dist.destroy_process_group()


def self_teachers(models, share):
    """The student's own module as teacher, each beside a frozen engine with the weights that it should have."""
    settings = METHODS["forward_kl"][1]

    def run(engine, teacher):
        return step(engine, teacher, settings, share, trd_config(settings), BATCHINGS["micro_4"], "token-mean")

    engine = build_student(str(models / "student"), True)
    first, twin = (
        build_teacher(path=str(models / name), dtype="fp32", offload=False, student=engine)
        for name in ("student", "twin")
    )
    results = {("live", "self"): run(engine, own(engine)), ("live", "engine"): run(engine, first)}

    average = WeightAverage(engine.module, decay=0.9)
    copy_weights(twin.module, engine.module)
    results["ema", "self"] = run(engine, own(engine, average=average))
    results["ema", "engine"] = run(engine, first)
    kept = weights(engine.module)
    results["ema", "student is untouched"] = all(
        torch.equal(kept[name], value) for name, value in weights(twin.module).items()
    )
    average.update()
    start, moved = weights(first.module), average.state_dict()["shards"]
    results["ema", "error"] = max(
        (moved[name] - (0.9 * start[name] + 0.1 * kept[name])).abs().max().item() for name in kept
    )
    again = WeightAverage(engine.module, decay=0.9)
    again.load_state_dict(average.state_dict())
    results["ema", "restored"] = all(torch.equal(again.shards[name], moved[name]) for name in moved)

    engine = build_student(str(models / "student"), True, lora_rank=4)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in engine.module.named_parameters():
            if "lora_B" in name:
                parameter.to_local().normal_(0, 0.1)
    results["lora", "self"] = run(engine, own(engine, without_adapters=True))
    results["lora", "engine"] = run(engine, first)
    results["lora", "live"] = run(engine, own(engine))
    results["lora", "trained"] = sorted(results["lora", "self"]["gradient"])
    return results


def own(engine, *, average=None, without_adapters=False):
    return SelfTeacher(engine, average=average, without_adapters=without_adapters)


def weights(module):
    """This rank's shards."""
    return {name: parameter.to_local().detach().clone() for name, parameter in module.named_parameters()}


@torch.no_grad()
def copy_weights(source, target):
    for from_parameter, to_parameter in zip(source.parameters(), target.parameters(), strict=True):
        to_parameter.to_local().copy_(from_parameter.to_local())


def trd_config(settings):
    """As much of the configuration as the masks read."""
    last = SimpleNamespace(positions="last", num_positions=3)
    return SimpleNamespace(
        trains_both=False,
        objective=SimpleNamespace(
            positions="all", num_positions=None, hidden=last, task_reward_coef=1.0 if settings.get("policy") else 0.0
        ),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
