"""Shapes of language models, as far as memory depends on them: from a `config.json`, or from a short table of models
that the run scripts name, so that a plan can be made where no model is.

The table was copied from the `config.json` of each model on the Hugging Face hub; tests/unit/trd/plan checks it
against the published numbers of parameters.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A dense decoder with grouped-query attention and a gated feed-forward layer."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    """Longest sequence that the model was made for, tokens."""
    has_tied_embeddings: bool = False
    has_qkv_bias: bool = False
    has_qk_norm: bool = False
    norms_per_layer: int = 2

    @property
    def linear_shapes(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the seven matrices of a layer: q, k, v, o, gate, up, down."""
        hidden, inner = self.hidden_size, self.intermediate_size
        heads, kv_heads = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return [
            *[(hidden, heads), (hidden, kv_heads), (hidden, kv_heads), (heads, hidden)],
            *[(hidden, inner), (hidden, inner), (inner, hidden)],
        ]

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer."""
        matrices = sum(inputs * outputs for inputs, outputs in self.linear_shapes)
        biases = self.has_qkv_bias * (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        norms = self.norms_per_layer * self.hidden_size + self.has_qk_norm * 2 * self.head_dim
        return matrices + biases + norms

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the embedding, and of the head where it is another matrix."""
        return self.vocab_size * self.hidden_size * (1 if self.has_tied_embeddings else 2)

    @property
    def num_parameters(self) -> int:
        """All parameters; tied embeddings count once."""
        return self.num_layers * self.layer_parameters + self.embedding_parameters + self.hidden_size

    def lora_parameters(self, rank: int) -> int:
        """Trained parameters of LoRA on all seven matrices of every layer."""
        return self.num_layers * rank * sum(inputs + outputs for inputs, outputs in self.linear_shapes)

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers, in bfloat16."""
        return 2 * 2 * self.num_layers * self.num_kv_heads * self.head_dim


def _qwen2_5(hidden: int, layers: int, heads: int, kv_heads: int, inner: int, vocab: int = 152064) -> Architecture:
    return Architecture(
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=128,
        intermediate_size=inner,
        vocab_size=vocab,
        max_positions=32768,
        has_qkv_bias=True,
    )


def _qwen3(hidden: int, layers: int, heads: int, inner: int, *, tied: bool, positions: int = 40960) -> Architecture:
    return Architecture(
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=inner,
        vocab_size=151936,
        max_positions=positions,
        has_tied_embeddings=tied,
        has_qk_norm=True,
    )


def _llama3(hidden: int, layers: int, heads: int, inner: int, *, tied: bool = False) -> Architecture:
    return Architecture(
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=inner,
        vocab_size=128256,
        max_positions=131072,
        has_tied_embeddings=tied,
    )


def _gemma2(hidden: int, layers: int, heads: int, kv_heads: int, inner: int) -> Architecture:
    return Architecture(
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=256,
        intermediate_size=inner,
        vocab_size=256000,
        max_positions=8192,
        has_tied_embeddings=True,
        norms_per_layer=4,
    )


KNOWN: dict[str, Architecture] = {
    "Qwen/Qwen2.5-7B-Instruct": _qwen2_5(3584, 28, 28, 4, 18944),
    "Qwen/Qwen2.5-32B-Instruct": _qwen2_5(5120, 64, 40, 8, 27648),
    "Qwen/Qwen3-1.7B": _qwen3(2048, 28, 16, 6144, tied=True),
    "Qwen/Qwen3-4B": _qwen3(2560, 36, 32, 9728, tied=True),
    "Qwen/Qwen3-4B-Instruct-2507": _qwen3(2560, 36, 32, 9728, tied=True, positions=262144),
    "Qwen/Qwen3-8B": _qwen3(4096, 36, 32, 12288, tied=False),
    "Qwen/Qwen3-14B": _qwen3(5120, 40, 40, 17408, tied=False),
    "Qwen/Qwen3-32B": _qwen3(5120, 64, 64, 25600, tied=False),
    "meta-llama/Llama-3.2-3B-Instruct": _llama3(3072, 28, 24, 8192, tied=True),
    "meta-llama/Llama-3.1-8B-Instruct": _llama3(4096, 32, 32, 14336),
    "google/gemma-2-2b-it": _gemma2(2304, 26, 8, 4, 9216),
    "google/gemma-2-9b-it": _gemma2(3584, 42, 16, 8, 14336),
}
"""Names on the Hugging Face hub."""


def read(path: str) -> Architecture:
    """Shape of a model.

    Args:
        path: a folder with a `config.json`, a name in `KNOWN`, or a name that the hub's cache on this machine holds.

    Raises:
        ValueError: none of these, or a model that is not a dense decoder.
    """
    file = Path(path).expanduser() / "config.json"
    if not file.is_file():
        if path in KNOWN:
            return KNOWN[path]
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(path, "config.json") if path.count("/") == 1 else None
        if not isinstance(cached, str):
            raise ValueError(f"the shape of {path} is not known here: give a folder with its config.json")
        file = Path(cached)
    return from_config(json.loads(file.read_text(encoding="utf-8")), name=path)


def from_config(config: dict[str, Any], *, name: str) -> Architecture:
    """Shape from the content of a `config.json`; of a multimodal model the part that reads text.

    Raises:
        ValueError: a key is missing, or the model has experts.
    """
    config = config.get("text_config", config)
    kind = str(config.get("model_type", ""))
    if any("expert" in key for key in config):
        raise ValueError(f"{name} is a mixture of experts; plans are made for dense models")
    try:
        heads = int(config["num_attention_heads"])
        return Architecture(
            hidden_size=config["hidden_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            intermediate_size=config["intermediate_size"],
            vocab_size=config["vocab_size"],
            max_positions=config["max_position_embeddings"],
            has_tied_embeddings=bool(config.get("tie_word_embeddings", kind.startswith("gemma"))),
            has_qkv_bias=bool(config.get("attention_bias", kind == "qwen2")),
            has_qk_norm=kind in ("qwen3", "gemma3_text"),
            norms_per_layer=4 if kind in ("gemma2", "gemma3_text") else 2,
        )
    except KeyError as error:
        raise ValueError(f"config.json of {name} has no {error}; plans are made for dense decoders") from error
