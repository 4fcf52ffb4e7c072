"""Rewards that are computed from the answers and the rows alone."""

from __future__ import annotations

import importlib.util
import math
import re
from dataclasses import dataclass
from fractions import Fraction

from tunesmith_trainer.rewards.answers import Answers, Scores

ANSWER = "solution"
"""The column with the right answer."""
NUMBER = re.compile(r"(?P<sign>[-+]?)(?P<whole>\d+ (?=\d+/))?(?P<value>\d+/\d+|(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d{1,3})?)")
"""Also a mixed one (1 1/2). A longer exponent would be a number that no memory holds."""


def accuracy(answers: Answers) -> Scores:
    """1 where the answer's result equals the row's solution."""
    pairs = zip(answers.completions, answers.rows, strict=True)
    return [float(equal(completion, str(row.extra[ANSWER]))) for completion, row in pairs]


def equal(completion: str, solution: str) -> bool:
    """Whether a completion's result is the solution: as text or number, or by math-verify where it is installed."""
    found, wanted = result(completion.split("</think>")[-1]), result(solution)
    if normal(found) == normal(wanted):
        return True
    if importlib.util.find_spec("math_verify") is None:
        return False
    from trl.rewards import accuracy_reward

    [score] = accuracy_reward([[{"role": "assistant", "content": completion}]], [solution])
    return bool(score)


def result(text: str) -> str:
    r"""The result that a text states: in its last \boxed{}, after its last #### or "the answer is", or all of it."""
    start = text.rfind(r"\boxed{")
    if start >= 0:
        depth, begin = 0, start + len(r"\boxed")
        for end in range(begin, len(text)):
            depth += (text[end] == "{") - (text[end] == "}")
            if depth == 0:
                return text[begin + 1 : end]
    if "####" in text:
        return (text.rsplit("####", 1)[1].strip().splitlines() or [""])[0]
    if stated := re.findall(r"answer(?: is:?|:)[ \t]*([^\n]+)", text, re.IGNORECASE):
        return str(stated[-1])
    return text


def normal(text: str) -> str | Fraction:
    """A form in which equal results are the same: a number where it is one, else text without dressing."""
    text = re.sub(r"\\(?:text|mathrm|mathbf)\{([^{}]*)\}", r"\1", text.strip())
    text = re.sub(r"\\(?:left|right|[,;! ])|\\?\$|\*\*|\\\(|\\\)", "", text)
    text = re.sub(r"(?<=\d)(?=\\[dt]?frac)", " ", text)
    text = re.sub(r"\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}", r"\1/\2", text)
    text = re.sub(r"\s+", " ", text).strip().rstrip(".").strip().casefold()
    plain = re.sub(r"(?<=\d)[, ](?=\d{3}(?![\d/]))|(?<=[-+/]) | (?=[-+/])", "", text)
    found = NUMBER.fullmatch(plain)
    try:
        value = Fraction(found["value"]) + int(found["whole"] or 0) if found else None
    except (ValueError, ZeroDivisionError):
        value = None
    if found is None or value is None:
        return text
    return -value if found["sign"] == "-" else value


def has_format(answers: Answers) -> Scores:
    """1 where <think>…</think> comes first."""
    from trl.rewards import think_format_reward

    return list(think_format_reward([[{"role": "assistant", "content": text}] for text in answers.completions]))


def repetition(answers: Answers) -> Scores:
    """Minus the share of n-grams of three tokens that were said before."""
    from trl.rewards import get_repetition_penalty_reward

    scores: Scores = get_repetition_penalty_reward(3, -1.0)(completion_ids=[list(ids) for ids in answers.ids])
    return scores


@dataclass(frozen=True)
class Cosine:
    """Right answers get 1 (short) to 0.5 (long), wrong ones -1 (short) to -0.5 (long), along a cosine. As
    trl.rewards.get_cosine_scaled_reward, which cannot do without math-verify.
    """

    longest: int

    def __call__(self, answers: Answers) -> Scores:
        """The scores."""
        scores: Scores = []
        for right, ids in zip(accuracy(answers), answers.ids, strict=True):
            short = 0.5 * (1 + math.cos(min(len(ids) / self.longest, 1.0) * math.pi))
            scores.append(0.5 + 0.5 * short if right else -0.5 - 0.5 * short)
        return scores


@dataclass(frozen=True)
class SoftOverlong:
    """0 for answers up to four fifths of the limit, then falling to -1 (the paper's 4096 of 20480 tokens)."""

    longest: int

    def __call__(self, answers: Answers) -> Scores:
        """The scores."""
        from trl.rewards import get_soft_overlong_punishment

        punish = get_soft_overlong_punishment(self.longest, max(1, self.longest // 5))
        scores: Scores = punish(completion_ids=[list(ids) for ids in answers.ids])
        return scores
