"""The training worker with this recipe's objective; created by `TrdTrainer` in the place of verl's class."""

from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.device import get_device_id

from recipe.trd.config.axes import Layers
from recipe.trd.config.schema import TrdConfig
from recipe.trd.config.teacher_plan import Holder
from recipe.trd.oprd import bridge
from recipe.trd.training.first_look import FirstLook, batch_of
from recipe.trd.training.loss import MASKS, Loss, add_masks, trd_loss
from verl_ext.engine.positions import flat, lengths
from verl_ext.engine.probe import measure
from verl_ext.engine.self_teacher import SelfTeacher
from verl_ext.engine.worker import DistillationWorker

PROBE_TOKENS = 64
"""Tokens of a step whose log-probs are compared with the server's."""

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}


class TrdWorker(DistillationWorker):
    """Actor and rollout of the student, and the frozen teacher where `trd.teacher.scorer=engine`."""

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        """Build student, rollout and teacher, then hand the engine our loss."""
        super().init_model()
        self.setup_method()

    def setup_method(self) -> None:
        """Load the teacher and build the loss that `self.config.trd` asks for."""
        self.trd: TrdConfig = omega_conf_to_dataclass(self.config.trd)
        self._build_teacher()
        self.trd_loss = self._build_loss()
        self.actor.engine.counted = MASKS
        self.actor.engine.with_head = self.trd_loss.divergence is not None or self.trd_loss.policy is not None
        self.actor.engine.with_layers = self.trd_loss.hidden_coef > 0
        self.divergences: list[torch.Tensor] = []
        self.actor.set_loss_fn(
            partial(
                trd_loss,
                config=self.loss_fn.keywords["config"],
                distillation_config=None,
                loss=self.trd_loss,
                record=self.divergences.append,
            )
        )

    def _build_teacher(self) -> None:
        """A model of its own, or the student's module as it is, without its adapters, or with averaged weights."""
        teacher, plan = self.trd.teacher, self.trd.teacher_plan
        assert teacher is not None, "methods without a teacher run through verl's own worker"
        assert plan is not None, "there is a teacher"
        self.set_average(teacher.ema_decay if plan.keeps_average else None, on_server=Holder.AVERAGE in plan.servers)
        if plan.module is None:
            self.set_teacher(None)
        elif plan.module is Holder.OWN:
            self.set_teacher(teacher.engine.path, dtype=teacher.engine.dtype, offload=teacher.engine.offload)
        else:
            self.set_self_teacher(averaged=plan.module is Holder.AVERAGE, without_adapters=plan.module is Holder.BASE)

    def _build_loss(self) -> Loss:
        objective = self.trd.objective
        term = objective.hidden_term
        fitted = None
        if term is not None and objective.hidden.bridge is not None:
            fitted = bridge.load(objective.hidden.bridge, device=get_device_id())
        return Loss(
            divergence=objective.distributions(),
            policy=objective.policy(),
            hidden_coef=term.coef if term else 0.0,
            normalize=objective.hidden.normalize,
            last_layer_only=objective.hidden.layers is Layers.LAST,
            projections=fitted.projections if fitted else None,
            teacher_layers=fitted.teacher_layers if fitted else None,
            swapped=self._swapped(),
        )

    def _swapped(self) -> tuple[int, int] | None:
        """Ids that end a turn for the student and for the teacher, where they differ and are to count as one."""
        if self.teacher is None or self.trd.teacher_plan.is_self or not self.trd.teacher.eos_remap:
            return None
        student_eos, teacher_eos = (
            engine.model_config.tokenizer.eos_token_id for engine in (self.actor.engine, self.teacher)
        )
        return (student_eos, teacher_eos) if student_eos != teacher_eos else None

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def compute_log_prob(self, data: TensorDict) -> TensorDict:
        """Log-probs at temperature 1, like all that they are compared with."""
        tu.assign_non_tensor(data, temperature=1.0)
        return super().compute_log_prob(data)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def update_actor(self, data: TensorDict) -> TensorDict:
        """Update with both models at temperature 1, whatever the rollout was drawn with."""
        add_masks(data, self.trd)
        mini_batch_size = (2 if self.trd.trains_both else 1) * data["mini_batch_size"]
        tu.assign_non_tensor(data, temperature=1.0, mini_batch_size=mini_batch_size)
        self.actor.engine.probe_ids = [int(token) for token in flat(data["input_ids"])[: self._probe_length(data)]]
        with self.teacher_on_device():
            output = super().update_actor(data)
        quantiles = self._quantiles()
        if output is not None:
            tu.get(output, "metrics").update(quantiles)
        return output

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def look_first(self, token_ids: list[int]) -> FirstLook | None:
        """What the trainer says to a few tokens before the first step; None under Ulysses, which cuts them up."""
        engine = self.actor.engine
        if engine.use_ulysses_sp:
            return None
        with engine.eval_mode():
            return FirstLook(measure(engine, token_ids), self._self_divergence(token_ids))

    def _self_divergence(self, token_ids: list[int]) -> float | None:
        """Largest divergence of the student from itself, under the loss of the run."""
        engine, objective = self.actor.engine, self.trd_loss.divergence
        if objective is None or any(term.divergence == "cross_entropy" for term in objective.terms):
            return None
        values: list[torch.Tensor] = []
        data = batch_of(token_ids, self.trd)
        tu.assign_non_tensor(
            data,
            **{"use_dynamic_bsz": False, "micro_batch_size_per_gpu": 1, "global_batch_size": 1, "temperature": 1.0},
            use_remove_padding=engine.model_config.use_remove_padding,
            use_fused_kernels=False,
        )
        loss = partial(
            trd_loss,
            config=self.loss_fn.keywords["config"],
            distillation_config=None,
            loss=replace(self.trd_loss, swapped=None, hidden_coef=0.0, policy=None),
            record=values.append,
        )
        teacher, engine.teacher = engine.teacher, SelfTeacher(engine, average=None, without_adapters=False)
        with_layers, engine.with_layers = engine.with_layers, False
        try:
            engine.forward_backward_batch(data, loss, forward_only=True)
        finally:
            engine.teacher, engine.with_layers = teacher, with_layers
        return float(torch.cat(values).abs().max()) if values else None

    @staticmethod
    def _probe_length(data: TensorDict) -> int:
        """Tokens of the first sample, as many as are worth a look."""
        return min(PROBE_TOKENS, int(lengths(data["input_ids"])[0]))

    def _quantiles(self) -> dict[str, float]:
        """Quantiles of the divergence over all counted tokens of the step, on all ranks."""
        values = torch.cat(self.divergences).numpy() if self.divergences else np.zeros(0, np.float32)
        self.divergences.clear()
        gathered: list[np.ndarray] = [values] * dist.get_world_size()
        dist.all_gather_object(gathered, values)
        everything = np.concatenate(gathered)
        if everything.size == 0:
            return {}
        return {f"trd/divergence_{name}": float(np.quantile(everything, q)) for name, q in QUANTILES.items()}
