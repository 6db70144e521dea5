"""The result of an accuracy measurement, with its confidence interval."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

NORMAL_975 = statistics.NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Score:
    """The result of a measurement.

    Attributes:
        questions: number of questions.
        correct: number of exact answers.
        forwards: mean forward passes per question, as if each were asked alone.
        tokens: mean generated tokens per question, up to the end of the answer.
        seconds: wall time of all questions, s.
        compile_seconds: what went into compiling the model's body besides, s.
    """

    questions: int
    correct: int
    forwards: float
    tokens: float
    seconds: float
    compile_seconds: float = 0.0

    @property
    def accuracy(self) -> float:
        """correct / questions."""
        return self.correct / self.questions

    @property
    def tokens_per_forward(self) -> float:
        """tokens / forwards."""
        return self.tokens / self.forwards

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % confidence interval of the accuracy p, for questions drawn like these n (E. B. Wilson 1927).

        (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

        Example:
            >>> low, high = Score(questions=100, correct=90, forwards=64.0, tokens=50.0, seconds=1.0).interval
            >>> round(low, 3), round(high, 3)
            (0.826, 0.945)
        """
        n, p, z = self.questions, self.accuracy, NORMAL_975
        centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)

    def row(self) -> dict[str, float]:
        """The score as plain numbers, for a results row."""
        low, high = self.interval
        return {
            "questions": self.questions,
            "correct": self.correct,
            "accuracy": round(self.accuracy, 4),
            "interval_95": [round(low, 4), round(high, 4)],
            "forwards": round(self.forwards, 2),
            "tokens_per_forward": round(self.tokens_per_forward, 3),
            "seconds": round(self.seconds, 2),
            "compile_seconds": round(self.compile_seconds, 2),
        }
