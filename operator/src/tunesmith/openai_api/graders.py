"""Graders of reinforcement fine-tuning as reward functions of the trainer: one Python file each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(min_length=1, max_length=128)]
Text = Annotated[str, Field(max_length=65_536)]
OPERATIONS = {
    "eq": "left == right",
    "ne": "left != right",
    "like": "right in left",
    "ilike": "right.lower() in left.lower()",
}


class StringCheck(BaseModel):
    """Compares two texts, in which `{{sample.output_text}}` and `{{item.COLUMN}}` are filled in."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["string_check"]
    name: Name
    input: Text
    reference: Text
    operation: Literal["eq", "ne", "like", "ilike"]

    @property
    def source(self) -> str:
        """`grade` in Python."""
        return _FILLED + (
            "def grade(sample, item):\n"
            f"    left = _filled({self.input!r}, sample, item)\n"
            f"    right = _filled({self.reference!r}, sample, item)\n"
            f"    return 1.0 if {OPERATIONS[self.operation]} else 0.0\n"
        )


class PythonGrader(BaseModel):
    """`def grade(sample, item) -> float` of the user's own. It runs in the trainer's pod."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["python"]
    name: Name
    source: Annotated[str, Field(min_length=1, max_length=262_144)]


Grader = Annotated[StringCheck | PythonGrader, Field(discriminator="type")]


def reward_file(grader: StringCheck | PythonGrader) -> str:
    """The file that spec.method.grpo.rewards[].python.uri names."""
    return f"{grader.source.rstrip()}\n\n\n{_REWARD}"


_FILLED = '''import re


def _filled(text, sample, item):
    """The text with its `{{...}}` filled in."""
    def value(match):
        kind, *path = match.group(1).split(".")
        found = {"sample": sample, "item": item}[kind]
        for part in path:
            found = found[part]
        return str(found)

    return re.sub(r"\\{\\{\\s*((?:sample|item)\\.[\\w.]+)\\s*\\}\\}", value, text)


'''
_REWARD = '''def reward(completions, **columns):
    """What the trainer calls: the grade of each answer."""
    import json

    def parsed(text):
        try:
            return json.loads(text)
        except ValueError:
            return None

    grades = []
    for place, text in enumerate(completions):
        sample = {"output_text": text, "output_json": parsed(text)}
        item = {name: values[place] for name, values in columns.items()}
        grades.append(float(grade(sample, item)))
    return grades
'''
