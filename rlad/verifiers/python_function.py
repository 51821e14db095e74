"""A verifier of one's own: any importable Python function of a response and an answer."""

from __future__ import annotations

import importlib
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rlad.contracts import Outcome
from rlad.errors import ConfigError, ContractError
from rlad.verifiers.verdict import CORRECT, WRONG, Verdict


class PythonFunctionVerifierConfig(BaseModel):
    """Settings of a verifier that is a Python function, called as `function(response_text, answer)`; it returns a number, a bool or a `Verdict`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["python_function"]
    path: str = Field(
        pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*$",
        description="`package.module:function`, importable where the verifier pool's workers run.",
    )
    correct_from: float = Field(
        1.0, description="Where the function returns a number, which is the reward: the least that counts as correct."
    )

    def build(self) -> PythonFunctionVerifier:
        """
        Raises:
            ConfigError: the function cannot be imported, or is none.
        """
        module_name, _, name = self.path.partition(":")
        where = f"the verifier function {self.path!r}"
        try:
            found: Any = importlib.import_module(module_name)
        except Exception as error:
            raise ConfigError(
                f"{where} cannot be imported: {type(error).__name__}: {error}; the module must be on the Python path of the verifier pool's workers"
            ) from error
        for part in name.split("."):
            if not hasattr(found, part):
                raise ConfigError(f"{where} cannot be imported: {getattr(found, '__name__', found)!r} has no {part!r}")
            found = getattr(found, part)
        if not callable(found):
            raise ConfigError(f"{where} is not callable: it is {type(found).__name__}")
        return PythonFunctionVerifier(function=found, path=self.path, correct_from=self.correct_from)


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonFunctionVerifier:
    """Gives a function's verdicts.

    Attributes:
        function: called with the response and the prompt's answer. A bool is right or wrong; a number is the reward.
        path: where it came from, for errors.
        correct_from: the least number that counts as correct.
    """

    function: Callable[[str, str], Any]
    path: str
    correct_from: float

    def verify(self, response_text: str, answer: str) -> Verdict:
        """Judge a response.

        Raises:
            ContractError: the function returned neither a number, a bool nor a `Verdict`. Whatever it raises passes through.
        """
        result = self.function(response_text, answer)
        if isinstance(result, Verdict):
            return result
        if isinstance(result, bool | np.bool_):
            return CORRECT if result else WRONG
        if isinstance(result, numbers.Real):
            reward = float(result)
            return Verdict(reward=reward, outcome=Outcome.CORRECT if reward >= self.correct_from else Outcome.WRONG)
        raise ContractError(f"{self.path} must return a number, a bool or a Verdict, and returned {result!r}")
