"""Custom verifier: any importable Python function of a response and an answer."""

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
    """Settings of a verifier that is a Python function.

    It is called as `function(response_text, answer)` and returns a number, a bool or a `Verdict`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["python_function"]
    path: str = Field(
        pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*$",
        description="Function as `package.module:function`, importable by the workers of the verifier pool.",
    )
    correct_from: float = Field(
        1.0, description="Minimum number that counts as correct, if the function returns a number, which is the reward."
    )

    def build(self) -> PythonFunctionVerifier:
        """Import the function and return the verifier.

        Raises:
            ConfigError: The function cannot be imported, or is not callable.
        """
        module_name, _, name = self.path.partition(":")
        where = f"the verifier function {self.path!r}"
        try:
            found: Any = importlib.import_module(module_name)
        except Exception as error:
            raise ConfigError(
                f"{where} cannot be imported: {type(error).__name__}: {error}; "
                "the module must be on the Python path of the verifier pool's workers"
            ) from error
        for part in name.split("."):
            if not hasattr(found, part):
                raise ConfigError(f"{where} cannot be imported: {getattr(found, '__name__', found)!r} has no {part!r}")
            found = getattr(found, part)
        if not callable(found):
            raise ConfigError(f"{where} must be callable, got {type(found).__name__}")
        return PythonFunctionVerifier(function=found, path=self.path, correct_from=self.correct_from)


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonFunctionVerifier:
    """Verifier that calls a function.

    Attributes:
        function: Function of the response and the prompt's answer. A bool means correct or wrong; a number is the
            reward.
        path: Import path of the function, for errors.
        correct_from: Minimum number that counts as correct.
    """

    function: Callable[[str, str], Any]
    path: str
    correct_from: float

    def verify(self, response_text: str, answer: str) -> Verdict:
        """Verify a response. Exceptions of the function propagate.

        Raises:
            ContractError: The function returned neither a number, a bool nor a `Verdict`.
        """
        result = self.function(response_text, answer)
        if isinstance(result, Verdict):
            return result
        if isinstance(result, bool | np.bool_):
            return CORRECT if result else WRONG
        if isinstance(result, numbers.Real):
            reward = float(result)
            return Verdict(reward=reward, outcome=Outcome.CORRECT if reward >= self.correct_from else Outcome.WRONG)
        raise ContractError(
            f"the verifier function {self.path} must return a number, a bool or a Verdict, got {result!r}"
        )
