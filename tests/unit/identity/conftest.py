"""What tests of every provider of identities ask for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from structlog.testing import capture_logs

from workers.errors import Reject
from workers.identity.providers import Providers


@pytest.fixture
def says_why() -> Callable[[Providers, str, str, str], Awaitable[None]]:
    """The log says why a token of a provider is refused, and nothing of what stands in it."""

    async def check(providers: Providers, shown: str, provider: str, reason: str) -> None:
        with capture_logs() as lines, pytest.raises(Reject) as refused:
            await providers.authenticate(shown)
        [line] = lines
        assert line == {
            "event": "identity token refused",
            "log_level": "warning",
            "provider": provider,
            "reason": reason.partition(" ")[0],
            "code": refused.value.code.value,
            "why": refused.value.message,
        }
        assert "alice" not in str(line)

    return check
