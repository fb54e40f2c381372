"""`restore` from remotes that people use: an S3 bucket (moto's server) and a read-only web server."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from provenance_toy import dvc, outputs, planned, restored


@contextmanager
def served(command: list[str], folder: Path) -> Iterator[str]:
    """Start a server that prints its port; yield its address."""
    with subprocess.Popen(
        [sys.executable, "-u", *command], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout is not None
            found = next(filter(None, (re.search(r"port (\d+)", line) for line in process.stdout)))
            yield f"http://127.0.0.1:{found[1]}"
        finally:
            process.kill()


BUCKET = """
import boto3, time
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
server.start()
host, port = server.get_host_and_port()
boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1").create_bucket(Bucket="claims")
print("port", port)
time.sleep(3600)
"""


def check(fresh: Path, recorded_project: Path) -> None:
    assert set(restored(fresh).values()) == {"restored"}
    assert outputs(fresh) == outputs(recorded_project)
    assert planned(fresh) == set()


@pytest.mark.long
def test_a_bucket(recorded_project: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    settings = fresh.parent / "settings"  # in place of the user's own
    settings.touch()
    monkeypatch.setenv("AWS_CONFIG_FILE", str(settings))
    with served(["-c", BUCKET], fresh) as address:
        for root in (recorded_project, fresh):
            dvc(root, "remote", "add", "--default", "--local", "bucket", "s3://claims/polygrain")
            dvc(root, "remote", "modify", "--local", "bucket", "endpointurl", address)
        dvc(recorded_project, "push")
        check(fresh, recorded_project)


def test_a_web_server(recorded_project: Path, fresh: Path, store: Path) -> None:
    with served(["-m", "http.server", "--bind", "127.0.0.1", "0"], store) as address:
        dvc(fresh, "remote", "add", "--default", "--local", "site", address)
        check(fresh, recorded_project)
