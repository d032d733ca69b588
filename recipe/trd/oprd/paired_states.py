"""Hidden states of two models at the same response tokens, each model reading them after its own prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Token ids that both models read: the prompt under its own chat template, then the same response."""

    student: list[list[int]]
    teacher: list[list[int]]
    num_positions: list[int]
    """For every sequence, how many positions at its end are wanted."""

    def __len__(self) -> int:
        return len(self.num_positions)

    def take(self, indices: Sequence[int]) -> "Sequences":
        """Some of them, in this order."""
        return Sequences(**{name: [values[index] for index in indices] for name, values in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class States:
    """States of a few sequences, one sequence after the other.

    sequences: which these are. student, teacher: for every layer of the student its states [N, d_S] and those [N, d_T]
    of the teacher's layer that belongs to it. A state is the one at a token (which predicts the next), as in training.
    """

    sequences: list[int]
    student: list[Tensor]
    teacher: list[Tensor]


def load_model(path: str, *, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A causal language model to read states from."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    nn.Module.to(model, device)
    return model.eval().requires_grad_(False)


def paired_states(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    sequences: Sequences,
    *,
    teacher_layers: Sequence[int],
    batch_tokens: int,
) -> Iterator[States]:
    """States of all sequences, batch by batch, longest first.

    Args:
        student: on its device.
        teacher: likewise.
        sequences: all of them fit into both models.
        teacher_layers: for every layer of the student the teacher's, from 0.
        batch_tokens: tokens of a forward pass, padding included; a longer sequence makes a pass of its own.
    """
    lengths = [max(map(len, pair)) for pair in zip(sequences.student, sequences.teacher, strict=True)]
    for indices in batches(lengths, batch_tokens=batch_tokens):
        batch = sequences.take(indices)
        teacher_states = response_states(teacher, batch.teacher, batch.num_positions)
        yield States(
            sequences=indices,
            student=response_states(student, batch.student, batch.num_positions),
            teacher=[teacher_states[layer] for layer in teacher_layers],
        )


def batches(lengths: Sequence[int], *, batch_tokens: int) -> list[list[int]]:
    """Indices of sequences of about equal length, longest first: what does not fit into memory fails at once."""
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if found and (len(found[-1]) + 1) * lengths[found[-1][0]] <= batch_tokens:
            found[-1].append(index)
        else:
            found.append([index])
    return found


@torch.no_grad()
def response_states(model: PreTrainedModel, ids: Sequence[Sequence[int]], num_positions: Sequence[int]) -> list[Tensor]:
    """Output of every layer at the last tokens of every sequence; the last layer's after the final norm.

    Args:
        model: computes no logits.
        ids: token ids, of any lengths.
        num_positions: for each sequence, how many positions at its end are wanted.

    Returns:
        L tensors [sum(num_positions), d].
    """
    width = max(map(len, ids))
    # Padding is on the right, where a causal model does not see it; 0 is a token of every model.
    input_ids = torch.tensor([[*sequence, *[0] * (width - len(sequence))] for sequence in ids], device=model.device)
    lengths = torch.tensor([len(sequence) for sequence in ids], device=model.device)
    positions = torch.arange(width, device=model.device).expand_as(input_ids)
    is_token = positions < lengths.unsqueeze(1)
    first = lengths - torch.tensor(num_positions, device=model.device)
    wanted = is_token & (positions >= first.unsqueeze(1))
    outputs = model.base_model(
        input_ids=input_ids, attention_mask=is_token.long(), output_hidden_states=True, use_cache=False
    )
    return [layer[wanted] for layer in outputs.hidden_states[1:]]
