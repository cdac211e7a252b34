"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from cyclopts import Parameter, validators

from workers.cli.common import USAGE, fail

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Filter = Annotated[
    str | None,
    Parameter(
        name="--filter",
        help='Condition on metadata as JSON, such as {"lang": "en", "year": {"$gte": 1990}}.',
    ),
]
Include = Annotated[
    tuple[str, ...],
    Parameter(
        name="--include",
        help="What to show of each document: score, distance, metadata, content, associated_data,"
        " vector, groups; comma-separated, may be repeated.",
    ),
]
# As `workers.client` has it, which help texts need not load.
ANSWER_S: Final = 30.0
Timeout = Annotated[
    float,
    Parameter(
        name="--timeout",
        validator=validators.Number(gt=0),
        help="Seconds the workers may take to answer.",
    ),
]
Wait = Annotated[
    Literal["accepted", "searchable"],
    Parameter(
        name="--wait",
        help="Until documents are accepted (durable) or searchable (searches find them).",
    ),
]


def include_names(given: tuple[str, ...]) -> list[str]:
    """Return the names in `--include`.

    Raises:
        Exit: one of them is unknown.
    """
    from schemas.query import Include as Known

    names = [name.strip() for part in given for name in part.split(",") if name.strip()]
    for name in names:
        if name not in list(Known):
            fail(f"--include {name}: known are {', '.join(Known)}", USAGE)
    return list(dict.fromkeys(names))


def read_filter(text: str | None) -> dict[str, Any] | None:
    """Return the filter in `--filter`, checked.

    Raises:
        Exit: it is no JSON object, or no filter.
    """
    from schemas.codec import parse
    from schemas.errors import InvalidMessage
    from schemas.filter import parse_filter

    if text is None:
        return None
    try:
        found = parse(text.encode())
        parse_filter(found)
    except (InvalidMessage, UnicodeEncodeError) as error:
        what = error.message if isinstance(error, InvalidMessage) else "not valid text"
        at = f" (at {error.field})" if isinstance(error, InvalidMessage) and error.field else ""
        fail(f"--filter: {what}{at}", USAGE)
    return found


def read_vector(path: Path) -> npt.NDArray[np.float32]:
    """Return the one vector in a .npy or JSON file: float32 `(d,)`.

    Raises:
        Exit: the file cannot be read, or does not hold one vector of finite numbers.
    """
    import numpy as np
    import orjson

    from schemas.errors import InvalidMessage
    from schemas.values import Vector

    try:
        if path.suffix == ".npy":
            loaded = np.load(path, allow_pickle=False)
            row = loaded[0] if loaded.ndim == 2 and loaded.shape[0] == 1 else loaded
            return Vector.of(row).array
        return Vector.from_json(orjson.loads(path.read_bytes())).array
    except OSError as error:
        fail(f"--vector {path}: {error.strerror or 'cannot be read'}", USAGE)
    except InvalidMessage as error:
        fail(f"--vector {path}: {error.message}", USAGE)
    except (ValueError, TypeError):
        fail(f"--vector {path}: neither a .npy file nor JSON with one vector", USAGE)
