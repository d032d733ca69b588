"""verl's hybrid worker (actor and rollout) with a frozen teacher in the same process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from verl.single_controller.base.decorator import Dispatch, register
from verl.trainer.config import CheckpointConfig
from verl.utils.device import get_device_id, get_device_name
from verl.workers.config import HFModelConfig
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine_workers import ActorRolloutRefWorker

from verl_ext.engine.causal_lm import check_head
from verl_ext.engine.distillation import FROZEN, VENDOR, DistillationEngine, FrozenEngine
from verl_ext.engine.ema import WeightAverage
from verl_ext.engine.probe import Probe
from verl_ext.engine.self_teacher import SelfTeacher
from verl_ext.server import lora


class DistillationWorker(ActorRolloutRefWorker):
    """verl's worker with `DistillationEngine` as the actor's engine."""

    teacher: FrozenEngine | SelfTeacher | None = None

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        """Build what verl builds.

        Raises:
            RuntimeError: an architecture whose logits are not what hidden states and head say.
        """
        os.environ["VERL_ENGINE_VENDOR"] = VENDOR
        lora.register()
        super().init_model()
        _check(self.actor.engine)

    def set_teacher(self, path: str | None, *, dtype: str = "bf16", offload: bool = False) -> None:
        """Load the teacher, or let go of it with None.

        Args:
            path: Hugging Face model.
            dtype: of its weights and its forward pass: `bf16`, `fp16` or `fp32`.
            offload: keep its weights in host memory except in `teacher_on_device`.
        """
        student = self.actor.engine
        self.teacher = None if path is None else build_teacher(path=path, dtype=dtype, offload=offload, student=student)
        student.teacher = self.teacher
        if self.teacher is not None:
            _check(self.teacher)

    def set_average(self, decay: float | None, *, on_server: bool = False) -> None:
        """Keep a moving average of the trained weights, which starts here, or let go of it with None.

        Args:
            decay: of the average, for every optimiser step.
            on_server: send it to the rollout server with every weight update, as a second adapter (LoRA).
        """
        student = self.actor.engine
        student.average = None if decay is None else WeightAverage(student.module, decay=decay)
        self.rollout.average = self._averaged_adapter if on_server else None

    def _averaged_adapter(self) -> list[tuple[str, Tensor]]:
        """The average, named as verl names the adapter for the server."""
        student = self.actor.engine
        with student.average.swapped_in():
            adapter, _ = student.get_per_tensor_param(layered_summon=self.layered_summon, base_sync_done=True)
            # Copies: on one device verl hands out the parameters themselves.
            return [(name, tensor.clone()) for name, tensor in adapter]

    def set_self_teacher(self, *, averaged: bool = False, without_adapters: bool = False) -> None:
        """Let the student's own module teach.

        Args:
            averaged: teach with the average of `set_average`.
            without_adapters: teach with the adapters off, which is the student at step 0 (LoRA).
        """
        student = self.actor.engine
        average = student.average if averaged else None
        self.teacher = SelfTeacher(student, average=average, without_adapters=without_adapters)
        student.teacher = self.teacher

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def last_probe(self) -> Probe | None:
        """What was measured after the last optimiser step; each rank has tokens of its own."""
        probe: Probe | None = self.actor.engine.probe
        return probe

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_checkpoint(
        self, local_path: str, hdfs_path: str | None = None, global_step: int = 0, max_ckpt_to_keep: int | None = None
    ) -> None:
        """verl's, and the average of the weights beside it."""
        super().save_checkpoint(local_path, hdfs_path, global_step, max_ckpt_to_keep)
        if self.actor.engine.average is not None:
            torch.save(self.actor.engine.average.state_dict(), self._average_file(local_path))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_checkpoint(
        self, local_path: str, hdfs_path: str | None = None, del_local_after_load: bool = False
    ) -> None:
        """verl's, and the average of the weights beside it.

        Raises:
            FileNotFoundError: the run that saved had no average, or another number of ranks.
            ValueError: the average is that of another model.
        """
        super().load_checkpoint(local_path, hdfs_path, del_local_after_load)
        if self.actor.engine.average is not None and local_path is not None:
            state = torch.load(self._average_file(local_path), map_location="cpu")
            self.actor.engine.average.load_state_dict(state)

    def _average_file(self, local_path: str) -> Path:
        return Path(local_path) / f"ema_world_size_{dist.get_world_size()}_rank_{dist.get_rank()}.pt"

    @contextmanager
    def teacher_on_device(self) -> Iterator[None]:
        """The teacher's weights are where it computes; an offloaded one goes back afterwards."""
        if isinstance(self.teacher, FrozenEngine):
            with _on_device(self.teacher):
                yield
        else:
            yield


@contextmanager
def _on_device(engine: DistillationEngine) -> Iterator[None]:
    if engine.is_param_offload_enabled:
        engine.to(device=get_device_name(), model=True, optimizer=False, grad=False)
    yield
    if engine.is_param_offload_enabled:
        engine.to(device="cpu", model=True, optimizer=False, grad=False)


def _check(engine: DistillationEngine) -> None:
    with _on_device(engine), engine.autocast():
        check_head(engine.module, vocab_size=engine.model_config.hf_config.vocab_size, device=get_device_id())


def build_teacher(*, path: str, dtype: str, offload: bool, student: DistillationEngine) -> FrozenEngine:
    """A frozen model, sharded over the student's ranks in the student's way.

    Args:
        path: Hugging Face model.
        dtype: of its weights and its forward pass: `bf16`, `fp16` or `fp32`.
        offload: whether its weights start in host memory.
        student: the engine whose ranks, padding and attention it shares.
    """
    student_model = student.model_config
    model_config = HFModelConfig(
        path=path,
        trust_remote_code=student_model.trust_remote_code,
        external_lib=student_model.external_lib,
        override_config=student_model.override_config,
        use_remove_padding=student_model.use_remove_padding,
        enable_gradient_checkpointing=False,
    )
    engine_config = replace(
        student.engine_config,
        model_dtype=dtype,
        mixed_precision={"param_dtype": dtype, "reduce_dtype": dtype, "buffer_dtype": dtype},
        param_offload=offload,
        optimizer_offload=False,
        offload_policy=False,
        use_torch_compile=False,
    )
    engine = EngineRegistry.new(
        model_type=FROZEN,
        backend=engine_config.strategy,
        model_config=model_config,
        engine_config=engine_config,
        optimizer_config=None,
        checkpoint_config=CheckpointConfig(save_contents=[], load_contents=[]),
    )
    engine.initialize()
    return engine
