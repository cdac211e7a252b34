from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.chain.kinds import NodeKind
from workers.text.postings import (
    RowsCodec,
    TermCodec,
    TermColumns,
    build_rows,
    build_terms,
    decode_positions,
    decode_rows,
    decode_terms,
    has_positions,
)
from workers.text.varint import (
    MalformedPayloadError,
    decode_varints,
    encode_varints,
    read_varint,
    write_varint,
)

INT = np.int64

# {term: {row: positions}}
postings = st.dictionaries(
    st.integers(0, 300),
    st.dictionaries(
        st.integers(0, 2**31 - 1),
        st.sets(st.integers(0, 2**20), min_size=1, max_size=5),
        min_size=1,
        max_size=12,
    ),
    max_size=8,
)


def columns_of(terms, shuffle=None, positions=True) -> TermColumns:
    entries = [(t, r, sorted(p)) for t, rows in terms.items() for r, p in rows.items()]
    if shuffle is not None:
        np.random.default_rng(shuffle).shuffle(entries)
    deltas = [d for _, _, p in entries for d in np.diff(p, prepend=0).tolist()]
    return TermColumns(
        np.array([t for t, _, _ in entries], dtype=INT),
        np.array([r for _, r, _ in entries], dtype=INT),
        np.array([len(p) for _, _, p in entries], dtype=INT),
        np.array(deltas, dtype=INT) if positions else None,
    )


def terms_of(payload: bytes):
    found = decode_terms(payload)
    if not has_positions(payload):
        return dict(zip(found.rows.tolist(), found.tfs.tolist(), strict=True))
    offsets, places = decode_positions(payload)
    out = {}
    for i, row in enumerate(found.rows.tolist()):
        out[row] = set(places[offsets[i] : offsets[i + 1]].tolist())
        assert len(out[row]) == found.tfs[i]
    return out


@given(st.lists(st.integers(0, 2**62), max_size=200))
def test_varints_round_trip(values):
    data, offsets = encode_varints(np.array(values, dtype=INT))
    found, starts = decode_varints(data.tobytes())
    assert found.tolist() == values
    assert starts.tolist() == offsets[:-1].tolist()
    slow = bytearray()
    for value in values:
        write_varint(slow, value)
    assert bytes(slow) == data.tobytes()


@pytest.mark.parametrize("bad", [b"\x80", b"\x01\x80", b"\xff" * 9 + b"\x01"])
def test_cut_or_endless_varints_are_refused(bad):
    with pytest.raises(MalformedPayloadError):
        decode_varints(bad)
    with pytest.raises(MalformedPayloadError):
        read_varint(bad, len(bad) - len(bad.lstrip(b"\x01")))


@given(postings, st.integers(0, 9), st.booleans())
def test_terms_round_trip_in_any_order(terms, shuffle, positions):
    groups, payloads = build_terms(columns_of(terms, shuffle, positions))
    assert groups.tolist() == sorted(terms)
    for group, payload in zip(groups.tolist(), payloads, strict=True):
        expected = terms[group] if positions else {r: len(p) for r, p in terms[group].items()}
        assert terms_of(payload) == expected
        rows = decode_terms(payload).rows
        assert np.all(rows[1:] > rows[:-1])


