"""Defences of users, groups, tokens, user keys and access lists: see `mutations.py`."""

from __future__ import annotations

from typing import Final

from mutations import Mutation

_ACCESS = "simulation/test_keys_access.py"
_CHAIN = "unit/chain/test_chain_access.py"
_IDENTITY = "simulation/test_keys_identity.py"
_MATRIX = "simulation/test_keys_matrix.py"
_OIDC = "unit/identity/test_oidc.py"
_PAGES = "unit/identity/test_pages.py"
_SAML = "unit/identity/test_saml.py"
_SAML_METADATA = "unit/identity/test_saml_metadata.py"


def _m(name: str, file: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(name, f"workers/{file}", old, new, tests)


IDENTITY: Final[tuple[Mutation, ...]] = (
    # --- records that are put back ---------------------------------------------------------------
    _m(
        "a page below its floor is taken",
        "identity/pages.py",
        "max(self._floors.version(self._floor(name)), self._seen.get(name, 0)):",
        "self._seen.get(name, 0):",
        _PAGES,
    ),
    _m(
        "the floor of a page is not published",
        "identity/pages.py",
        "            await self._floors.publish(floor, version)\n",
        "            pass\n",
        _PAGES,
    ),
    _m(
        "a page opens under the name of another",
        "identity/pages.py",
        "                object_id=lp(self._kind, name),\n            )\n            page =",
        '                object_id=b"",\n            )\n            page =',
        _PAGES,
    ),
    _m(
        "a change overwrites what another process changed",
        "identity/pages.py",
        "                if await self._write(name, read, entries):\n",
        "                if await self._write(name, read, entries) or True:\n",
        _PAGES,
    ),
    # --- requests that are copied ----------------------------------------------------------------
    _m(
        "a copied admin-request runs at another instance",
        "keys/once.py",
        "        if (begun.topic, begun.partition, begun.offset) != place:",
        "        if False:",
        _IDENTITY,
    ),
    # --- passwords and tokens --------------------------------------------------------------------
    _m(
        "a password is not checked",
        "identity/standalone.py",
        "        if not await self._passwords.check(password, user.password if user else None):",
        "        if user is None:",
        _IDENTITY,
    ),
    _m(
        "an unknown user costs no work",
        "identity/password.py",
        "        right = await self._run(lambda: is_password(password, known or _NOBODY))\n",
        "        if known is None:\n            return False\n"
        "        right = await self._run(lambda: is_password(password, known))\n",
        _IDENTITY,
    ),
    _m(
        "any number of passwords is checked at once",
        "identity/password.py",
        "        if self._waiting >= MAX_WAITING:",
        "        if False:",
        _IDENTITY,
    ),
    _m(
        "tokens outlive a change of the password",
        "identity/standalone.py",
        "        if body.epoch != user.epoch:",
        "        if False:",
        _IDENTITY,
    ),
    _m(
        "tokens outlive their user",
        "identity/standalone.py",
        "        user = await self._users.get(body.identity_id)\n",
        "        user = await self._users.get(body.identity_id) or UserRecord(\n"
        '            id="x", scopes=list(Scope), default_group="x"\n'
        "        )\n",
        _IDENTITY,
    ),
    _m(
        "tokens do not end",
        "identity/token.py",
        '    if now_s >= body.expires_s:\n        raise Reject(ErrorCode.EXPIRED, "the identity',
        '    if False:\n        raise Reject(ErrorCode.EXPIRED, "the identity',
        _IDENTITY,
    ),
    _m(
        "application tokens do not end",
        "identity/token.py",
        '    if now_s >= body.expires_s:\n        raise Reject(ErrorCode.EXPIRED, "the token',
        '    if False:\n        raise Reject(ErrorCode.EXPIRED, "the token',
        _IDENTITY,
    ),
    # --- who may ---------------------------------------------------------------------------------
    _m(
        "anybody administers users",
        "keys/policy.py",
        '    if principal.kind != "identity" or administrators not in principal.groups:',
        "    if False:",
        _MATRIX,
    ),
    _m(
        "a giver gives scopes that it has not",
        "keys/admin_identity.py",
        "        if scope not in principal.scopes:",
        "        if False:",
        _IDENTITY,
    ),
    _m(
        "strangers change a group",
        "keys/admin_identity.py",
        "        principal, group = asked.principal, arguments.group_id.lower()\n",
        "        principal, group = asked.principal, arguments.group_id.lower()\n"
        "        return arguments\n",
        _IDENTITY,
    ),
    _m(
        "members without the scope change a group",
        "keys/admin_identity.py",
        "        if group not in principal.groups_with(Scope.MODIFY_ACCESS_GROUPS):\n",
        "        if False:\n",
        _IDENTITY,
    ),
    _m(
        "a user key administers its index",
        "keys/policy.py",
        '    if principal.kind == "user-key":',
        "    if False:",
        _IDENTITY,
    ),
    _m(
        "a user key does more than it may",
        "keys/policy.py",
        "    if needed not in principal.permissions:",
        "    if False:",
        _IDENTITY,
    ),
    _m(
        "any key is a user's key",
        "keys/user_keys.py",
        "        if known is None or not hmac.compare_digest(shown, known.sha256):",
        "        if known is None:",
        _IDENTITY,
    ),
    _m(
        "a scope of a group counts for all documents",
        "keys/principal.py",
        "        return tuple(g for g in self.groups if scope in self.group_scopes.get(g, ()))",
        "        return self.groups",
        _ACCESS,
    ),
    _m(
        "a credential does not cut the scopes of groups",
        "keys/callers.py",
        "{g: cut(s, asked) for g, s in identity.group_scopes.items()}",
        "dict(identity.group_scopes)",
        _IDENTITY,
    ),
    _m(
        "an application token needs no scope",
        "keys/admin_identity.py",
        "        asked.principal.require(Scope.GET_TOKEN_CONTENTS)\n",
        "",
        _MATRIX,
    ),
    _m(
        "the ingest worker does not look at scopes",
        "ingest/authorize.py",
        "    decision.require(*needed_scopes(request))\n",
        "",
        _MATRIX,
    ),
    _m(
        "the query worker does not look at scopes",
        "query/request.py",
        "        decision.require(*needed)\n",
        "        pass\n",
        _MATRIX,
    ),
    _m(
        "refusals of ingest workers are in no audit",
        "ingest/decide.py",
        "            await self._report(index, more)\n",
        "",
        _MATRIX,
    ),
    _m(
        "refusals of index workers are in no audit",
        "index/telling.py",
        "        self._services.notes.put(self._place.index, ErrorCode.FORBIDDEN, forbidden)\n",
        "        del forbidden\n",
        _MATRIX,
    ),
    # --- access lists ----------------------------------------------------------------------------
    _m(
        "strangers see a list",
        "keys/access.py",
        "        principal.require_member(Scope.GET_ACCESS_GROUPS, groups)\n",
        "",
        _ACCESS,
    ),
    _m(
        "strangers change a list",
        "keys/access.py",
        "            principal.require_member(Scope.MODIFY_ACCESS_GROUPS, groups)\n",
        "",
        _ACCESS,
    ),
    _m(
        "the record that is shown decides, not the changed list",
        "keys/answers.py",
        "            listed = found.groups if entry is None else entry.groups\n",
        "            listed = found.groups\n",
        _ACCESS,
    ),
    _m(
        "an ingest worker changes lists",
        "index/receive.py",
        "        if envelope.worker == KEY_SERVICE:\n",
        "        if batch.ops and batch.ops[0].access_version:\n",
        "simulation/test_pipeline_access.py",
    ),
    _m(
        "the key service may do more than change lists",
        "index/build.py",
        "        if op.kind is not OpKind.ACCESS or not op.if_version or not op.access_version:\n",
        "        if False:\n",
        "simulation/test_pipeline_access.py",
    ),
    _m(
        "an older list replaces a newer one",
        "chain/access.py",
        "known.version < listed.version:",
        "True:",
        _CHAIN,
    ),
    _m(
        "a list outlives the document it is of",
        "chain/successor.py",
        "    access = without(access, {op.object_id for op in accepted if op.kind in FINAL})\n",
        "    del accepted\n",
        _CHAIN,
    ),
    _m(
        "changed lists do not decide who overwrites",
        "chain/resolve.py",
        "                known_row.groups = access[name].groups\n",
        "                pass\n",
        _CHAIN,
    ),
    _m(
        "changed lists do not decide what is found",
        "search/columns.py",
        "                found[row] = not groups.isdisjoint(changed)\n",
        "                pass\n",
        _ACCESS,
    ),
    _m(
        "an exchanged table of lists is taken",
        "chain/access.py",
        "    if hashlib.sha256(blob).digest() != ref.sha256:",
        "    if False:",
        _CHAIN,
    ),
    # --- OpenID Connect --------------------------------------------------------------------------
    _m(
        "a token chooses its algorithm",
        "identity/oidc.py",
        "        if algorithm not in self._config.algorithms or not isinstance(kid, str):",
        "        if not isinstance(kid, str):",
        _OIDC,
    ),
    _m(
        "tokens of other issuers count",
        "identity/oidc.py",
        '        if claims.get("iss") != self._config.issuer:',
        "        if False:",
        _OIDC,
    ),
    _m(
        "tokens for others count",
        "identity/oidc.py",
        "(audience if isinstance(audience, list) else [audience]):",
        "[self._config.audience]:",
        _OIDC,
    ),
    _m(
        "tokens that have ended count",
        "identity/oidc.py",
        '        if now >= _time(claims, "exp", 0.0):',
        "        if False:",
        _OIDC,
    ),
    _m(
        "logout tokens count",
        "identity/oidc.py",
        ' not in _TYPES or "crit" in header:',
        ' == 1 or "crit" in header:',
        _OIDC,
    ),
    _m(
        "keys of another issuer's document are taken",
        "identity/jwks.py",
        '        if document.get("issuer") != self._issuer:',
        "        if False:",
        _OIDC,
    ),
    _m(
        "keys are read over clear HTTP",
        "identity/jwks.py",
        "        if not isinstance(uri, str) or not is_safe_url(uri):",
        "        if not isinstance(uri, str):",
        _OIDC,
    ),
    _m(
        "short RSA keys count",
        "identity/jwks.py",
        "    if isinstance(key, RSAKey) and key.public_key.key_size < MIN_RSA_BITS:",
        "    if False:",
        _OIDC,
    ),
    # --- SAML ------------------------------------------------------------------------------------
    _m(
        "saml: the signature is not verified",
        "identity/saml_signature.py",
        "            context.check_signature(item, class_name(item), document.text)\n",
        "            class_name(item)\n",
        _SAML,
    ),
    _m(
        "saml: a signature over something else counts",
        "identity/saml_document.py",
        """    if _only(signature, "Reference").get("URI") != f"#{assertion.get('ID', '')}":""",
        "    if False:",
        _SAML,
    ),
    _m(
        "saml: an assertion chooses its algorithms",
        "identity/saml_document.py",
        "    if method not in SIGNATURES or digest not in DIGESTS:",
        "    if False:",
        _SAML,
    ),
    _m(
        "saml: comments cut names",
        "identity/saml_document.py",
        '        raise refused(Why.MALFORMED, "has comments")',
        "        return super().comment(text)",
        _SAML,
    ),
    _m(
        "saml: assertions for others count",
        "identity/saml_claims.py",
        "        if audience not in map(",
        "        if False and audience not in map(",
        _SAML,
    ),
    _m(
        "saml: assertions for another recipient count",
        "identity/saml_claims.py",
        '            and data.get("Recipient") == recipient\n',
        "",
        _SAML,
    ),
    _m(
        "saml: a remembered assertion does not end",
        "identity/saml_claims.py",
        "        if now_s >= self.ends_s:",
        "        if False:",
        _SAML,
    ),
    _m(
        "saml: an assertion outlives the key that signed it",
        "identity/saml.py",
        "            if known is None or known.signers is not signers:",
        "            if known is None:",
        _SAML,
    ),
    _m(
        "saml: people of SAML and OpenID Connect are the same",
        "identity/open.py",
        '            f"saml:{issuer}",',
        "            issuer,",
        _SAML,
    ),
    _m(
        "saml: short RSA keys count",
        "identity/saml_metadata.py",
        "        return key.key_size >= MIN_RSA_BITS",
        "        return True",
        _SAML_METADATA,
    ),
)
