"""Rewards, each on answers whose worth is known, and against a real HTTP server."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from trainer.support import artifact_path
from tunesmith.training.plan import ChatPlan, MethodPlan, TrainPlan
from tunesmith_trainer import rewards
from tunesmith_trainer.data import Row
from tunesmith_trainer.errors import ConfigError, DataError, InternalError, ModelError
from tunesmith_trainer.methods.classifiers import written
from tunesmith_trainer.model import load_tokenizer
from tunesmith_trainer.rewards.called import numbers
from tunesmith_trainer.train import train

pytestmark = pytest.mark.trainer


def row(number: int = 1, **columns: Any) -> Row:
    """A row with a question and columns."""
    return Row(f"data row {number}", messages=({"role": "user", "content": "how much?"},), extra=columns)


def one(options: dict[str, Any], rows: list[Row] | None = None, models: Any = None) -> rewards.Reward:
    """The reward of some options."""
    policy = {"rewards": [options], "rollout": {"max_completion_length": 20}}
    method = MethodPlan.model_validate({"type": "GRPO", "grpo": policy, "models": models or {}})
    [built] = rewards.build(method, rows or [row(solution="42")])
    return built


def scores(reward: rewards.Reward, rows: list[Row], *answers: str, lengths: list[int] | None = None) -> list[Any]:
    """What it says of answers."""
    ids = [[7] * length for length in lengths] if lengths else [list(range(len(answer))) for answer in answers]
    return reward(rows, [f"prompt {number}" for number in range(len(answers))], list(answers), ids)


@pytest.mark.parametrize(
    ("completion", "solution", "right"),
    [
        ("42", "42", True), ("It is\n#### 42", "some steps\n#### 42", True), (r"so \boxed{42}.", "42", True),
        (r"\boxed{1} no, \boxed{\frac{1}{2}}", "0.5", True), (r"$\boxed{\text{Paris}}$", "paris", True),
        ("The answer is 1,234.", "1234", True), ("<think>42</think> 41", "42", False), ("41", "42", False),
        ("", "42", False), (r"\boxed{{a}, b}", "{a},  b", True), (r"\boxed{42", "42", False), ("42.0", "42", True),
        ("<think>\\boxed{41}</think> **42**", "42", True), (r"\dfrac{3}{4}", "3/4", True), ("1/0", "1/0", True),
        ("#### ", "42", False), ("The answer is: 10 apples", "10 apples", True),
        (r"\boxed{1 \frac{1}{2}}", "1.5", True), (r"\boxed{1\frac{1}{2}}", "11/2", False), ("3 4", "34", False),
        ("-1 1/2", "-3/2", True), ("1 234 567", "1,234,567", True), ("- 3", "-3", True), ("1 / 2", "0.5", True),
        ("1e9999999999", "42", False), ("1.5e3", "1500", True), ("(1/2, 3)", r"(\frac{1}{2}, 3)", True),
    ],
)  # fmt: skip
def test_accuracy_compares_results(completion: str, solution: str, right: bool) -> None:
    given = [row(solution=solution)]
    assert scores(one({"type": "Accuracy"}, given), given, completion) == [float(right)]


def test_a_function_may_return_numpys_numbers() -> None:
    import numpy as np

    assert numbers([np.float32(0.5), np.int64(1), None], 3, "returned") == [0.5, 1.0, None]


def test_a_solution_may_be_a_number_and_must_be_there() -> None:
    given = [row(solution=42)]
    assert scores(one({"type": "Accuracy"}, given), given, "42") == [1.0]
    for type_ in ("Accuracy", "Cosine"):
        with pytest.raises(DataError, match=r"data row 2: no solution: found columns \['level'\].*rewards\[0\]"):
            one({"type": type_}, [row(solution="1"), row(2, level="hard")])


def test_the_scores_of_built_in_rewards() -> None:
    given = [row(solution="42")] * 4
    found = scores(one({"type": "Cosine"}), given, "42", "42", "41", "41", lengths=[0, 20, 0, 25])
    assert found == pytest.approx([1.0, 0.5, -1.0, -0.5])
    [half] = scores(one({"type": "Cosine"}), given[:1], "42", lengths=[5])
    assert half == pytest.approx(0.5 + 0.25 * (1 + math.cos(math.pi / 4)))
    texts = ["<think>a</think> b", "<think>a b", "a <think>b</think>", "<think>a<think></think>"]
    assert scores(one({"type": "Format"}), given, *texts) == [1.0, 0.0, 0.0, 0.0]
    assert scores(one({"type": "Repetition"}), given[:2], "abcdef", "x", lengths=[6, 2]) == pytest.approx([-0.75, 0.0])
    found = scores(one({"type": "SoftOverlong"}), given, *"abcd", lengths=[16, 18, 20, 21])
    assert found == pytest.approx([0.0, -0.5, -1.0, -1.0])


def test_names_tell_rewards_of_one_type_apart() -> None:
    policy = {"rewards": [{"type": "Format", "weight": 2}, {"type": "Repetition"}, {"type": "Format", "weight": -1}]}
    built = rewards.build(MethodPlan.model_validate({"type": "PPO", "ppo": policy}), [row()])
    assert [(reward.name, reward.weight) for reward in built] == [("format", 2), ("repetition", 1), ("format-2", -1)]


def python(folder: Path, code: str, function: str = "reward") -> rewards.Reward:
    """The reward of a file."""
    (folder / "mine.py").write_text(code)
    return one({"type": "Python", "python": {"uri": f"file://{folder}/mine.py", "function": function}})


def test_a_function_of_ones_own(tmp_path: Path) -> None:
    code = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Kept:
    count: int = 0

def length(completions, prompts, level, **columns):
    assert prompts == ["prompt 0", "prompt 1"] and set(columns) == {"tags"}
    return [None if one is None else len(text) * one for text, one in zip(completions, level)]
"""
    reward = python(tmp_path, code, "length")
    assert reward.name == "length"
    assert scores(reward, [row(level=2, tags=["a"]), row(tags=[])], "abc", "x") == [6.0, None]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def score(completions): ...", r"rewards\[0\].python.function: there is no function reward in .*\['score'\]"),
        ("import nothing_of_this_name", "cannot be loaded: ModuleNotFoundError: No module named 'nothing"),
    ],
)
def test_a_file_that_has_no_such_function_is_refused(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        python(tmp_path, code)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("1.0", "reward returned float '1.0'; expected a list of 2 numbers"), ("[1]", "1 rewards for 2 answers"),
        ("[1, 'a']", "returned 'a' for answer 1; expected a finite number"), ("[1, float('nan')]", "returned nan"),
        ("1 / 0", r"reward raised ZeroDivisionError.*2 completions and the columns \['level', 'prompts'\]"),
    ],
)  # fmt: skip
def test_what_a_function_returns_is_checked(tmp_path: Path, result: str, message: str) -> None:
    reward = python(tmp_path, f"def reward(completions, **columns): return {result}")
    with pytest.raises(ConfigError, match=rf"rewards\[0\].python: .*{message}"):
        scores(reward, [row(level=1), row(level=2)], "a", "b")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*no.py"):
        one({"type": "Python", "python": {"uri": f"file://{tmp_path}/no.py"}})


