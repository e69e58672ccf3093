"""Passwords and signatures in addresses are used, and shown nowhere."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import invoke
from toy_volumes import cells, write_zarr
from workflow import ROOT, jobs, snakemake

from kdseg.errors import ConfigError, KdsegError, MissingError, UnreadableError, masked
from kdseg.results.manifests import read
from kdseg.volumes.inputs import open_input
from kdseg.volumes.sources import open_source

SECRET, OTHER = "hunter2%21", "swordfish"


class Guarded(SimpleHTTPRequestHandler):
    """Serves files to who knows the password."""

    def send_head(self) -> Any:
        """Ask for it."""
        given = self.headers.get("Authorization", "").removeprefix("Basic ")
        if base64.b64decode(given).decode() not in ("me:hunter2!", f"me:{OTHER}"):
            self.send_error(401)
            return None
        return super().send_head()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Host and port of a web server that has raw.zarr and labels.zarr."""
    folder = tmp_path_factory.mktemp("served")
    for name, array in zip(("raw", "labels"), cells((24, 48, 48), 12), strict=True):
        write_zarr(folder / f"{name}.zarr", 3, array)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Guarded, directory=str(folder))) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{serving.server_port}"
        serving.shutdown()


def run(*arguments: object, **environment: str) -> tuple[int, str]:
    """Return the exit code of a command in a process of its own, and all that it prints."""
    command = [sys.executable, "-m", "kdseg", *map(str, arguments)]
    known = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=known)
    return done.returncode, done.stdout + done.stderr


def expect_no(secret: str, folder: Path, text: str) -> None:
    """Fail if a secret was printed, or is in a file or a name of a folder."""
    assert secret not in text
    for path in folder.rglob("*"):
        assert secret not in path.name
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def configured(values: dict[str, Any], server: str, password: str) -> str:
    """Return a configuration with a volume on the server."""
    address = f"http://me:{password}@{server}"
    real = {"raw": f"{address}/raw.zarr", "labels": f"{address}/labels.zarr", "voxel_size": [10, 10, 10]}
    return yaml.safe_dump({**values, "volumes": {**values["volumes"], "real": real}})


@pytest.mark.slow
def test_the_workflow_reads_what_a_password_guards(server: str, tmp_path: Path, values: dict[str, Any]) -> None:
    folder, config = tmp_path / "run", tmp_path / "config.yaml"
    folder.mkdir()
    config.write_text(configured(values, server, SECRET))
    targets = [f"results/test/volumes/real/{kind}.json" for kind in ("raw", "labels")]
    text = run("check", config)[1] + snakemake(folder, config, *targets)
    expect_no(SECRET, folder, text)
    source = open_source(f"http://me:{SECRET}@{server}/labels.zarr")
    made = open_input(folder / targets[1]).volume
    assert (made.read(made.roi) == source.read(source.roi)).all()
    before = read(folder / targets[0])
    assert before.options["address"] == f"http://***@{server}/raw.zarr"
    config.write_text(configured(values, server, OTHER))  # nothing is another result by another password
    assert "convert" not in {name for name in jobs(folder, config) if "volumes/real" in name}
    text = snakemake(folder, config, *targets, "--forcerun", "convert")
    assert read(folder / targets[0]).fingerprint == before.fingerprint
    config.write_text(configured(values, server, "wrong"))
    text += snakemake(folder, config, *targets, "--forcerun", "convert", check=False)
    assert "401" in text
    assert "kdseg convert --task" in text  # the command that failed is shown
    for secret in (SECRET, OTHER, "wrong"):
        expect_no(secret, folder, text)


@pytest.mark.slow
def test_commands_read_what_a_password_guards(server: str, tmp_path: Path) -> None:
    address = f"http://me:{SECRET}@{server}/raw.zarr"
    out = tmp_path / "out"
    segment = ("segment", address, out, "--model", "fib25-s", "--device", "cpu", "--voxel-size", 10, 10, 10)
    code, text = run(*segment)
    assert code == 0, text
    code, again = run(*segment)  # goes on
    assert code == 0, again
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert "***@" not in config["volumes"]["raw"]["raw"]  # but a variable
    config["volumes"]["raw"]["raw"] = address
    code, report = run("report", "--task", json.dumps({"config": config, "out": str(out / "report.html")}))
    assert code == 0, report
    expect_no(SECRET, tmp_path, text + again + report)
    labels = address.replace("raw.zarr", "labels.zarr")
    code, text = run("evaluate", labels, labels, tmp_path / "scores")
    assert code == 0, text
    expect_no(SECRET, tmp_path, text)


