"""Client libraries stay silent below WARNING, and are cut off at the deadline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest

from workers.kms.deadline import deadline
from workers.kms.errors import KmsUnavailable
from workers.kms.quiet import quiet


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.DEBUG)
    yield root
    root.setLevel(level)


def test_a_library_is_silent_whatever_the_root_says(root: logging.Logger) -> None:
    library, below = logging.getLogger("kmslib"), logging.getLogger("kmslib.wire")
    assert below.isEnabledFor(logging.DEBUG)
    quiet("kmslib")
    for logger in (library, below, logging.getLogger("kmslib.made.later")):
        assert not logger.isEnabledFor(logging.INFO)
        assert logger.isEnabledFor(logging.WARNING)


def test_a_level_of_its_own_does_not_help_it(root: logging.Logger) -> None:
    """As `GOOGLE_SDK_PYTHON_LOGGING_SCOPE` sets one."""
    chatty = logging.getLogger("kmschat.client")
    chatty.setLevel(logging.DEBUG)
    beside = logging.getLogger("kmschatter")
    beside.setLevel(logging.DEBUG)
    quiet("kmschat")
    assert not chatty.isEnabledFor(logging.INFO)
    assert beside.isEnabledFor(logging.DEBUG)


def test_what_is_quieter_already_stays_so() -> None:
    logging.getLogger("kmsmute").setLevel(logging.CRITICAL)
    quiet("kmsmute")
    assert logging.getLogger("kmsmute").level == logging.CRITICAL


async def test_a_block_ends_at_its_deadline() -> None:
    with pytest.raises(KmsUnavailable, match=r"within 0\.01 s") as refused:
        async with deadline(0.01):
            await asyncio.Event().wait()
    assert refused.value.__suppress_context__


async def test_a_timeout_inside_counts_as_the_deadline() -> None:
    with pytest.raises(KmsUnavailable):
        async with deadline(60):
            raise TimeoutError("words of a library")


async def test_being_cancelled_is_not_a_deadline() -> None:
    async def waits() -> None:
        async with deadline(60):
            await asyncio.Event().wait()

    task = asyncio.ensure_future(waits())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
