"""Functions compiled by numba, in a cache on disk that notices when something they call changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numba.core.caching import FunctionCache
from numba.core.dispatcher import Dispatcher

Function = TypeVar("Function", bound=Callable[..., Any])


class _Cache(FunctionCache):
    """Numba's cache, which by itself looks at the file of a function alone, although it inlines what others hold."""

    def _index_key(self, *arguments: Any) -> tuple[Any, ...]:
        parts = sorted(set(_borrowed(self._py_func, set())))
        key: tuple[Any, ...] = super()._index_key(*arguments)  # type: ignore[no-untyped-call]
        return (*key, sha256("\n".join(parts).encode()).hexdigest())


def compiled(function: Function, **options: Any) -> Function:
    """Compile a function, once for all processes, and again when it or what it calls changes.

    Args:
        function: may call other compiled ones, from any module, and use constants, both by their plain names.
        options: of `numba.njit`.
    """
    dispatcher = njit(**options)(function)
    dispatcher._cache = _Cache(function)  # type: ignore[no-untyped-call]
    return cast(Function, dispatcher)


def _borrowed(function: Callable[..., Any], seen: set[Any]) -> Iterator[str]:
    """Yield the global constants that a function is compiled with, and hashes of the files of those it calls."""
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if isinstance(value, Dispatcher) and value not in seen:
            seen.add(value)
            yield _hash(value.py_func.__code__.co_filename)
            yield from _borrowed(value.py_func, seen)
        elif isinstance(value, int | float | tuple | np.generic | np.dtype):
            yield f"{name} = {value!r}"


@cache
def _hash(file: str) -> str:
    return sha256(Path(file).read_bytes()).hexdigest()
