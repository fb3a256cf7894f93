"""Evaluation: encoders × tasks → scores and records."""

from clipfuse.evaluate.evaluator import evaluate
from clipfuse.evaluate.record import Record
from clipfuse.evaluate.score import Score
from clipfuse.evaluate.scoring import Candidate, Scoring, Tally
from clipfuse.evaluate.store import ScoreStore

__all__ = ["Candidate", "Record", "Score", "ScoreStore", "Scoring", "Tally", "evaluate"]