Answer = tuple[int, str, float]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[str, list[Any]]]]:
    """A function that starts a server with given answers (the last one for ever), and returns its URL and what it
    was asked.
    """
    monkeypatch.setattr(rewards.Http, "PAUSE_SECONDS", 0.01)
    servers: list[ThreadingHTTPServer] = []

    def start(*answers: Answer) -> tuple[str, list[Any]]:
        asked: list[Any] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                status, body, pause = answers[min(len(asked), len(answers)) - 1]
                time.sleep(pause)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/score", asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_an_endpoint_is_asked_and_asked_again(serve: Callable[..., tuple[str, list[Any]]]) -> None:
    url, asked = serve((503, "busy", 0), (429, "later", 0), (200, '{"rewards": [0.5, null]}', 0))
    reward = one({"type": "HTTP", "http": {"url": url}})
    assert scores(reward, [row(level=1), row(level=2)], "a", "b") == [0.5, None]
    assert asked == [{"prompts": ["prompt 0", "prompt 1"], "completions": ["a", "b"], "level": [1, 2]}] * 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((404, "nobody here", 0.0), "answered 404: nobody here; expected 200"),
        ((200, "hello", 0.0), "answered no JSON: 'hello'"),
        ((200, '{"scores": [1]}', 0.0), r"answered \['scores'\]; expected"),
        ((200, "[1]", 0.0), "answered list; expected"),
        ((200, '{"rewards": [1, 2]}', 0.0), "answered 2 rewards for 1 answers"),
        ((200, '{"rewards": 1}', 0.0), "answered int '1'"),
        ((200, '{"rewards": ["x"]}', 0.0), "answered 'x' for answer 0"),
    ],
)
def test_an_answer_of_another_shape_is_refused(
    serve: Callable[..., tuple[str, list[Any]]], answer: Answer, message: str
) -> None:
    url, asked = serve(answer)
    with pytest.raises(ConfigError, match=rf"rewards\[0\].http.url: {url} {message}"):
        scores(one({"type": "HTTP", "http": {"url": url}}), [row()], "a")
    assert len(asked) == 1


