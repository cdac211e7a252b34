"""Defences, each with the substitution that removes it and the tests that must notice.

A substitution applies to text that stands in the file exactly once. `tests` are files or node ids
under `tests/`; at least one of them must fail once the defence is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Mutation:
    """One defence that is removed."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


_ATTACKS = "simulation/test_keys_attacks.py"
_AUDIT = "simulation/test_keys_audit.py"
_ENROL = "simulation/test_keys_enrolment.py"
_FAILURES = "simulation/test_keys_failures.py"
_GRANTS = "simulation/test_keys_grants.py"
_MEMORY = "simulation/test_keys_memory.py"
_POSSESSION = "simulation/test_keys_possession.py"
_ROTATION = "simulation/test_keys_rotation.py"
_STOLEN = "simulation/test_keys_stolen.py"
_WORKERS = "simulation/test_keys_workers.py"
_FAULTS = "simulation/test_pipeline_faults.py"
_ENVELOPE = "unit/objects/test_envelope.py"


def _m(name: str, file: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(name, f"workers/{file}", old, new, tests)


MUTATIONS: Final[tuple[Mutation, ...]] = (
    # --- possession of credentials ---------------------------------------------------------------
    _m(
        "the key service decides without a proof",
        "keys/answers.py",
        "            verify_proof(principal.cnf, caller.proof, topic)\n",
        "            pass\n",
        _POSSESSION,
    ),
    _m(
        "a proof for one role serves another",
        "keys/answers.py",
        '_INPUTS: Final[dict[Role, str]] = {"ingest": PLAINTEXT_INGEST, "query": QUERY_REQUEST}',
        '_INPUTS: Final[dict[Role, str]] = {"ingest": PLAINTEXT_INGEST, "query": PLAINTEXT_INGEST}',
        _POSSESSION,
    ),
    _m(
        "a proof is not bound to the message",
        "leases/credential.py",
        "        verify(VerifyKey(cnf), proof.signature, Info.MESSAGE, *parts)\n",
        "        del parts\n",
        _POSSESSION,
        _GRANTS,
    ),
    _m(
        "a worker takes a message that its credential's owner did not sign",
        "leases/holder.py",
        "            verify_message(decision.cnf, signature, *signed)\n",
        "            pass\n",
        f"{_GRANTS}::test_a_copied_credential_is_useless",
    ),
    _m(
        "a credential lives as long as it likes",
        "keys/callers.py",
        "        if left_s > limit_s + CLOCK_SKEW_S:\n",
        "        if False:\n",
        f"{_GRANTS}::test_credentials_are_bound_to_index_time_and_life",
    ),
    _m(
        "an expired credential counts",
        "keys/callers.py",
        "        if left_s <= 0:\n",
        "        if False:\n",
        f"{_GRANTS}::test_credentials_are_bound_to_index_time_and_life",
    ),
    # --- requests and grants ---------------------------------------------------------------------
    _m(
        "a copied request is answered",
        "keys/answers.py",
        "        if not self._replays.admit(body.request_id, record, expires_s):\n",
        "        if False:\n",
        f"{_ATTACKS}::test_copies_are_refused_and_redeliveries_are_not",
    ),
    _m(
        "an expired request is answered",
        "leases/request.py",
        "    if now_ms >= body.expires_ms:\n",
        "    if False:\n",
        _ATTACKS,
    ),
    _m(
        "a request is not signed",
        "leases/request.py",
        "        certificate.verify_key.verify(signature, Info.KEY_REQUEST, raw)\n",
        "        pass\n",
        f"{_ATTACKS}::test_who_cannot_be_verified_is_not_answered",
    ),
    _m(
        "a request names another worker",
        "leases/request.py",
        "    if not body.worker_id == certificate.worker_id == worker_id:\n",
        "    if False:\n",
        f"{_ATTACKS}::test_who_cannot_be_verified_is_not_answered",
    ),
    _m(
        "anybody certifies",
        "leases/certificate.py",
        "        issuer.verify(signature, Info.CERTIFICATE, raw)\n",
        "        pass\n",
        f"{_ATTACKS}::test_who_cannot_be_verified_is_not_answered",
    ),
    _m(
        "certificates do not end",
        "leases/certificate.py",
        "    if now >= body.expires_s:\n",
        "    if False:\n",
        f"{_ATTACKS}::test_time_limits_of_requests_and_certificates",
    ),
    _m(
        "a certificate is for every index",
        "keys/policy.py",
        "    if not certificate.covers(index):\n",
        "    if False:\n",
        f"{_ATTACKS}::test_foreign_indexes_are_forbidden_whether_they_exist_or_not",
    ),
    _m(
        "a role gets the keys of others",
        "keys/policy.py",
        "or not allowed.issuperset(purposes):",
        "or False:",
        f"{_ATTACKS}::test_no_role_gets_keys_of_another",
    ),
    _m(
        "working keys need no caller",
        "keys/policy.py",
        "    allowed = ROLE_PURPOSES[role] if with_caller else INTAKE_PURPOSES[role]\n",
        "    allowed = ROLE_PURPOSES[role]\n",
        f"{_ATTACKS}::test_working_keys_need_a_caller",
    ),
    _m(
        "an ingest worker gets private halves",
        "keys/policy.py",
        '        if role == "ingest":\n            public',
        "        if False:\n            public",
        f"{_STOLEN}::test_an_ingest_workers_keys_open_nothing_that_is_stored",
    ),
    _m(
        "a weaker suite is accepted",
        "keys/answers.py",
        "HpkePublicKey.decode(body.ephemeral, floor=self._terms.suite_floor)",
        "HpkePublicKey.decode(body.ephemeral)",
        f"{_ATTACKS}::test_a_key_below_the_floor_is_refused",
    ),
    _m(
        "a grant is not signed",
        "leases/grant.py",
        "        service.verify(signature, Info.KEY_GRANT, header.encode(), sealed)\n",
        "        pass\n",
        f"{_ATTACKS}::test_a_changed_grant_does_not_verify",
        f"{_ATTACKS}::test_a_holder_ignores_replayed_and_forged_grants",
    ),
    _m(
        "a grant answers another request",
        "leases/grant.py",
        "    if header.request_id != body.request_id or header.request_sha256 != pending.sha256:\n",
        "    if False:\n",
        f"{_ATTACKS}::test_a_grant_is_taken_only_for_what_was_asked",
    ),
    _m(
        "a grant is for another worker",
        "leases/grant.py",
        "    if header.to != body.worker_id:\n",
        "    if False:\n",
        f"{_ATTACKS}::test_a_grant_is_taken_only_for_what_was_asked",
    ),
    _m(
        "a grant carries other purposes",
        "leases/grant.py",
        "    if header.purposes != tuple(body.purposes):\n",
        "    if False:\n",
        f"{_ATTACKS}::test_a_grant_is_taken_only_for_what_was_asked",
    ),
    _m(
        "a grant is for another generation",
        "leases/grant.py",
        "or body.generation not in (0, header.generation):",
        "or False:",
        f"{_ATTACKS}::test_a_grant_is_taken_only_for_what_was_asked",
    ),
    _m(
        "a generation that is not the current one is granted",
        "keys/answers.py",
        "        if body.generation not in (0, granted.generation):\n",
        "        if False:\n",
        f"{_ATTACKS}::test_asking_for_another_generation_is_refused",
    ),
    _m(
        "an expired grant is taken",
        "leases/grant.py",
        "    if now_ms >= header.expires_ms:\n",
        "    if False:\n",
        f"{_ATTACKS}::test_a_grant_is_taken_only_for_what_was_asked",
    ),
    _m(
        "object keys for everybody",
        "keys/policy.py",
        "    return not {group.lower() for group in groups}.isdisjoint(record_groups)\n",
        "    return True\n",
        f"{_GRANTS}::test_object_keys_are_for_the_groups_of_the_record",
    ),
    _m(
        "a grant without its audit record",
        "keys/audit.py",
        "            self._break(instance)\n            raise unavailable() from error\n"
        "        metrics.AUDIT_RECORDS.inc()\n",
        "            return\n        metrics.AUDIT_RECORDS.inc()\n",
        f"{_FAILURES}::test_no_grant_without_its_audit_record",
    ),
    # --- what is left in memory ------------------------------------------------------------------
    _m(
        "a worker leaves an opened grant in memory",
        "leases/grant.py",
        "        finally:\n            overwrite(plaintext)\n",
        "        finally:\n            pass\n",
        _MEMORY,
    ),
    _m(
        "a worker leaves the keys of a grant in memory",
        "leases/holder.py",
        "        finally:\n            payload.wipe()\n",
        "        finally:\n            pass\n",
        _MEMORY,
    ),
    _m(
        "a closed index stays until Python looks for cycles",
        "query/indexes.py",
        "lease.uid, shard, self._leased.segment_key, verifier)",
        "lease.uid, shard, lambda g: self._leased.segment_key(g), verifier)",
        "unit/query/test_open_indexes.py",
    ),
    # --- directory, revocations, enrolment -------------------------------------------------------
    _m(
        "any key service is the pinned one",
        "leases/directory.py",
        "        if not hmac.compare_digest(fingerprint(sign_pub), self._pinned):\n",
        "        if False:\n",
        f"{_ATTACKS}::test_the_directory_believes_only_the_pinned_key_service",
    ),
    _m(
        "the realm need not be the pinned one",
        "keys/worker.py",
        "    if pinned is not None and pinned != realm.fingerprint:\n",
        "    if False:\n",
        f"{_FAILURES}::test_the_realm_is_the_pinned_one",
    ),
    _m(
        "directory entries are not signed",
        "leases/directory.py",
        "        sign_pub.verify(signature, Info.DIRECTORY, key, _canonical(members))\n",
        "        pass\n",
        f"{_ATTACKS}::test_the_directory_believes_only_the_pinned_key_service",
    ),
    _m(
        "an older directory entry replaces a newer one",
        "leases/directory.py",
        "        if version < self._floors.get(key, 0):\n",
        "        if False:\n",
        f"{_ATTACKS}::test_the_directory_believes_only_the_pinned_key_service",
    ),
    _m(
        "anybody revokes",
        "leases/revocation.py",
        "        service.verify(signature, Info.REVOCATION, key, _canonical(members))\n",
        "",
        f"{_WORKERS}::test_only_the_pinned_key_service_revokes",
    ),
    _m(
        "an older revocation replaces a newer one",
        "leases/revocation.py",
        "revocation.policy_epoch < before.policy_epoch",
        "False",
        f"{_WORKERS}::test_only_the_pinned_key_service_revokes",
    ),
    _m(
        "a revoked worker is granted keys",
        "keys/answers.py",
        "        if self._indexes.directory.revocations.covers(opened.certificate):\n",
        "        if False:\n",
        f"{_WORKERS}::test_a_revoked_worker_gets_and_keeps_nothing",
    ),
    _m(
        "a revoked worker keeps its keys",
        "leases/holder.py",
        "        if self._revoked():\n            self._wipe_all()\n        self._renew",
        "        self._renew",
        f"{_WORKERS}::test_a_revoked_worker_gets_and_keeps_nothing",
    ),
    _m(
        "a revoked caller is decided about",
        "keys/answers.py",
        "        self._callers.check_revoked(principal)\n",
        "",
        f"{_WORKERS}::test_a_revoked_callers_decisions_end_at_once",
    ),
    _m(
        "records of a revoked worker count",
        "leases/signed.py",
        "    if revocations.covers(certificate):\n",
        "    if False:\n",
        f"{_WORKERS}::test_what_a_revoked_worker_wrote_is_refused",
    ),
    _m(
        "heads of a revoked worker count",
        "leases/heads.py",
        "        if directory.revocations.covers(writer, written_ms - HEAD_GRACE_MS):\n",
        "        if False:\n",
        f"{_WORKERS}::test_what_a_revoked_worker_wrote_is_refused",
    ),
    _m(
        "updates of a revoked worker count",
        "objects/envelope.py",
        "        if revocations.covers(certificate, int(written_s * 1000)):\n",
        "        if False:\n",
        f"{_ENVELOPE}::test_an_update_of_a_worker_that_was_revoked_before_is_refused",
    ),
    _m(
        "a bucket without the newest revocations is good enough",
        "keys/revocations.py",
        "        if len(self._log) < floor:\n",
        "        if False:\n",
        f"{_ENROL}::test_revocations_survive_a_restart_and_a_bucket_put_back_is_refused",
    ),
    _m(
        "a worker is certified for somebody else's key",
        "keys/enrolment.py",
        "        VerifyKey(sign_pub).verify(signature, Info.ENROLMENT, "
        "*terms_parts(terms, sign_pub))\n",
        "        VerifyKey(sign_pub)\n",
        f"{_ENROL}::test_nobody_is_certified_for_a_key_that_is_not_theirs",
    ),
    _m(
        "an invitation is good for many",
        "keys/enrolment.py",
        "        return found == sign_pub\n",
        "        return True\n",
        f"{_ENROL}::test_an_invitation_is_good_once_and_for_its_terms",
    ),
    _m(
        "an invitation does not end",
        "keys/enrolment.py",
        "        if invitation.expires_s <= self._clock():\n",
        "        if False:\n",
        f"{_ENROL}::test_invitations_end_and_are_of_one_realm",
    ),
    _m(
        "everybody enrols and revokes",
        "keys/admin_keys.py",
        "        check_administrator(asked.principal, self._administrators)\n",
        "        del asked\n",
        f"{_ENROL}::test_only_administrators_enrol_invite_and_revoke",
    ),
    _m(
        "a certificate for another worker is taken",
        "leases/certificate.py",
        "        if (certificate.worker_id, certificate.role, certificate.sign_pub) != same:\n",
        "        if False:\n",
        f"{_WORKERS}::test_a_certificate_for_another_worker_is_not_taken",
    ),
    _m(
        "requests pile up while the key service is away",
        "leases/asking.py",
        "        self._check_silence()\n        ephemeral",
        "        ephemeral",
        f"{_WORKERS}::test_an_outage_piles_up_no_requests_and_ends_by_itself",
    ),
    # --- stored keys and rotation ----------------------------------------------------------------
    _m(
        "an envelope is not signed",
        "keys/envelope.py",
        "        signer.verify(signature, Info.ENVELOPE, _canonical(members))\n",
        "        del signature\n",
        f"{_STOLEN}::test_a_kek_of_ones_own_is_not_taken",
        "unit/keys/test_kek_envelope.py",
    ),
    _m(
        "an envelope of another index is taken",
        "keys/envelope.py",
        "    if envelope.index_uid != index_uid.hex() or envelope.epoch != epoch:\n",
        "    if False:\n",
        f"{_FAILURES}::test_stored_keys_exchanged_between_indexes_are_damage",
        "unit/keys/test_kek_envelope.py",
    ),
    _m(
        "an older wrapping is taken",
        "keys/envelope.py",
        "    if envelope.version < least:\n",
        "    if False:\n",
        f"{_ROTATION}::test_the_kms_wraps_anew_and_an_old_envelope_is_refused",
    ),
    _m(
        "whatever the KMS returns is stored",
        "keys/hierarchy.py",
        "            if not after.is_of(kek):\n",
        "            if False:\n",
        f"{_ROTATION}::test_a_kms_that_returns_another_key_changes_nothing",
    ),
    _m(
        "what an old KEK wraps is kept",
        "keys/stored_keys.py",
        "            if epoch < record.epoch:\n",
        "            if False:\n",
        f"{_ROTATION}::test_a_new_kek_reseals_the_keys_and_destroys_what_the_old_one_wrapped",
    ),
    _m(
        "a user key holds keys that its index's callers gave up",
        "keys/user_keys.py",
        "if one in {epoch, *keep}",
        "if True",
        f"{_ROTATION}::test_user_keys_go_on_when_callers_change_the_key_that_they_keep",
    ),
    _m(
        "a user key made while the key changes holds the old one",
        "keys/admin_user_keys.py",
        "            await self._check_epoch(record, arguments.user_id)\n",
        "",
        f"{_ROTATION}::test_a_user_key_made_while_the_key_changes_works_or_is_refused",
    ),
    _m(
        "a KEK for a user key is not bound to its epoch",
        "keys/user_keys.py",
        "    return info(Info.USER_KEY, uid, user_id, epoch)\n",
        "    return info(Info.USER_KEY, uid, user_id)\n",
        f"{_ROTATION}::test_a_kek_of_one_user_key_is_no_other_s",
    ),
    _m(
        "an old data key is kept",
        "keys/lifecycle.py",
        "                await self._indexes.hierarchy.drop_generations(record)\n",
        "",
        f"{_ROTATION}::test_a_data_key_is_changed_while_the_index_is_written_and_searched",
    ),
    _m(
        "a catalog that was put back is believed",
        "keys/indexes.py",
        "        if record.version < self.directory.version(index):\n",
        "        if False:\n",
        f"{_STOLEN}::test_a_catalog_put_back_is_refused",
    ),
    _m(
        "records stay under the old data key",
        "chain/compactor.py",
        "        if self._reseal is not None and oldest < generation:\n",
        "        if False:\n",
        f"{_ROTATION}::test_a_data_key_is_changed_while_the_index_is_written_and_searched",
    ),
    _m(
        "every worker has records sealed anew",
        "keys/answers.py",
        '        if opened.certificate.role != "index":\n',
        "        if False:\n",
        f"{_STOLEN}::test_only_index_workers_have_records_sealed_anew",
    ),
    _m(
        "a job that was exchanged is done",
        "objects/reseal.py",
        "    if hashlib.sha256(data).digest() != job.sha256:\n",
        "    if False:\n",
        "unit/objects/test_reseal.py",
    ),
    _m(
        "an update under a key that has ended stops its shard",
        "index/receive.py",
        "    if generation < min(lease.generations, default=0):\n",
        "    if False:\n",
        f"{_STOLEN}::test_an_update_under_a_key_that_has_ended_is_refused_and_the_shard_goes_on",
    ),
    # --- heads, updates, events, replies ---------------------------------------------------------
    _m(
        "a head that was put back is loaded",
        "chain/publish.py",
        "        if opened.head.version < min_version:\n",
        "        if False:\n",
        "unit/chain/test_chain_head.py::test_a_rolled_back_head_is_damage_for_who_was_told",
        f"{_FAULTS}::test_a_head_older_than_what_was_announced_is_not_gone_on_from",
    ),
    _m(
        "an index worker does not ask what was announced",
        "index/opening.py",
        "    await writer.load(floor)\n",
        "    await writer.load(0)\n",
        f"{_FAULTS}::test_a_head_older_than_what_was_announced_is_not_gone_on_from",
    ),
    _m(
        "any worker writes heads",
        "leases/heads.py",
        '        if writer.role != "index" or not writer.covers(index):\n',
        "        if False:\n",
        "unit/leases/test_heads.py",
    ),
    _m(
        "a head is not signed",
        "leases/heads.py",
        "        writer.verify_key.verify(signature, Info.HEAD, *parts)\n",
        "",
        "unit/leases/test_heads.py",
    ),
    _m(
        "an update is not signed",
        "objects/envelope.py",
        "        signer.verify(envelope.signature, Info.UPDATE, *_signed_parts(envelope))\n",
        "        del signer\n",
        f"{_FAULTS}::test_forged_updates_are_dead_letters_and_the_shard_goes_on",
        _ENVELOPE,
    ),
    _m(
        "any worker writes updates",
        "objects/envelope.py",
        'if certificate.role != "ingest" or not certificate.covers(index):',
        "if False:",
        _ENVELOPE,
        f"{_FAULTS}::test_forged_updates_are_dead_letters_and_the_shard_goes_on",
    ),
    _m(
        "an event is not signed",
        "leases/signed.py",
        "        verify(certificate.verify_key, signature, kind, *parts)\n",
        "        del parts\n",
        "unit/objects/test_results.py",
        "unit/query/test_query_results.py",
    ),
    Mutation(
        "a result goes to any topic",
        "schemas/query.py",
        r'REPLY_TOPIC_PATTERN: Final = r"^query-result(\.[A-Za-z0-9._-]+)?'
        r'(?<!\.dead-letter)(?!\n)$"',
        'REPLY_TOPIC_PATTERN: Final = r"^.+$"',
        ("simulation/test_query_refusals.py::test_a_reply_goes_to_result_topics_only",),
    ),
    # --- administration and audit ----------------------------------------------------------------
    _m(
        "an administrator's credential may be copied",
        "keys/admin.py",
        "            verify_message(principal.cnf, signature, record.topic, record.key, "
        'record.value or b"")\n',
        "            del signature\n",
        "simulation/test_keys_admin.py::test_a_sealed_credential_must_be_proved",
    ),
    _m(
        "an administrative request runs twice",
        "keys/admin.py",
        "        if not self._replays.admit(request_id, asked.record, asked.expires_s):\n",
        "        if False:\n",
        "simulation/test_keys_admin.py::test_copies_and_old_requests_are_not_run",
    ),
    _m(
        "an administrative request runs again after a restart",
        "keys/once.py",
        "        if (begun.topic, begun.partition, begun.offset) != place:\n",
        "        if False:\n",
        "simulation/test_keys_admin.py::test_a_copy_after_a_restart_is_not_run",
    ),
    _m(
        "an audit record may be changed",
        "keys/audit_chain.py",
        "    if digest.hex() != record.hash:\n",
        "    if False:\n",
        f"{_AUDIT}::test_what_was_dropped_changed_or_exchanged_is_told",
    ),
    _m(
        "an audit record may be dropped",
        "keys/audit_chain.py",
        "    if record.seq != chain.next_seq:\n"
        "        chain.problems.append("
        'f"{where}: record {chain.next_seq} expected, {record.seq} found")\n'
        "    elif record.prev != chain.last_hash.hex():\n",
        "    if False:\n",
        f"{_AUDIT}::test_what_was_dropped_changed_or_exchanged_is_told",
        f"{_AUDIT}::test_what_is_too_old_to_be_kept_may_be_missing",
    ),
    _m(
        "checkpoints are not signed",
        "keys/audit_chain.py",
        "        service.verify(signature, Info.AUDIT, record.instance, record.seq, digest)\n",
        "        pass\n",
        f"{_AUDIT}::test_a_chain_that_was_made_anew_is_not_signed",
    ),
)
