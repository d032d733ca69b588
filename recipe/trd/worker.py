"""verl's hybrid worker with the objective of this recipe."""

from functools import partial

from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import ActorRolloutRefWorker

from recipe.trd.objective import trd_loss


class TrdWorker(ActorRolloutRefWorker):
    """Actor and rollout of the student. Created by `TrdTrainer` in the place of verl's class."""

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        """Build everything as verl does, then hand the engine our loss."""
        super().init_model()
        self.actor.set_loss_fn(partial(trd_loss, **self.loss_fn.keywords))

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def update_actor(self, data: TensorDict) -> TensorDict:
        """Update with the student at temperature 1, as the teacher's log-probs are, whatever the rollout was drawn
        with."""
        tu.assign_non_tensor(data, temperature=1.0)
        return super().update_actor(data)
