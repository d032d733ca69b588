"""Whether two models can share token ids: what the student writes, the teacher reads id by id."""

from transformers import PreTrainedTokenizerBase


def check_same_tokens(
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    *,
    student_path: str,
    teacher_path: str,
    eos_remap: bool | None = None,
) -> None:
    """Refuse a pair of models for which the ids of a response do not mean the same tokens.

    Args:
        student: the student's tokenizer.
        teacher: the teacher's tokenizer.
        student_path: folder or name of the student, for the message.
        teacher_path: folder or name of the teacher, for the message.
        eos_remap: `trd.teacher.eos_remap` of a run: if True, the tokens that end a turn may differ. None where the
            setting does not exist.

    Raises:
        ValueError: the vocabularies differ, or the tokens that end a turn do; the message says what to change.
    """
    student_ids, teacher_ids = student.get_vocab(), teacher.get_vocab()
    if student_ids != teacher_ids:
        tokens = {**student_ids, **teacher_ids}
        different = next(token for token in tokens if student_ids.get(token) != teacher_ids.get(token))
        raise ValueError(
            f"student {student_path} and teacher {teacher_path} have different tokenizers (for one, {different!r} is "
            f"{student_ids.get(different)} for the student and {teacher_ids.get(different)} for the teacher); "
            "distillation on token ids needs one vocabulary: choose a teacher of the student's family"
        )
    if student.eos_token_id != teacher.eos_token_id and not eos_remap:
        or_remap = ", or set trd.teacher.eos_remap=True, by which the teacher's token counts as the student's"
        raise ValueError(
            f"student and teacher end a turn differently ({student.eos_token!r} and {teacher.eos_token!r}); choose "
            f"checkpoints of one kind (base or instruct){'' if eos_remap is None else or_remap}"
        )
