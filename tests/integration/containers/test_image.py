"""The image: small, nobody's, and without what it was built with."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from workers.testing import Images

pytestmark = pytest.mark.timeout(900)

IMAGE = Images().sealstream
# Above the base: it would be easy to ship a compiler, a package index's cache, or everybody's KMS.
MOST_BYTES = 260_000_000


def run(client: Any, *command: str, **options: Any) -> str:
    output: bytes = client.containers.run(
        IMAGE, list(command), remove=True, read_only=True, network_mode="none", **options
    )
    return output.decode()


def test_size(docker_client: Any, record_property: Any) -> None:
    image = docker_client.images.get(IMAGE)
    ours = sum(layer["Size"] for layer in image.history() if "COPY" in layer["CreatedBy"])
    sizes = {"image_mb": image.attrs["Size"] / 1e6, "ours_mb": ours / 1e6}
    for name, value in sizes.items():
        record_property(name, round(value))
    sys.stderr.write(f"\nimage: {sizes}\n")
    assert ours < MOST_BYTES


def test_it_is_nobodys(docker_client: Any) -> None:
    config = docker_client.images.get(IMAGE).attrs["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["sealstream"]
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"][0] == "CMD"


def test_commands_run_with_a_read_only_root(docker_client: Any) -> None:
    assert run(docker_client, "--version").strip() == "0.1.0"
    assert "kafka_bootstrap" in run(docker_client, "config", "check", "--json")
    # Whoever the platform says it is.
    assert run(docker_client, "--version", user="12345:0").strip() == "0.1.0"


def test_nothing_of_the_build_is_left(docker_client: Any) -> None:
    program = (
        "import importlib.util, os, shutil;"
        "print([n for n in ('pip', 'setuptools', 'hatchling') if importlib.util.find_spec(n)],"
        "[p for p in ('/etc/pip.conf', '/src', '/root/.cache') if os.path.exists(p)],"
        "[n for n in os.environ if n.startswith('PIP')])"
    )
    told = run(docker_client, "-I", "-c", program, entrypoint="/opt/sealstream/bin/python3")
    assert told.strip() == "[] [] []"


def test_its_history_tells_no_package_index(docker_client: Any) -> None:
    history = str(docker_client.images.get(IMAGE).history())
    assert "index-url" not in history
    assert "PROXY=" not in history.upper()


def test_modules_are_compiled(docker_client: Any) -> None:
    """Nothing can be written later: every start would compile again."""
    program = (
        "import importlib.util, workers.client.client as m, os;"
        "print(os.path.exists(importlib.util.cache_from_source(m.__file__)))"
    )
    told = run(docker_client, "-c", program, entrypoint="/opt/sealstream/bin/python3")
    assert told.strip() == "True"


def test_a_worker_without_servers_is_not_well(docker_client: Any) -> None:
    """It says why, ends by itself, and its health check does not say otherwise."""
    container = docker_client.containers.run(
        IMAGE, ["worker", "query"], detach=True, read_only=True, network_mode="none"
    )
    try:
        assert container.wait(timeout=600)["StatusCode"] == 3
        assert b"STORAGE_UNAVAILABLE" in container.logs() or b"UNAUTHENTICATED" in container.logs()
    finally:
        container.remove(force=True)
