"""Rewards: what an answer to a prompt is worth. All of them see text and ids, none sees a tensor of the policy."""

from __future__ import annotations

import importlib.util
import inspect
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.api.methods import HttpReward, PythonReward, Rollout
from tunesmith.api.methods import Reward as Options
from tunesmith.training.location import locate
from tunesmith.training.plan import MethodPlan, Place

from tunesmith_trainer.data import Row
from tunesmith_trainer.errors import ConfigError, DataError, InternalError, ModelError
from tunesmith_trainer.media import media_of

if TYPE_CHECKING:
    import torch

Scores = list[float | None]
"""One for each answer; None: it cannot be judged."""

ANSWER = "solution"
"""The column with the right answer."""
SERVER_ERRORS = (429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Answers:
    """Answers to prompts, and the rows that the prompts came from."""

    rows: Sequence[Row]
    prompts: Sequence[str]
    """As the model read them, by its chat template."""
    completions: Sequence[str]
    ids: Sequence[Sequence[int]]
    """Tokens of the completions."""

    def columns(self) -> dict[str, list[Any]]:
        """The rows' remaining columns; None where a row has not one of them."""
        names = {name: None for row in self.rows for name in row.extra}
        return {name: [row.extra.get(name) for row in self.rows] for name in names}


@dataclass
class Reward:
    """One reward, with its weight in the sum."""

    name: str
    weight: float
    score: Callable[[Answers], Scores]

    def __call__(self, rows: Sequence[Row], prompts: list[str], completions: list[str], ids: list[list[int]]) -> Scores:
        """The scores of some answers."""
        return self.score(Answers(rows, prompts, completions, ids))


def build(method: MethodPlan, rows: Sequence[Row]) -> list[Reward]:
    """The rewards of a method. Raises what can be said before a model is loaded."""
    name: Literal["grpo", "ppo"] = "grpo" if method.grpo else "ppo"
    policy = method.grpo or method.ppo
    assert policy
    rewards: list[Reward] = []
    for number, options in enumerate(policy.rewards):
        field = f"spec.method.{name}.rewards[{number}]"
        title = options.python.function if options.python else options.type.lower()
        taken = sum(reward.name.split("-")[0] == title for reward in rewards)
        score = scorer(options, field, policy.rollout, method.models, rows)
        rewards.append(Reward(f"{title}-{taken + 1}" if taken else title, options.weight, score))
    return rewards


def scorer(
    options: Options, field: str, rollout: Rollout, models: dict[str, Place], rows: Sequence[Row]
) -> Callable[[Answers], Scores]:
    """What carries out a reward's options."""
    longest = rollout.max_completion_length
    if options.type in ("Accuracy", "Cosine"):
        for row in rows:
            if not isinstance(row.extra.get(ANSWER), str | int | float):
                raise DataError(
                    f"{row.where}: no {ANSWER}: found columns {list(row.extra)} beside the prompt; reward "
                    f"{options.type} ({field}) compares answers with the text or number in {ANSWER}"
                )
    match options.type:
        case "Accuracy":
            return accuracy
        case "Format":
            return has_format
        case "Cosine":
            return Cosine(longest)
        case "Repetition":
            return repetition
        case "SoftOverlong":
            return SoftOverlong(longest)
        case "Python":
            assert options.python
            return Function(options.python, field)
        case "HTTP":
            assert options.http
            return Http(options.http, field)
        case "Model":
            return Model(models[f"{field}.model"], field)


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
    text = re.sub(r"\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}", r"\1/\2", text)
    text = re.sub(r"\s+", " ", text).strip().rstrip(".").strip().casefold()
    try:
        return Fraction(re.sub(r"(?<=\d),(?=\d{3}\b)|\s", "", text))
    except (ValueError, ZeroDivisionError):
        return text


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


class Function:
    """A function of the user's: `reward(completions, prompts=…, <columns>)`."""

    def __init__(self, options: PythonReward, field: str) -> None:
        self.field, self.name = field, options.function
        path = locate(options.uri).path
        place = f"{field}.python.uri: {options.uri}"
        spec = importlib.util.spec_from_file_location("tunesmith_reward_" + re.sub(r"\W", "_", field), path)
        if spec is None or spec.loader is None:
            raise ConfigError(f"{place}: it is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look there
        try:
            spec.loader.exec_module(module)
        except FileNotFoundError:
            raise ConfigError(f"{place}: there is no file {path}. Check the address") from None
        except Exception as error:
            raise ConfigError(f"{place}: it cannot be loaded: {type(error).__name__}: {error}") from error
        function = getattr(module, options.function, None)
        if not callable(function):
            found = [name for name, value in vars(module).items() if inspect.isfunction(value)]
            raise ConfigError(
                f"{field}.python.function: there is no function {options.function} in {options.uri}; found {found}"
            )
        self.function: Callable[..., Any] = function

    def __call__(self, answers: Answers) -> Scores:
        """What it returns."""
        columns = {**answers.columns(), "prompts": list(answers.prompts)}
        columns.pop("completions", None)
        try:
            found = self.function(list(answers.completions), **columns)
        except Exception as error:
            raise ConfigError(
                f"{self.field}.python: {self.name} raised {type(error).__name__}: {error}; it was called with "
                f"{len(answers.completions)} completions and the columns {list(columns)}"
            ) from error
        return numbers(found, len(answers.completions), f"{self.field}.python: {self.name} returned")


class Http:
    """An endpoint that scores answers. What may pass by itself is asked for again."""

    TRIES = 5
    PAUSE_SECONDS = 1.0
    """Before the second try; each further one is waited for twice as long."""

    def __init__(self, options: HttpReward, field: str) -> None:
        import requests

        self.url, self.timeout, self.field = options.url, options.timeout_seconds, f"{field}.http"
        self.session = requests.Session()

    def __call__(self, answers: Answers) -> Scores:
        """What it answers."""
        import requests

        body = answers.columns() | {"prompts": list(answers.prompts), "completions": list(answers.completions)}
        problem = ""
        for number in range(self.TRIES):
            if number:
                time.sleep(self.PAUSE_SECONDS * 2 ** (number - 1))
            try:
                response = self.session.post(self.url, json=body, timeout=self.timeout)
            except requests.Timeout:
                problem = f"no answer within {self.timeout} s (timeoutSeconds)"
                continue
            except requests.ConnectionError as error:
                problem = f"it cannot be reached: {error}"
                continue
            except (requests.RequestException, TypeError, ValueError) as error:
                raise ConfigError(f"{self.field}.url: {self.url}: the request cannot be made: {error}") from error
            if response.status_code not in SERVER_ERRORS:
                return self.read(response, len(answers.completions))
            problem = f"it answered {response.status_code}: {response.text[:200]}"
        raise InternalError(f"{self.field}.url: {self.url}: {self.TRIES} times in vain, at last: {problem}")

    def read(self, response: Any, count: int) -> Scores:
        """The scores in an answer."""
        said = f"{self.field}.url: {self.url} answered"
        if response.status_code != 200:
            raise ConfigError(f"{said} {response.status_code}: {response.text[:200]}; expected 200")
        try:
            found = response.json()
        except ValueError:
            raise ConfigError(f'{said} no JSON: {response.text[:200]!r}; expected {{"rewards": […]}}') from None
        if not isinstance(found, dict) or "rewards" not in found:
            keys = list(found) if isinstance(found, dict) else type(found).__name__
            raise ConfigError(f'{said} {keys}; expected {{"rewards": […]}}')
        return numbers(found["rewards"], count, said)


def numbers(found: object, count: int, said: str) -> Scores:
    """`found` as one number for each of `count` answers."""
    values: Any = found.tolist() if hasattr(found, "tolist") else found
    if not isinstance(values, list | tuple):
        raise ConfigError(f"{said} {type(found).__name__} {str(found)[:80]!r}; expected a list of {count} numbers")
    if len(values) != count:
        raise ConfigError(f"{said} {len(values)} rewards for {count} answers; expected one for each")
    for number, value in enumerate(values):
        good = value is None or (isinstance(value, int | float) and math.isfinite(value))
        if not good:
            raise ConfigError(f"{said} {value!r} for answer {number}; expected a finite number, or none at all (null)")
    return [None if value is None else float(value) for value in values]


class Model:
    """A reward model: a sequence classifier with one label, with its own tokenizer and chat template. It reads the
    decoded text, so that it need not be of the policy's family.
    """

    BATCH = 8

    def __init__(self, place: Place, field: str) -> None:
        from pathlib import Path

        from tunesmith_trainer.model import check_files, load_tokenizer

        if (Path(place.path) / "adapter_config.json").is_file():
            raise ModelError(
                f"{field}.model: {place.uri} is an adapter: give a whole model (tuner Full, or a MergeJob's)"
            )
        config = check_files(place)
        labels = config.get("num_labels", len(config.get("id2label") or {}) or None)
        heads = [name for name in config.get("architectures") or [] if "SequenceClassification" in name]
        if not heads or labels != 1:
            raise ModelError(
                f"{field}.model: {place.uri} must be a sequence classifier with one label; found "
                f"{config.get('architectures')} with {labels or 2} label(s)"
            )
        self.place = place
        self.tokenizer = load_tokenizer(place)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model: Any = None

    def load(self, device: torch.device) -> None:
        """Hold the model on `device`."""
        import torch

        from tunesmith_trainer.model import model_class

        try:
            self.model = model_class(self.place, "SequenceClassification").from_pretrained(
                self.place.path,
                dtype=torch.float32 if device.type == "cpu" else torch.bfloat16,
                use_safetensors=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(f"model {self.place.uri}: it cannot be loaded: {error}") from error
        self.model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        self.model.eval().requires_grad_(False).to(device)

    def text(self, row: Row, prompt: str, completion: str) -> str:
        """A prompt and an answer to it, as the reward model reads them: with the row's media, if it reads those."""
        from tunesmith_trainer import chat
        from tunesmith_trainer.masks import Learned, expanded
        from tunesmith_trainer.rollouts import asked

        if not row.messages or not self.tokenizer.chat_template:
            return prompt + completion
        turns = [*asked(row), {"role": "assistant", "content": completion}]
        text = chat.render(self.tokenizer, row, turns)
        return expanded(Learned(row, text, []), self.tokenizer).text if self.tokenizer.multimodal else text

    def __call__(self, answers: Answers) -> Scores:
        """Its logits."""
        import torch

        triples = zip(answers.rows, answers.prompts, answers.completions, strict=True)
        texts = [self.text(*triple) for triple in triples]
        scores: Scores = []
        for begin in range(0, len(texts), self.BATCH):
            coded = self.tokenizer(
                texts[begin : begin + self.BATCH],
                return_tensors="pt",
                padding=True,
                padding_side="right",
                add_special_tokens=False,
            ).to(self.model.device)
            coded.pop("token_type_ids", None)
            if multimodal := self.tokenizer.multimodal:
                rows = answers.rows[begin : begin + self.BATCH]
                found = multimodal.tensors_of([media_of(row.messages) for row in rows])
                found |= multimodal.token_types(coded["input_ids"]) if found else {}
                coded.update({name: value.to(self.model.device) for name, value in found.items()})
            with torch.inference_mode():
                scores += self.model(**coded).logits[:, 0].float().tolist()
        return scores
