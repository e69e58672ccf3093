"""A bucket of a real server, moto's, over HTTP, which checks signatures; and a client of it that is not kdseg's."""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import pytest
import s3fs
from fsspec.implementations.http import HTTPFileSystem


class Bucket:
    """The bucket, seen by another client than kdseg's."""

    def __init__(self, **how):
        self.client = boto3.client("s3", region_name="us-east-1", **how)

    def files(self, prefix=""):
        """Return the bytes of all objects below a prefix or URL, by the rest of their names."""
        prefix = prefix.removeprefix("s3://bucket/")
        listed = self.client.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=prefix)
        keys = [one["Key"] for page in listed for one in page.get("Contents", [])]
        return {key.removeprefix(prefix): self.get(key) for key in keys}

    def get(self, key):
        return self.client.get_object(Bucket="bucket", Key=key)["Body"].read()

    def put(self, key, body):
        self.client.put_object(Bucket="bucket", Key=key.removeprefix("s3://bucket/"), Body=body)

    def delete(self, key):
        self.client.delete_object(Bucket="bucket", Key=key.removeprefix("s3://bucket/"))

    def upload(self, folder, prefix):
        for name, body in on_disk(folder).items():
            self.put(prefix + name, body)


def on_disk(folder):
    return {f"/{p.relative_to(folder).as_posix()}": p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def serving() -> Iterator[Bucket]:
    """Start a server with the bucket `bucket`, which the environment leads to until the body is done."""
    port = free_port()
    # the first four calls need no valid signature: they make who is allowed to do all that follows
    server = subprocess.Popen(
        [sys.executable, "-c", "import sys; from moto.server import main; main(sys.argv[1:])", "-p", str(port)],
        env={**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": "4"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            assert server.poll() is None
            time.sleep(0.05)
    how = {"endpoint_url": f"http://127.0.0.1:{port}", "aws_access_key_id": "x", "aws_secret_access_key": "y"}
    iam = boto3.client("iam", region_name="us-east-1", **how)
    iam.create_user(UserName="kdseg")
    allowed = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    iam.put_user_policy(UserName="kdseg", PolicyName="all", PolicyDocument=json.dumps(allowed))
    key = iam.create_access_key(UserName="kdseg")["AccessKey"]
    boto3.client("s3", region_name="us-east-1", **how).create_bucket(Bucket="bucket")
    how |= {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in how.items():
            patch.setenv(name.upper() if name.startswith("aws") else f"AWS_{name.upper()}", value)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        yield Bucket(**how)
        forget()
    server.kill()
    server.wait()


def forget():
    for kind in (s3fs.S3FileSystem, HTTPFileSystem):
        kind.clear_instance_cache()
    gc.collect()
