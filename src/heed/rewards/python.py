"""Functions written by the user in Python, and rewards made of them."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from heed.errors import Interrupted, UserError
from heed.records import Rollout
from heed.rewards.protocol import Reward, checked_scores


def load_reward(spec: str) -> Reward:
    """The reward that `module:function` or `file.py:function` names.

    The function takes `(prompt, response)` as two texts and returns a number, or takes one argument, the list of rollouts,
    and returns a number for each. Raises UserError where it is not found or takes neither, and, when scoring, where it
    raises or returns anything else.
    """
    function = load_function(spec)
    takes_rollouts = _num_arguments(function, spec) == 1

    def reward(rollouts: Sequence[Rollout]) -> Tensor:
        if takes_rollouts:
            scores = function(list(rollouts))
            if isinstance(scores, Tensor):
                return checked_scores(scores, rollouts, spec)
            if not isinstance(scores, Iterable):
                raise UserError(f"{spec} returned {scores!r}", expected=f"a list or tensor of {len(rollouts)} numbers")
        else:
            scores = [function(rollout.prompt.display(), rollout.text) for rollout in rollouts]
        return checked_scores([_number(score, spec) for score in scores], rollouts, spec)

    return reward


def load_function(spec: str) -> Callable[..., Any]:
    """The function that `module:function` or `file.py:function` names; raises UserError where there is none.

    What the function raises, and what its file raises when it is loaded, becomes a UserError with the line that raised it.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise UserError(f"{spec!r} names no function", expected="module:function or file.py:function")
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"no function {name!r} in {place}", expected="file.py:function or module:function")

    @wraps(function)
    def told(*arguments: object) -> object:
        with _users_faults(getattr(module, "__file__", None)):
            result = function(*arguments)
            return list(result) if isinstance(result, Iterator) else result  # a generator raises only when it is read

    return told


def load_text_function(spec: str) -> Callable[..., Any]:
    """The same of a function of two texts, prompt and response; raises UserError where it does not take them."""
    function, expected = load_function(spec), "(prompt, response)"
    signature = _signature(function, spec, expected)
    try:
        signature.bind("", "")
    except TypeError:
        raise UserError(f"{spec} takes {signature}", expected=expected) from None
    return function


@contextmanager
def _users_faults(file: str | None = None) -> Iterator[None]:
    """Turn what the user's code in `file` raises into a UserError with its place."""
    try:
        yield
    except (UserError, Interrupted):
        raise
    except Exception as error:
        raise _fault(error, file) from error


def _fault(error: Exception, file: str | None) -> UserError:
    """The innermost line of `file` or, where none is part of it, of the file that was entered first."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        return UserError(f"{type(error).__name__}: {error.msg}", file=error.filename, line=error.lineno)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename not in (__file__, importlib.__file__)]
    if not any(frame.filename == file for frame in frames):
        file = next((frame.filename for frame in frames if not frame.filename.startswith("<")), file)
    line = next((frame.lineno for frame in reversed(frames) if frame.filename == file), None)
    return UserError(f"{type(error).__name__}: {error}".removesuffix(": "), file=file, line=line)


def _load_module(name: str) -> ModuleType:
    with _users_faults():
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there; it is one of its own imports that is missing
            raise UserError(f"no module {name!r}", fix="for a file, write path/to/file.py:function") from error


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"no file {path}", expected="module:function or file.py:function")
    module = ModuleType(str(path.resolve()))
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    with _users_faults(str(path)):
        exec(compile(path.read_bytes(), path, "exec", dont_inherit=True), module.__dict__)
    return module


def _num_arguments(function: Callable[..., object], spec: str) -> int:
    """1 or 2, the arguments that the function must be called with."""
    expected = "(prompt, response) or (rollouts)"
    signature = _signature(function, spec, expected)
    parameters = signature.parameters.values()
    required = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(required) not in (1, 2) or any(p.default is p.empty and p.kind is p.KEYWORD_ONLY for p in parameters):
        raise UserError(f"{spec} takes {signature}", expected=expected)
    return len(required)


def _signature(function: Callable[..., object], spec: str, expected: str) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except ValueError:  # as of some that are written in C
        raise UserError(f"{spec} does not say what it takes", expected=expected, fix="call it from a function of your own") from None


def as_number(value: object) -> float | None:
    """A real number, or a tensor of one, as a float; None for anything else."""
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if not isinstance(number, Real):
        return None
    try:
        return float(number)
    except OverflowError:  # a whole number beyond all floats
        return math.inf


def _number(score: object, spec: str) -> float:
    number = as_number(score)
    if number is None:
        raise UserError(f"{spec} returned {score!r}", expected="a number for each response")
    return number
