"""Which layer of the teacher is compared with which layer of the student, for models of different depth."""

from fractions import Fraction


def layer_map(num_student_layers: int, num_teacher_layers: int) -> tuple[int, ...]:
    """The teacher's layer for every layer of the student, at the same relative depth; both count from 0.

        phi(l) = round((l - 1) / (L_S - 1) * (L_T - 1)) + 1, in the paper's count from 1

    A tie goes to the even number, counted from 0, as in Python's and torch's `round`; the fraction is exact. First goes
    to first and last to last. The one layer of a student of depth 1, where the formula is 0/0, goes to the teacher's
    last layer: what both heads read.

    Raises:
        ValueError: a model without layers.

    Source: OPRD, arXiv 2606.06021, Sec. 3.3.
    """
    if min(num_student_layers, num_teacher_layers) < 1:
        raise ValueError(f"{num_student_layers} and {num_teacher_layers} layers; a model has at least one")
    if num_student_layers == 1:
        return (num_teacher_layers - 1,)
    last = num_teacher_layers - 1
    return tuple(round(Fraction(layer * last, num_student_layers - 1)) for layer in range(num_student_layers))
