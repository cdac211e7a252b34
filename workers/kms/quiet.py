"""Keep the log records of client libraries at WARNING and above.

At DEBUG they write whole requests and answers: keys in clear, tokens, signatures.
"""

from __future__ import annotations

import logging


def quiet(*names: str) -> None:
    """Raise these loggers, and those below them that chose a lower level, to WARNING."""
    known = logging.Logger.manager.loggerDict
    for name in names:
        below = [other for other in known if other.startswith(f"{name}.")]
        for logger in map(logging.getLogger, (name, *below)):
            if logger.name == name or logger.level:
                logger.setLevel(max(logger.level, logging.WARNING))
