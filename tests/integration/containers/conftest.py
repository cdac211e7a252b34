"""A Docker daemon and the images, or a reason why not: with CI set, that is a failure."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import docker
import pytest
from docker.errors import DockerException, ImageNotFound

from workers.testing import Images

TESTS = Path(__file__).parents[2]
# Test folders are no packages (importlib mode): make the kits importable.
for folder in ("integration", "integration/containers", "chaos"):
    sys.path.insert(0, str(TESTS / folder))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.containers)
            # Sockets of the HTTP pools of Docker's client, closed by its garbage collection.
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))
            item.add_marker(
                pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
            )


def missing(what: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"{what} (CI must have it: .ci/containers)", pytrace=False)
    pytest.skip(what)


def _connect() -> Any:
    """Return a client of the daemon that the environment names; None if there is none."""
    try:
        return docker.from_env(timeout=300)
    except DockerException:
        pass
    # It leaves the socket that it could not connect, to be found as an error later.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    return None


@pytest.fixture(scope="session")
def docker_client() -> Iterator[Any]:
    """The daemon, with all images there."""
    client = _connect()
    if client is None:
        missing("no Docker daemon answers")
    for name in asdict(Images()).values():
        try:
            client.images.get(name)
        except ImageNotFound:
            missing(f"the image {name} is not there")
    yield client
    client.close()
