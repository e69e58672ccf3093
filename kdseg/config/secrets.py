"""Secrets in the addresses of a configuration: passwords, and the signatures of links."""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any

from kdseg.errors import masked

_ADDRESS = re.compile(r"^(?P<scheme>[A-Za-z][\w+-]*://)(?P<user>[^\s/]*@)?(?P<rest>[^\s?]*)(?P<query>\?\S*)?$")


def hidden(values: Any) -> Any:
    """Return values in whose addresses environment variables, which are set, stand for secrets: ``${NAME}``.

    What is made of a configuration is seen by others: tasks on command lines, records of Snakemake, configurations
    that a command writes. `kdseg.results.remote.resolve` puts the secrets in again. Names of variables follow from the
    rest of the address, so that each process that reads the configuration sets the same.
    """
    if isinstance(values, dict):
        return {key: hidden(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(hidden(value) for value in values)
    found = _ADDRESS.match(values) if isinstance(values, str) else None
    if found is None:
        return values
    user, query = found["user"] or "", found["query"] or ""
    if user and "${" not in user:
        user = f"{_variable(values, 'USER', user[:-1])}@"
    if query and "${" not in query:
        query = f"?{_variable(values, 'QUERY', query[1:])}"
    return f"{found['scheme']}{user}{found['rest']}{query}"


def _variable(address: str, part: str, secret: str) -> str:
    name = f"KDSEG_{part}_{hashlib.sha256(masked(address).encode()).hexdigest()[:12].upper()}"
    os.environ[name] = secret
    return f"${{{name}}}"
