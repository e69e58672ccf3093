"""Licences of all that kdseg needs, and known vulnerabilities: `python .ci/dependencies.py`.

What is installed is listed, kdseg's own requirements with those of its extras and, in turn, theirs. A licence that is
not allowed fails; so does a vulnerability, if `pip-audit` is installed and reaches its index.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement

ALLOWED = re.compile(
    r"\b(MIT|0?BSD|ISC|Zlib|BSL-1\.0|Boost|Apache|Unlicense|Public Domain|CC0|PSF|Python Software Foundation|HPND"
    r"|MPL|Mozilla Public"  # copyleft of its own files, which are used as they are
    r"|LGPL)\b",  # used as a library, which a user can replace
    re.IGNORECASE,
)
COPYLEFT = re.compile(r"\bA?GPL|(?<!Lesser )General Public", re.IGNORECASE)
"""Of all that is combined with it."""
BY_CHOICE = {
    "docutils": "public domain, BSD; GPL for an Emacs mode, which is not installed",
    "hdf5plugin": "MIT; MIT, BSD, Apache-2 and Zlib for the filters in it, as its documentation lists them",
}
"""Distributions whose metadata do not say it, or with parts under a licence that is not allowed and are not used."""
FREE = {"test"}
"""Extras of kdseg that users do not install."""


def needed(name: str, extras: frozenset[str], found: dict[str, Distribution], seen: set[tuple[str, str]]) -> None:
    """Add a distribution and all that it needs to ``found``."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    new = {(key, extra) for extra in {"", *extras}} - seen
    if not new:
        return
    seen |= new
    try:
        found[key] = distribution(key)
    except PackageNotFoundError:
        return  # not for this platform, or of an extra that is not installed
    for text in found[key].requires or ():
        one = Requirement(text)
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for _, extra in new):
            needed(one.name, frozenset(one.extras), found, seen)


def licence(made: Distribution) -> str:
    """Return the licence of a distribution: by its metadata, else the first line of its file."""
    said = made.metadata
    classes = [line.rpartition(" :: ")[2] for line in said.get_all("Classifier", []) if line.startswith("License ::")]
    text = (said.get("License") or "").strip().partition("\n")[0]
    if found := said.get("License-Expression") or "; ".join(classes) or text:
        return found
    files = [file for file in made.files or () if "licen" in file.name.lower() and ".dist-info" in str(file)]
    return files[0].read_text().strip().partition("\n")[0] if files else ""


def refused(text: str) -> bool:
    """Return whether a licence is not allowed: one that all of its parts need, or one that is not known."""
    parts = [part for part in re.split(r"(?i)\bAND\b|;|\(|\)", text) if part.strip()]
    return not parts or not all(any(map(_allowed, re.split(r"(?i)\bOR\b", part))) for part in parts)


def _allowed(text: str) -> bool:
    return bool(ALLOWED.search(text)) and not COPYLEFT.search(text)


def audited() -> bool:
    """Return whether no vulnerability is known, or none can be looked up, which is printed."""
    program = shutil.which("pip-audit")
    if program is None:
        print("known vulnerabilities: not looked up, pip-audit is not installed")
        return True
    run = subprocess.run([program, "--format", "json", "--progress-spinner", "off"], capture_output=True, text=True)
    try:
        found = [one for one in json.loads(run.stdout)["dependencies"] if one.get("vulns")]
    except ValueError:
        print(f"known vulnerabilities: not looked up, {run.stderr.strip().splitlines()[-1:]}")
        return True
    for one in found:
        print(f"{one['name']} {one['version']} has {', '.join(vuln['id'] for vuln in one['vulns'])}: update it")
    print(f"known vulnerabilities: {len(found)} distributions")
    return not found


def main() -> None:
    """Print the list; exit 1 for a licence or a vulnerability."""
    found: dict[str, Distribution] = {}
    extras = frozenset(distribution("kdseg").metadata.get_all("Provides-Extra", [])) - FREE
    needed("kdseg", extras, found, set())
    bad = []
    for name, made in sorted(found.items()):
        said = licence(made)
        print(f"{name} {made.version}: {said or 'no licence'}" + (f" ({BY_CHOICE[name]})" if name in BY_CHOICE else ""))
        if name not in BY_CHOICE and refused(said):
            bad.append(
                f"{name} has the licence {said!r}: do without it, or allow it in .ci/dependencies.py, with the reason"
            )
    print("\n".join([*bad, f"{len(found)} distributions, {len(bad)} with a licence that is not allowed"]))
    if not audited() or bad:
        sys.exit(1)


if __name__ == "__main__":
    main()
