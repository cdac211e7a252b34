"""Keys, derivations and formats, all from standard parts; no I/O. Start with README.md."""
