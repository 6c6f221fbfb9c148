"""What several tests of this folder need: an S3 server of their own with an empty bucket, and small models of real weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registries.scrub_models import BUCKET, Model, make_models
from s3_server import S3Server, s3_server


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """One server for all: what it was told, and its objects, end with the ``bucket`` of each test."""
    with s3_server() as running:
        running.client().create_bucket(Bucket=BUCKET)
        yield running


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> list[Model]:
    """Six different ones."""
    return make_models(tmp_path_factory.mktemp("slices"), minilm, 6)


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """boto3's client of an empty bucket; the settings of this process lead to it."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    client = s3.client()
    yield client
    for name in ("busy", "delay"):
        s3.tell(name, 0)
    for name in ("forbidden", "flood", "lie", "short", "silent", "forget"):
        s3.tell(name)
    while there := client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        for one in there:
            client.delete_object(Bucket=BUCKET, Key=one["Key"])
