"""The rewrite stage: contexts of the teacher, y_r and its verdict, the teacher's log-probs at the student's positions."""
