"""Rewards that the user's own code computes: a Python function, or an endpoint."""

from __future__ import annotations

import importlib.util
import inspect
import math
import re
import sys
import time
from collections.abc import Callable
from numbers import Real
from typing import Any

from tunesmith.api.methods import HttpReward, PythonReward
from tunesmith.training.location import locate

from tunesmith_trainer.errors import ConfigError, InternalError
from tunesmith_trainer.rewards.answers import Answers, Scores

SERVER_ERRORS = (429, 500, 502, 503, 504)


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
        good = value is None or (isinstance(value, Real) and math.isfinite(value))  # numpy's, too
        if not good:
            raise ConfigError(f"{said} {value!r} for answer {number}; expected a finite number, or none at all (null)")
    return [None if value is None else float(value) for value in values]
