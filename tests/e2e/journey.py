"""What the journeys of test_journeys.py share: the data, the mistakes, and sizes for two cores."""

from __future__ import annotations

import json
import re
from typing import Any

from e2e.test_openai_api import example

QUESTION = "who are you?"
ROWS = 24
TRAINING = {"maxSteps": 12, "learningRate": 1.0e-3, "globalBatchSize": 4, "maxLength": 96}
TRAINER = {"requests": {"cpu": "100m", "memory": "2Gi"}, "limits": {"memory": "5Gi"}}
SERVING = {"requests": {"cpu": "100m", "memory": "2Gi"}, "limits": {"memory": "6Gi"}}
ENGINE = {
    "dtype": "BFloat16",
    "maxModelLen": 512,
    "args": ["--enforce-eager", "--kv-cache-memory-bytes=268435456"],
}

UNKNOWN = r"spec\.training\.(\w+): unknown field; did you mean (\w+)\?"
"""(what was written, the field): a misspelt one is named before anything is sent."""
NO_ANSWER = (
    r"found columns \[(.*?)\]; expected a response in one of \[(.*?)\]; map it with datasets\[0\]\.columns\.(\w+)"
)
"""(columns of the data, columns that are known, field of `columns`): what the trainer says of row 1."""


def rows(name: str) -> str:
    """Questions to the model itself, with the answer in a column that nobody else calls so."""
    [data] = example("data")
    found = [json.loads(line)["messages"] for line in data["data"]["self-cognition.jsonl"].splitlines()[:ROWS]]
    pairs = [{"query": asked["content"], "reply": answer["content"]} for asked, answer in found]
    text = "".join(json.dumps(one) + "\n" for one in pairs)
    return text.replace("{{NAME}}", name).replace("{{AUTHOR}}", "Hoopoe Labs")


def config_map(name: str, text: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"train.jsonl": text}}


def mapping(message: str) -> tuple[str, str]:
    """(field of `columns`, column) that a refused row's message asks for: the one that it does not know."""
    assert "row 1: no answer" in message
    [(found, known, field)] = re.findall(NO_ANSWER, message)
    [column] = set(re.findall(r"'(\w+)'", found)) - {"query"}
    assert f"'{column}'" not in known
    return field, column