@pytest.mark.slow
def test_a_variable_stands_for_a_password(server: str, tmp_path: Path) -> None:
    options = {"raw": "http://me:${PASSWORD}@" + server + "/raw.zarr", "voxel_size": [10, 10, 10]}
    task = ("convert", "--kind", "raw", "--manifest", tmp_path / "raw.json", "--options", json.dumps(options))
    code, text = run(*task)
    assert (code, "['PASSWORD'], which are not set" in text) == (1, True), text
    code, text = run(*task, PASSWORD=SECRET)
    assert code == 0, text
    expect_no(SECRET, tmp_path, text)


@pytest.mark.parametrize(
    "address",
    [
        f"http://me:{SECRET}@127.0.0.1:9/x.zarr",
        f"https://{SECRET}@127.0.0.1:9/x.zarr",
        f"https://me:se/cret@{SECRET}@127.0.0.1:9/x.zarr",
        f"https://me:{SECRET}/more@127.0.0.1:9/x.zarr",
        f"http://127.0.0.1:9/x.zarr?X-Amz-Signature={SECRET}",
        f"http://127.0.0.1:9/x.h5?token={SECRET}",
        f"s3://me:{SECRET}@bucket/x.zarr",
        f"s3://bucket/x.zarr?token={SECRET}",
        f"HTTPS://me:{SECRET}@host/x.zarr",
        f"ftp://me:{SECRET}@host/x.zarr?y={SECRET}",
        f"precomputed://https://me:{SECRET}@host/x",
    ],
)
def test_no_command_shows_a_secret_of_an_address_that_it_cannot_read(tmp_path: Path, address: str) -> None:
    options = json.dumps({"raw": address, "labels": address})
    task = {"kind": "labels", "manifest": str(tmp_path / "labels.json"), "options": {"raw": address, "labels": address}}
    commands = [
        ("convert", "--kind", "raw", "--manifest", tmp_path / "raw.json", "--options", options),
        ("convert", "--task", json.dumps(task)),
        ("convert", "--task", json.dumps({**task, "options": {"raw": [address]}})),
        ("convert", "--task", json.dumps(task)[:-1]),
        ("init", address, address, "--out", tmp_path / "config.yaml"),
        ("segment", address, tmp_path / "out", "--model", "fib25-s"),
        ("distil", "--teacher", "fib25-s", "--raw", address, "--out", tmp_path / "distilled"),
        ("evaluate", address, address, tmp_path / "scores"),
        ("segment", "x.zarr", tmp_path / "out", "--model", "fib25-s", "--workers", address),
        ("same", address, address),
        ("adopt", address, "--offsets", "-1,0,0 0,-1,0 0,0,-1", "--manifest", tmp_path / "a.json"),
        ("check", address),
    ]
    for command in commands:
        done = invoke(*command)
        assert done.exit_code, command
        assert done.stderr.startswith(f"kdseg {command[0]}: "), done.stderr
        expect_no(SECRET, tmp_path, done.output)


def test_masks_leave_the_rest_of_an_address() -> None:
    shown = {
        "http://me:a@b@host:80/x.zarr": "http://***@host:80/x.zarr",
        "'https://me@host/a@b'": "'https://***@host/a@b'",
        "https://host:80/a@b and https://host/c": "https://host:80/a@b and https://host/c",
        "s3://bucket/x.zarr?a=b c": "s3://bucket/x.zarr?*** c",
        "data/x.h5:/a@b": "data/x.h5:/a@b",
        "x.h5:/what?": "x.h5:/what?",
        "/data/a@b/c.zarr": "/data/a@b/c.zarr",
    }
    assert {address: masked(address) for address in shown} == shown
    error = MissingError("nothing at http://me:a@host/x")
    assert (str(error), isinstance(error, KdsegError)) == ("nothing at http://***@host/x", True)


def test_the_log_is_masked(tmp_path: Path) -> None:
    code = (
        "import logging; from kdseg.cli import main\n"
        "main(['schema']); logging.getLogger('x').info('at %s', 'https://me:a@host/x')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "at https://***@host/x" in done.stderr


def test_a_message_that_is_cut_shows_no_part_of_a_secret(tmp_path: Path) -> None:
    begun = f"https://me:{SECRET}"
    text = " " * (120 - len(repr(begun)) + 1) + begun + "@host/x.zarr"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"device": text}))
    for command in (("check", tmp_path / "config.yaml"), ("convert", "--task", text)):
        done = invoke(*command)
        assert done.exit_code
        assert SECRET not in done.output


def test_what_an_address_cannot_have_is_said() -> None:
    with pytest.raises(UnreadableError, match=r"x\.zarr\?\*\*\* has a query"):
        open_source("http://127.0.0.1:9/x.zarr?token=a")
    with pytest.raises(ConfigError, match=r"s3://\*\*\*@bucket/x\.zarr: credentials of a bucket come from"):
        open_source("s3://me:a@bucket/x.zarr")
