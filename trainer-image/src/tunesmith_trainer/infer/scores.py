"""How near answers are to what was expected."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable
from functools import cache
from statistics import fmean
from typing import Any

ROUGE = ("rouge1", "rouge2", "rougeL")
ALONE = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
"""Characters of Chinese, Japanese and Korean."""


@cache
def words() -> re.Pattern[str]:
    """Words, with the vowels and accents that are characters of their own (re counts them to no word); of Chinese,
    Japanese and Korean each character.
    """
    marks = "".join(filter(lambda one: unicodedata.category(one)[0] == "M", map(chr, range(sys.maxunicode))))
    return re.compile(f"[{ALONE}]|(?:[^\\W{ALONE}]|[{marks}])+")


class Words:
    """A tokenizer of rouge-score, whose own knows the letters a to z only."""

    def tokenize(self, text: str) -> list[str]:
        """The words of a text, in small letters."""
        return words().findall(unicodedata.normalize("NFC", text).lower())


@cache
def scorer() -> Any:
    """rouge-score's, without stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(ROUGE, tokenizer=Words())


def compared(answer: str, expected: str) -> dict[str, Any]:
    """Whether an answer is the expected one, white space around it aside, and its ROUGE F1 (Lin 2004), 0 to 1."""
    rouge = scorer().score(expected, answer)
    return {"correct": answer.strip() == expected.strip(), **{name: round(rouge[name].fmeasure, 6) for name in ROUGE}}


MEANS = {
    "correct": "accuracy", "error": "mean_absolute_error", **{name: name for name in ROUGE},
    "recall@1": "recall@1", "reciprocal_rank": "mrr", "margin": "margin",
}  # fmt: skip
"""Score of a row -> name of its mean."""


def summary(results: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The number of results, and the means of their scores, over those that have them."""
    rows, values = 0, {name: list[float]() for name in MEANS}
    for one in results:
        rows += 1
        for name, found in values.items():
            if one.get(name) is not None:
                found.append(float(one[name]))
    return {"rows": rows, **{MEANS[name]: round(fmean(found), 6) for name, found in values.items() if found}}