def test_an_endpoint_that_stays_away_or_silent(
    serve: Callable[..., tuple[str, list[Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = serve((500, "broken", 0))
    with pytest.raises(InternalError, match=r"5 times in vain, at last: it answered 500: broken"):
        scores(one({"type": "HTTP", "http": {"url": url}}), [row()], "a")
    assert len(asked) == 5
    monkeypatch.setattr(rewards.Http, "TRIES", 1)
    url, _ = serve((200, "{}", 1.5))
    with pytest.raises(InternalError, match=r"no answer within 1 s \(timeoutSeconds\)"):
        scores(one({"type": "HTTP", "http": {"url": url, "timeoutSeconds": 1}}), [row()], "a")
    with pytest.raises(InternalError, match="it cannot be reached"):
        scores(one({"type": "HTTP", "http": {"url": "http://127.0.0.1:9/"}}), [row()], "a")


def classifier(folder: Path, labels: int = 1) -> Any:
    """A tiny sequence classifier with another tokenizer than the policy's: words, and no chat template."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

    words = {"[PAD]": 0, "[UNK]": 1, "[END]": 2, "good": 3, "bad": 4, "prompt": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", eos_token="[END]")
    fast.chat_template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}[END]"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=6, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_labels=labels, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return model.eval(), fast


def test_a_model_with_another_tokenizer_scores_the_text(tmp_path: Path) -> None:
    import torch
    from tokenizers.processors import TemplateProcessing
    from tunesmith_trainer.rewards.answers import Answers

    model, tokenizer = classifier(tmp_path / "rm")
    place = {"spec.method.grpo.rewards[0].model": {"uri": "pvc://rm/one", "path": str(tmp_path / "rm")}}
    options = {"type": "Model", "model": {"uri": "pvc://rm/one"}}
    reward = one(options, models=place)
    reward.score.load(torch.device("cpu"))  # type: ignore[attr-defined]
    answers = ["good", "bad bad bad bad"] * 5
    found = scores(reward, [row()] * 10, *answers)
    for answer, score in zip(answers, found, strict=True):
        ids = tokenizer(f"user how much? assistant {answer} [END]", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            assert score == pytest.approx(float(model(ids).logits[0, 0]), abs=1e-5)
    assert len({round(score, 4) for score in found}) == 2
    # Without a template, as an encoder's: what was read goes before, between the tokenizer's own special tokens.
    tokenizer.chat_template = None
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="[UNK] $A [END]", special_tokens=[("[UNK]", 1), ("[END]", 2)]
    )
    (tmp_path / "rm" / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(tmp_path / "rm")
    plain = one(options, models=place)
    plain.score.load(torch.device("cpu"))  # type: ignore[attr-defined]
    ids = tokenizer("prompt good")["input_ids"]
    assert (ids[0], ids[-1]) == (1, 2)
    with torch.no_grad():
        expected = float(model(torch.tensor([ids])).logits[0, 0])
    answers_ = Answers([row()] * 2, ["prompt "] * 2, ["good", "bad bad bad"], [[1]] * 2)
    assert plain.score(answers_)[0] == pytest.approx(expected, abs=1e-5)
    classifier(tmp_path / "rm", labels=3)
    with pytest.raises(ModelError, match=r"one label; found \['LlamaForSequenceClassification'\] with 3 label"):
        one(options, models=place)
    (tmp_path / "rm" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="is an adapter: give a whole model"):
        one(options, models=place)


def test_a_reward_model_reads_the_system_prompt_of_its_own_training(make_plan: Callable[..., TrainPlan]) -> None:
    """What is judged is the text that it was trained on, whatever the policy is told."""
    pair = {"query": "how much?", "response": "good", "rejected_response": "bad"}
    method = {"type": "RewardModel", "reward_model": {}}
    plan = make_plan(rows=[pair] * 4, method=method, tuner={"type": "Full"})
    chat = ChatPlan(system="hello world", arguments={"enable_thinking": False})
    plan = plan.model_copy(update={"chat_template": chat})
    judge = artifact_path(plan, train(plan))
    options = {"type": "Model", "model": {"uri": "pvc://store/judge"}}
    place = {"uri": "pvc://store/judge", "path": str(judge)}
    reward = one(options, models={"spec.method.grpo.rewards[0].model": place})
    asked = Row("rows.jsonl row 1", messages=({"role": "user", "content": "how much?"},))
    seen, _ = reward.score.text(asked, "", "good")  # type: ignore[attr-defined]
    learned = replace(asked, messages=(*asked.messages, {"role": "assistant", "content": "good"}))
    assert seen == written(learned.messages, load_tokenizer(plan.model, chat), learned)[0]
    assert seen.startswith("<|im_start|>system\nhello world<|im_end|>")
    assert reward.score.tokenizer.chat.arguments == chat.arguments  # type: ignore[attr-defined]
    said = replace(asked, messages=({"role": "system", "content": "its own"}, *asked.messages))
    assert "hello world" not in reward.score.text(said, "", "good")[0]  # type: ignore[attr-defined]
