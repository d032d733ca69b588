"""The rewrite stage: the teacher's contexts, y_r and its verdict, its log-probs at the student's positions."""
