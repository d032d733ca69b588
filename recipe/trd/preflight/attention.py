"""Attention of the trainer: chosen by what is there, refused where it cannot work."""

from importlib.util import find_spec

from omegaconf import DictConfig, OmegaConf, open_dict

from verl_ext.runtime.console import show

KEY = "actor_rollout_ref.model.override_config.attn_implementation"
PACKED_MODULE = "verl_ext.engine.packed_attention"
PACKED = "packed"
"""What that module registers; it is not imported here, since it imports transformers' models."""


def choose(config: DictConfig) -> None:
    """Fill in the attention where it is left open: flash-attn's where it is installed, else what PyTorch has.

    Raises:
        ValueError: the attention that was asked for is not there, or not for these settings.
    """
    model = config.actor_rollout_ref.model
    asked = OmegaConf.select(config, KEY)
    has_flash = find_spec("flash_attn") is not None
    if str(asked).startswith("flash_attention") and not has_flash:
        raise ValueError(
            f"{KEY}={asked}: the package flash-attn is not installed; install it (scripts/install_gpu.sh tells how), "
            "or leave the key out: PyTorch's own attention is taken"
        )
    chosen = asked or ("flash_attention_2" if has_flash else PACKED if model.use_remove_padding else "sdpa")
    if chosen == PACKED and not model.use_remove_padding:
        raise ValueError(
            f"{KEY}={PACKED} with actor_rollout_ref.model.use_remove_padding=false: it is for packed sequences; leave "
            "the key out, or set use_remove_padding=true"
        )
    ranks = config.actor_rollout_ref.actor.ulysses_sequence_parallel_size
    if ranks > 1 and not chosen.startswith("flash_attention"):
        raise ValueError(
            f"actor_rollout_ref.actor.ulysses_sequence_parallel_size={ranks} with attention {chosen}: only flash-attn "
            "can cut attention over ranks; install it (scripts/install_gpu.sh tells how), or set the size to 1"
        )
    if asked is None:
        with open_dict(model):
            model.override_config = {**(model.override_config or {}), "attn_implementation": chosen}
        show(f"attention: {chosen}{'' if has_flash else ' (flash-attn is not installed)'}")
    if chosen == PACKED and asked is None and model.external_lib not in (None, PACKED_MODULE):
        raise ValueError(
            f"actor_rollout_ref.model.external_lib={model.external_lib}: attention without flash-attn comes from "
            f"{PACKED_MODULE}, which takes that key; import it in yours and set {KEY}={PACKED}"
        )
    if chosen == PACKED and model.external_lib is None:
        with open_dict(model):
            model.external_lib = PACKED_MODULE
