"""A whole Sealstream in containers, for the integration tests of who uses it.

    from workers.testing import SealstreamStack

    with SealstreamStack(index="library") as stack:
        async with stack.client() as client:
            await client.ingest("library", "doc-1", content="the tide comes in at noon")

It needs Docker, the image (`docker build -f deploy/Dockerfile -t sealstream .`) and the extra
`testing`: `pip install 'sealstream[testing]'`. README.md beside this file has a complete example.
"""

from workers.testing.images import Images
from workers.testing.stack import ContainersError, SealstreamStack

__all__ = ["ContainersError", "Images", "SealstreamStack"]