def segments_of(seed: int, several: int, size: int, dense: int):
    """Return documents spread over segments, with row maps that drop some and interleave all."""
    random = np.random.default_rng(seed)
    total = several * dense
    order = random.permutation(total)
    out = []
    for part in range(several):
        new = np.sort(order[part * dense : (part + 1) * dense])
        new = np.where(random.random(dense) < 0.2, -1, new).astype(INT)
        terms = {
            t: {
                int(r): set(random.integers(0, 5_000, random.integers(1, 4)).tolist())
                for r in random.choice(dense, random.integers(1, size), replace=False)
            }
            for t in range(6)
            if random.random() < 0.8
        }
        out.append((terms, new))
    return out


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([3, 60]), st.booleans())
def test_merging_terms_is_renaming_rows(seed, several, size, positions):
    parts = segments_of(seed, several, size, 80)
    expected: dict[int, dict[int, set[int]]] = {}
    tokens: list[list] = [[] for _ in range(6)]
    for terms, new in parts:
        for group, payload in zip(*build_terms(columns_of(terms, None, positions)), strict=True):
            tokens[int(group)].append((payload, new))
        for term, rows in terms.items():
            for row, places in rows.items():
                if new[row] >= 0:
                    expected.setdefault(term, {})[int(new[row])] = places
    codec = TermCodec()
    assert codec.kind is NodeKind.TERM
    together = codec.merge_many(tokens)
    for term, payload in enumerate(together):
        assert codec.merge_many([tokens[term]]) == [payload]
        if payload is None:
            assert term not in expected
        elif positions:
            assert terms_of(payload) == expected[term]
        else:
            assert terms_of(payload) == {r: len(p) for r, p in expected[term].items()}


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([3, 70]))
def test_merging_keywords_is_renaming_rows(seed, several, size):
    random = np.random.default_rng(seed)
    order = random.permutation(several * 80)
    tokens: list[list] = [[], [], []]
    expected: list[dict[int, bool]] = [{}, {}, {}]
    for part in range(several):
        new = np.sort(order[part * 80 : (part + 1) * 80])
        new = np.where(random.random(80) < 0.3, -1, new).astype(INT)
        for token in range(3):
            rows = np.sort(random.choice(80, random.integers(1, size), replace=False))
            removed = random.random(rows.size) < 0.5
            [payload] = build_rows(np.zeros(rows.size, dtype=INT), rows, removed)[1]
            tokens[token].append((payload, new))
            for row, gone in zip(rows.tolist(), removed.tolist(), strict=True):
                if new[row] >= 0:
                    expected[token][int(new[row])] = gone
    codec = RowsCodec()
    together = codec.merge_many(tokens)
    for token, payload in enumerate(together):
        assert codec.merge_many([tokens[token]]) == [payload]
        if payload is None:
            assert not expected[token]
            continue
        found = decode_rows(payload)
        assert found.rows.tolist() == sorted(expected[token])
        assert found.removed.tolist() == [expected[token][r] for r in sorted(expected[token])]


def test_published_bytes():
    """The formats are stored: these bytes must not change."""
    columns = columns_of({7: {3: {0, 5}, 200: {130}}})
    [payload] = build_terms(columns)[1]
    assert payload.hex() == "03020503c501020100058201"
    [payload] = build_terms(columns_of({7: {3: {0, 5}}}, positions=False))[1]
    assert payload.hex() == "0201020302"
    rows = np.array([3, 70])
    [payload] = build_rows(np.zeros(2, dtype=INT), rows, np.array([False, True]))[1]
    assert payload.hex() == "0202068701"


def test_nothing_to_build_or_merge():
    empty = np.empty(0, dtype=INT)
    assert build_terms(TermColumns(empty, empty, empty, None))[1] == []
    assert build_rows(empty, empty)[1] == []
    assert TermCodec().merge_many([[], []]) == [None, None]
    assert RowsCodec().merge_many([]) == []


@pytest.mark.parametrize(
    "bad", [b"", b"\x02", b"\x09\x01\x02\x00\x01", b"\x02\x02\x02\x00\x01\x01"]
)
def test_malformed_terms_are_refused(bad):
    with pytest.raises(MalformedPayloadError):
        decode_terms(bad)


@pytest.mark.parametrize("bad", [b"", b"\x02\x01", b"\x03\x01\x02", b"\x02\x02\x02"])
def test_malformed_rows_are_refused(bad):
    with pytest.raises(MalformedPayloadError):
        decode_rows(bad)


def test_positions_are_refused_where_there_are_none():
    [payload] = build_terms(columns_of({1: {1: {1}}}, positions=False))[1]
    with pytest.raises(MalformedPayloadError):
        decode_positions(payload)
