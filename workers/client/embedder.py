"""Turn short texts into embeddings, for the demo and for `sealstream ingest --embed`.

Sealstream does not care where embeddings come from: producers send vectors. This module is for
those who have none yet. The model comes inside the PyPI package `wordllama` (MIT): static token
embeddings of 256 dimensions, about 16,000 short texts a second on one core, nothing is downloaded
at run time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class Embedder(Protocol):
    """What the demo and the command line need of a model."""

    @property
    def dimension(self) -> int:
        """Return the number of components of each embedding."""
        ...

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return float32 `(len(texts), dimension)`, each row L2-normalised."""
        ...


@contextmanager
def _root_logger_untouched() -> Iterator[None]:
    """Undo what `wordllama` does to the root logger when it is imported."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


class WordLlamaEmbedder:
    """The packaged `wordllama` model (extra `embed`)."""

    def __init__(self) -> None:
        """Load the model from the installed package.

        Raises:
            ImportError: the extra `embed` is not installed.
        """
        with _root_logger_untouched():
            import wordllama

        # wordllama looks for the bundled tokenizer in a folder `tokenizer`, but ships it in
        # `tokenizers`; naming the package folder as the cache folder finds both files without a
        # download.
        package = Path(str(wordllama.__file__)).parent
        self._model: Any = wordllama.WordLlama.load(cache_dir=package, disable_download=True)

    @property
    def dimension(self) -> int:
        """Return 256."""
        return int(self._model.embedding.shape[1])

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return float32 `(len(texts), 256)`, L2-normalised; an empty text gives a zero row."""
        if not texts:
            return np.empty((0, self.dimension), dtype=np.float32)
        return np.nan_to_num(
            np.asarray(self._model.embed(list(texts), norm=True), dtype=np.float32)
        )
