"""The wheels that a machine without a package index is missing: resolved by pip, fetched by pip.

What is there already stands in the resolution as an empty wheel of its version, pinned: pip then neither looks it up
nor replaces it, and the rest is chosen to suit it. What it needs itself, the machine has too.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

_GLIBC = ("_2_35", "_2_34", "_2_31", "_2_28", "_2_27", "_2_24", "_2_17", "2014", "1")
PLATFORMS = tuple(f"manylinux{version}_x86_64" for version in _GLIBC)
"""pip takes a wheel of exactly these names, so that each glibc that wheels are built for has to be listed."""
BARE = {canonicalize_name("torch"): None, canonicalize_name("numpy"): None}
"""There, where nobody says what is."""
_NO_WHEEL = re.compile(r"No matching distribution found for (.+?)(?: \(from .*)?$", re.MULTILINE)
_NO_WHEEL_OF_PIN = re.compile(r"no matching distributions available for your environment:\n((?: +\S+\n)+)")
_ASKS = re.compile(r"^ +(?:(\S+ \S+) depends on|The user requested(?! \(constraint\))) (.+)$", re.MULTILINE)

Versions = dict[NormalizedName, str]


class Target(NamedTuple):
    """The machine that is packed for.

    Attributes:
        python: its version, e.g. ``3.12``.
        platforms: tags of wheels that run there.
        have: packages there, with their versions where known.
    """

    python: str
    platforms: tuple[str, ...]
    have: dict[NormalizedName, str | None]

    @property
    def options(self) -> list[str]:
        """Of pip, for wheels of this machine."""
        tags = [option for tag in self.platforms for option in ("--platform", tag)]
        return ["--only-binary=:all:", "--python-version", self.python, "--implementation", "cp", *tags]

    def applies(self, need: Requirement, extra: str = "") -> bool:
        """Return whether a requirement holds on this machine; pip asks the Python it runs in instead."""
        if need.marker is None:
            return True
        _, _, machine = self.platforms[0].partition("linux")
        there = {
            "python_version": self.python,
            "python_full_version": f"{self.python}.0",
            "sys_platform": "linux",
            "platform_system": "Linux",
            "os_name": "posix",
            "platform_machine": re.sub(r"^(_\d+_\d+|\d+)?_", "", machine),
        }
        return need.marker.evaluate({**default_environment(), **there, "extra": extra})


class Resolution(NamedTuple):
    """Requirements of the jobs beside the standard library.

    Attributes:
        packed: what is missing on the machine.
        there: what is needed and there; where the have-list gives no version, the assumed one.
        unserved: what has no wheel for the machine.
    """

    packed: Versions
    there: Versions
    unserved: list[NormalizedName]


def read_have(path: Path) -> dict[NormalizedName, str | None]:
    """Read `pip list --format=freeze`, or bare names, one a line; a package whose version is not said is None."""
    if not path.is_file():
        sys.exit(f"there is no have-list {path}: write `python -m pip list --format=freeze` of the target to it")
    have: dict[NormalizedName, str | None] = {}
    for line in path.read_text().splitlines():
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = re.fullmatch(r"([A-Za-z0-9][\w.-]*)\s*(?:===?\s*(\S+)|@.*)?", text)
        if match is None:
            sys.exit(
                f"{path}: got {line!r}, expected NAME==VERSION or NAME, as of `python -m pip list --format=freeze`"
            )
        have[canonicalize_name(match[1])] = match[2]
    return have


def resolve(needs: list[Requirement], target: Target, constraints: Path, folder: Path) -> Resolution:
    """Let pip choose one version of everything that is needed and is not there.

    Args:
        needs: of the jobs.
        target: the machine.
        constraints: a file of pinned versions; those of packages that are there give way.
        folder: for intermediate files.
    """
    pinned = _pins(constraints, target)
    stubs: Versions = {}
    for name, version in target.have.items():
        if version or name in pinned:
            stubs[name] = version or pinned[name]
    wanted, unserved = [need for need in needs if target.applies(need)], list[NormalizedName]()
    while True:
        report = _pip_report(wanted, target, pinned, stubs, folder)
        if isinstance(report, Requirement):
            name = canonicalize_name(report.name)
            named = (one.version for one in report.specifier if report.specifier.contains(one.version))
            unserved.append(name)
            stubs[name] = pinned.get(name) or next(named, "0")  # so that the rest can be resolved
            continue
        known = {**target.have, **dict.fromkeys(unserved)}
        reached, more = _reached(needs, report, known, target)
        if not more:
            break
        wanted += more
    versions = {name: report[name]["version"] for name in reached}
    packed = {name: version for name, version in versions.items() if name not in known}
    return Resolution(packed, {name: v for name, v in versions.items() if name in target.have}, unserved)


def download(packed: Versions, target: Target, folder: Path) -> None:
    """Fetch the wheels, one of each, into a folder."""
    folder.mkdir(parents=True)
    if packed:
        exact = [f"{name}=={version}" for name, version in sorted(packed.items())]
        done = pip("download", "--quiet", "--no-deps", *target.options, "--dest", str(folder), *exact)
        if done.returncode:
            sys.exit(f"pip could not fetch the wheels: {_errors(done)}")


def modules_of(wheel: Path) -> list[str]:
    """Return the names of the modules that a wheel puts at the top, private ones left out."""
    tops = set()
    for name in zipfile.ZipFile(wheel).namelist():
        top, _, rest = name.partition("/")
        if rest == "__init__.py":
            tops.add(top)
        elif not rest and top.endswith((".py", ".so")):
            tops.add(top.partition(".")[0])
    return sorted(top for top in tops if not top.startswith("_"))


def pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pip."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _pins(constraints: Path, target: Target) -> Versions:
    lines = (line.partition("#")[0].strip() for line in constraints.read_text().splitlines())
    pins = (pin for pin in map(Requirement, filter(None, lines)) if target.applies(pin))
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}


def _pip_report(
    wanted: Iterable[Requirement], target: Target, pinned: Versions, stubs: Versions, folder: Path
) -> dict[NormalizedName, dict] | Requirement:
    """Return the metadata of what pip would install, or what it finds no wheel of."""
    lines = [f"{name}=={version}" for name, version in pinned.items() if name not in stubs]
    lines += [f"{name} @ {_stub(name, version, folder).as_uri()}" for name, version in stubs.items()]
    constraints, report = folder / "constraints.txt", folder / "report.json"
    constraints.write_text("\n".join(lines) + "\n")
    report.unlink(missing_ok=True)
    needs = [f"{need.name}{_extras(need)}{need.specifier}" for need in wanted]
    options = ["--dry-run", "--ignore-installed", "--constraint", str(constraints), "--report", str(report)]
    done = pip("install", *options, *target.options, *needs)
    if done.returncode == 0:
        chosen = [entry["metadata"] for entry in json.loads(report.read_text())["install"]]
        return {canonicalize_name(metadata["name"]): metadata for metadata in chosen}
    lacking = [*_NO_WHEEL.findall(done.stderr), *" ".join(_NO_WHEEL_OF_PIN.findall(done.stdout)).split()]
    found = (need for need in map(Requirement, lacking) if canonicalize_name(need.name) not in stubs)
    if need := next(found, None):
        return need
    sys.exit(f"pip finds no versions that go together: {_conflict(done.stdout, stubs) or _errors(done)}")


def _reached(
    needs: list[Requirement],
    report: dict[NormalizedName, dict],
    known: Iterable[NormalizedName],
    target: Target,
) -> tuple[set[NormalizedName], list[Requirement]]:
    """Return what the needs lead to on the target, and what of it pip did not see, asking its own Python."""
    queue, seen, more = list(needs), set[str](), list[Requirement]()
    reached = set[NormalizedName]()
    while queue:
        need = queue.pop()
        name = canonicalize_name(need.name)
        if name not in report:
            more.append(need)
            continue
        reached.add(name)
        for extra in ("", *need.extras):
            if name in known or f"{name}[{extra}]" in seen:
                continue
            seen.add(f"{name}[{extra}]")
            theirs = map(Requirement, report[name].get("requires_dist", []))
            queue += [one for one in theirs if target.applies(one, extra)]
    return reached, more


def _stub(name: str, version: str, folder: Path) -> Path:
    """Write an empty wheel."""
    stem = f"{name.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        info = f"{stem}.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def _extras(need: Requirement) -> str:
    return f"[{','.join(sorted(need.extras))}]" if need.extras else ""


def _conflict(text: str, stubs: Versions) -> str:
    """Return who asks for what in a line, and what is there of it; nothing if pip does not say."""
    asks = _ASKS.findall(text)
    names = sorted({canonicalize_name(Requirement(what).name) for _, what in asks} & set(stubs))
    there = [f"there is {name} {stubs[name]}: leave it out of --have to take another along" for name in names]
    return "; ".join([f"{who or 'kdseg'} needs {what}" for who, what in asks] + there)


def _errors(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return " ".join(lines) or done.stderr.strip()[-500:]
