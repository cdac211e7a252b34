"""Which scopes an operation takes (`crypto.md`, "Who may what").

    upsert                          Encrypt, and Update where it overwrites (the index worker knows)
    delete                          Delete
    add_keywords, remove_keywords   Index
    upsert with keywords            Index besides

A scope that the caller has only from a group counts for documents of that group: `callers_groups`
names the groups that the document must be of, and the index worker, which alone knows its access
list, checks them. A new document is of the groups that it names; who may create only for a group
must name it.
"""

from __future__ import annotations

from schemas.auth import Scope
from schemas.errors import ErrorCode
from schemas.ingest import IngestOp, IngestRequest
from workers.errors import Reject
from workers.leases.lease import Decision

_SCOPES = {
    IngestOp.UPSERT: (Scope.ENCRYPT,),
    IngestOp.DELETE: (Scope.DELETE,),
    IngestOp.ADD_KEYWORDS: (Scope.INDEX,),
    IngestOp.REMOVE_KEYWORDS: (Scope.INDEX,),
}


# What a caller must be allowed with the document that is there already.
_EXISTING = {
    IngestOp.UPSERT: Scope.UPDATE,
    IngestOp.DELETE: Scope.DELETE,
    IngestOp.ADD_KEYWORDS: Scope.INDEX,
    IngestOp.REMOVE_KEYWORDS: Scope.INDEX,
}


def check_scopes(request: IngestRequest, decision: Decision) -> None:
    """Check what can be known without the document's state.

    Raises:
        Reject: FORBIDDEN.
    """
    decision.require(*needed_scopes(request))
    if request.op is IngestOp.UPSERT and Scope.ENCRYPT not in decision.scopes:
        creating = decision.groups_with(Scope.ENCRYPT)
        if set(creating).isdisjoint(map(str.lower, request.groups)):
            raise Reject(
                ErrorCode.FORBIDDEN,
                "the caller has the scope Encrypt for documents of some groups: name one of them",
                field="groups",
            )


def needed_scopes(request: IngestRequest) -> tuple[Scope, ...]:
    """Return the scopes that an operation takes, whatever document it is about."""
    keywords = (Scope.INDEX,) if request.keywords else ()
    return tuple(dict.fromkeys((*_SCOPES[request.op], *keywords)))


def callers_groups(request: IngestRequest, decision: Decision) -> tuple[str, ...]:
    """Return the groups of the caller of which an existing document must be one."""
    return decision.groups_with(_EXISTING[request.op])
