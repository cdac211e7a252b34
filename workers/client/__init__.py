"""Produce to Sealstream and search it from Python: `async with Client() as client: ...`."""

from workers.client.client import Client

__all__ = ["Client"]
