"""Evaluation: encoders × tasks → records."""

from clipfuse.evaluate.evaluator import Candidate, Score, evaluate
from clipfuse.evaluate.record import Record

__all__ = ["Candidate", "Record", "Score", "evaluate"]
