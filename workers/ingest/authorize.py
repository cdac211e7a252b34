"""Which scopes an operation takes (`crypto.md`, "Who may what").

    upsert                          Encrypt, and Update where it overwrites (the index worker knows)
    delete                          Delete
    add_keywords, remove_keywords   Index
    upsert with keywords            Index besides

The groups that may overwrite or delete a document are checked by the index worker, which alone
knows the document's access list.
"""

from __future__ import annotations

from schemas.auth import Scope
from schemas.ingest import IngestOp, IngestRequest
from workers.leases.lease import Decision

_SCOPES = {
    IngestOp.UPSERT: (Scope.ENCRYPT,),
    IngestOp.DELETE: (Scope.DELETE,),
    IngestOp.ADD_KEYWORDS: (Scope.INDEX,),
    IngestOp.REMOVE_KEYWORDS: (Scope.INDEX,),
}


def check_scopes(request: IngestRequest, decision: Decision) -> None:
    """Check what can be known without the document's state.

    Raises:
        Reject: FORBIDDEN.
    """
    decision.require(*_SCOPES[request.op])
    if request.keywords:
        decision.require(Scope.INDEX)


def may_overwrite(decision: Decision) -> bool:
    """Tell whether an upsert of this caller may replace an existing document."""
    return Scope.UPDATE in decision.scopes
