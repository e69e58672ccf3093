"""Gather under build/gpu what the jobs need on a machine that has a GPU and no package index.

    python benchmarks/gpu/pack.py --have there.txt    # `python -m pip list --format=freeze` of that machine
    python benchmarks/gpu/pack.py --check python3.12  # installs and imports it in a clean environment

Wheels of what is missing there, crops of the real EM data, weights, and `pack.json`, which names them all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import h5py
from check_pack import check
from job import CARRIED, FIB25, ROOT
from needs import required
from wheels import BARE, PLATFORMS, Target, download, read_have, resolve

MANIFEST = "pack.json"
WHOLE = ("fib25_dev.h5", "fib25_tiny.h5", "LICENSE_fib25_CC-BY.txt")
CROPPED = "fib25_raw_400.h5"
MIB = 2**20


def main() -> None:
    given = _arguments()
    if given.check is not None:
        manifest = CARRIED / MANIFEST
        if not manifest.exists():
            sys.exit(f"there is no {manifest.relative_to(ROOT)}: pack first, without --check")
        sys.exit(check(given.check, json.loads(manifest.read_text()), given.torch))
    have = read_have(given.have) if given.have else BARE
    target = Target(given.python, tuple(given.platform), have)
    needs, optional = required(tuple(given.extras))
    if optional:
        print(f"left out, of extras not asked for: {', '.join(optional)}")
    for folder in ("wheels", "data", "models"):
        shutil.rmtree(CARRIED / folder, ignore_errors=True)
    (CARRIED / MANIFEST).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        found = resolve(needs, target, ROOT / "constraints.txt", Path(scratch))
    download(found.packed, target, CARRIED / "wheels")
    pack_data(FIB25, CARRIED / "data", given.crop)
    pack_models(given.models, CARRIED / "models")
    files = listing(CARRIED)
    tree = tree_bytes(ROOT)
    if too_big := over(files, tree, given.limit * MIB):
        sys.exit(too_big)
    facts = {
        "commit": _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").strip(),
        "python": target.python,
        "platforms": target.platforms,
        "extras": given.extras,
        "there": found.there,
        "assumed": sorted(name for name in found.there if not target.have[name]),
        "without_wheel": found.unserved,
        "tree_bytes": tree,
        "files": files,
    }
    (CARRIED / MANIFEST).write_text(json.dumps(facts, indent=1) + "\n")
    print(table(files, tree))
    if found.unserved:
        sys.exit("\n".join(f"{name} has no wheel for Python {target.python}: not packed" for name in found.unserved))


def pack_data(source: Path, to: Path, crop: int) -> None:
    """Copy the real EM data that is small, and the middle of what is not; never the volume for tests."""
    to.mkdir(parents=True)
    if not source.is_dir():
        print(f"packed without real data: there is no {source}")
        return
    for name in WHOLE:
        shutil.copyfile(source / name, to / name)
    cut(source / CROPPED, to / CROPPED, crop)


def cut(source: Path, to: Path, size: int) -> None:
    """Write the cube in the middle of every volume of an HDF5 file, at its place.

    Args:
        source: volumes (z, y, x) with the attributes ``resolution`` and ``offset``, in nm.
        to: the new file, of the same paths and attributes.
        size: edge of the cube, in voxels; where a volume is smaller, all of it.
    """
    with h5py.File(source) as whole, h5py.File(to, "w") as part:

        def copy(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Group):
                part.require_group(name).attrs.update(item.attrs)
                return
            start = [max(0, (edge - size) // 2) for edge in item.shape]
            data = item[tuple(slice(a, a + size) for a in start)]
            volume = part.create_dataset(name, data=data, chunks=True, compression="gzip", compression_opts=9)
            volume.attrs.update(item.attrs)
            volume.attrs["offset"] = item.attrs["offset"] + item.attrs["resolution"] * start

        whole.visititems(copy)
        part.attrs.update(whole.attrs)
        part.attrs["source"] = f"{whole.attrs.get('source', source.name)}; cropped to the middle {size}^3"


def pack_models(weights: list[Path], to: Path) -> None:
    """Copy weights into one folder."""
    to.mkdir(parents=True)
    for path in weights:
        if not path.is_file():
            sys.exit(f"there are no weights {path}")
        if (to / path.name).exists():
            sys.exit(f"got two weights named {path.name}, expected names that differ: rename {path}")
        shutil.copyfile(path, to / path.name)


def listing(folder: Path) -> list[dict[str, Any]]:
    """Return name, bytes and sha256 of every file below a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return [
        {
            "name": path.relative_to(folder).as_posix(),
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in paths
    ]


def tree_bytes(root: Path) -> int:
    """Return the size of the working tree that travels: what git tracks, or sees and does not ignore."""
    names = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard", root=root).split("\0")
    paths = {root / name for name in names if name}
    return sum(path.lstat().st_size for path in paths if path.is_file())


def over(files: list[dict[str, Any]], tree: int, limit: int) -> str | None:
    """Return in a line by how much a pack is too big, and what is largest in it; None if it is not."""
    total = tree + sum(file["bytes"] for file in files)
    if total <= limit:
        return None
    largest = sorted(files, key=lambda file: -file["bytes"])[:5]
    what = ", ".join(f"{file['name']} {file['bytes'] / MIB:.1f}" for file in largest)
    return (
        f"got {total / MIB:.1f} MiB, {tree / MIB:.1f} of them the working tree, expected at most {limit / MIB:.1f}: "
        f"say with --have what is there, or take a smaller --crop or fewer models; largest: {what}"
    )


def table(files: list[dict[str, Any]], tree: int) -> str:
    """Return the files, their sizes in bytes, and the total, as lines."""
    rows = [(file["name"], file["bytes"], file["sha256"][:12]) for file in files]
    rows += [("the working tree", tree, ""), ("total", tree + sum(file["bytes"] for file in files), "")]
    wide = max(len(name) for name, *_ in rows)
    return "\n".join(f"{name:<{wide}} {size:>10,} {digest}".rstrip() for name, size, digest in rows)


def _git(*arguments: str, root: Path = ROOT) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="3.12", help="of the target, default 3.12")
    parser.add_argument("--platform", nargs="+", default=PLATFORMS, help="tags of wheels that run there")
    parser.add_argument("--have", type=Path, help="what is there: NAME==VERSION or NAME, one a line")
    parser.add_argument("--extras", nargs="+", default=[], metavar="EXTRA", help="of kdseg, e.g. monai")
    parser.add_argument("--models", nargs="+", default=[], type=Path, metavar="FILE", help="weights to take along")
    parser.add_argument("--crop", type=int, default=256, help=f"edge of the cube of {CROPPED}, in voxels, default 256")
    parser.add_argument("--limit", type=float, default=64, help="MiB, with the working tree, default 64")
    parser.add_argument("--check", metavar="PYTHON", help="try the pack with this interpreter, of the target's version")
    parser.add_argument("--torch", metavar="NAME==VERSION", help="for --check: one that the index has")
    given = parser.parse_args()
    if given.crop < 1:
        parser.error(f"--crop: got {given.crop}, expected at least 1")
    return given


if __name__ == "__main__":
    main()
