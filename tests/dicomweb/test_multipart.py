"""The multipart parser against every way a body can be cut, padded or broken."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingestd.dicomweb.multipart import BrokenMultipart, Multipart, content_type_params

BOUNDARY = "b0undary"
CONTENTS = st.one_of(
    st.binary(max_size=200),
    # Bytes out of which delimiters are made, so that near misses are common.
    st.lists(
        st.sampled_from([b"\r", b"\n", b"\r\n", b"-", b"--", b"--b0undary", b"\r\n--b0undar", b"b0undary--", b"x"]),
        max_size=30,
    ).map(b"".join),
).filter(lambda content: b"\r\n--b0undary" not in b"\r\n" + content)


def body_of(contents: list[bytes], *, preamble: bytes = b"", padding: bytes = b"", epilogue: bytes = b"") -> bytes:
    parts = b"".join(
        b"\r\n--b0undary" + padding + b"\r\nContent-Type: application/dicom\r\nX-Number: %d\r\n\r\n" % number + content
        for number, content in enumerate(contents)
    )
    body = preamble + parts + b"\r\n--b0undary--" + epilogue
    return body if preamble else body.removeprefix(b"\r\n")


def reader(pieces: Iterator[bytes]) -> Iterator[bytes]:
    return lambda: next(pieces, b"")


def in_pieces(body: bytes, sizes: list[int]) -> Iterator[bytes]:
    at = 0
    for size in sizes:
        if body[at : at + size]:
            yield body[at : at + size]
        at += size
    if body[at:]:
        yield body[at:]


def parse(body: bytes, sizes: list[int]) -> list[tuple[dict[str, str], bytes]]:
    found = []
    for headers, part in Multipart(reader(in_pieces(body, sizes)), BOUNDARY):
        found.append((dict(headers), part.read()))
    return found


def drain(parser: Multipart, into: list[bytes]) -> None:
    for _, part in parser:
        into.append(part.read())


@settings(max_examples=200)
@given(
    st.lists(CONTENTS, max_size=4),
    st.lists(st.integers(1, 40), max_size=60),
    st.sampled_from([b"", b"a preamble", b"--b0undar\r\n"]),
    st.sampled_from([b"", b" ", b" \t "]),
    st.sampled_from([b"", b"\r\n", b"\r\nan epilogue\r\n--b0undary\r\n"]),
)
def test_parts_come_out_as_they_went_in_however_the_stream_is_cut(contents, sizes, preamble, padding, epilogue):
    body = body_of(contents, preamble=preamble, padding=padding, epilogue=epilogue)

    assert [content for _, content in parse(body, sizes)] == contents


def test_every_single_and_double_cut_gives_the_same_parts():
    body = body_of([b"one\r\n--b0undarX", b"", b"\r\n\r\n", b"-" * 10], preamble=b"pre\r\n")

    for first in range(len(body)):
        for second in range(0, len(body) - first, 7):
            assert [content for _, content in parse(body, [first, second])] == [
                b"one\r\n--b0undarX",
                b"",
                b"\r\n\r\n",
                b"-" * 10,
            ]


def test_one_byte_at_a_time_is_enough():
    body = body_of([b"hello", b"world"])

    assert [content for _, content in parse(body, [1] * len(body))] == [b"hello", b"world"]


@given(st.lists(CONTENTS, min_size=1, max_size=3), st.data())
def test_body_without_its_end_is_an_error_and_never_a_short_part(contents, data):
    body = body_of(contents)
    cut = data.draw(st.integers(0, len(body) - 3))  # the last two bytes, "--", complete it

    whole = []
    with pytest.raises(BrokenMultipart):
        drain(Multipart(reader(in_pieces(body[:cut], [])), BOUNDARY), whole)

    assert whole == contents[: len(whole)], "what was given out whole before the end is whole"


def test_part_that_breaks_off_raises_in_the_reading_of_that_part():
    body = body_of([b"first", b"x" * 1000])[:-500]
    parts = iter(Multipart(reader(in_pieces(body, [])), BOUNDARY))

    assert next(parts)[1].read() == b"first"
    _, broken = next(parts)
    with pytest.raises(BrokenMultipart, match="middle of a part"):
        broken.readall()


def test_headers_are_found_in_any_case_folded_or_absent():
    body = (
        b"--b0undary\r\nCONTENT-type: a/b;\r\n  c=d\r\n\r\n1\r\n--b0undary\r\n\r\n2"
        b"\r\n--b0undary\r\nX: y\r\n\r\n--b0undary--"
    )

    (first, one), (second, two), (_, nothing) = [
        (headers, part.read()) for headers, part in Multipart(reader(iter([body])), BOUNDARY)
    ]

    assert first["Content-Type"] == "a/b; c=d"
    assert (dict(second), one, two, nothing) == ({}, b"1", b"2", b"")


def test_no_part_at_all_is_no_error():
    assert list(Multipart(reader(iter([b"--b0undary--\r\n"])), BOUNDARY)) == []


def test_longer_boundary_that_begins_like_ours_is_content():
    body = b"--b0undary\r\n\r\nx\r\n--b0undary2\r\ny\r\n--b0undary--"

    assert [part.read() for _, part in Multipart(reader(iter([body])), BOUNDARY)] == [b"x\r\n--b0undary2\r\ny"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no boundary here",
        b"--b0undary\r\nno colon\r\n\r\nx\r\n--b0undary--",
        b"--b0undary\r\nX: " + b"y" * 70_000 + b"\r\n\r\n\r\n--b0undary--",
        b"--b0undary\r\nX: y\r\n",
        b"z" * 1_100_000,
        b"--b0undary\n\nbare line feeds\n--b0undary--",
    ],
)
def test_what_is_not_multipart_is_an_error(body):
    with pytest.raises(BrokenMultipart):
        drain(Multipart(reader(in_pieces(body, [1000] * 2000)), BOUNDARY), [])


def test_boundary_is_needed():
    with pytest.raises(BrokenMultipart):
        Multipart(lambda: b"", "")


def test_skipping_a_part_leads_to_the_next_and_closes_the_first():
    parts = iter(Multipart(reader(in_pieces(body_of([b"a" * 500, b"b"]), [7] * 100)), BOUNDARY))

    _, first = next(parts)
    first.read(3)
    _, second = next(parts)

    assert second.read() == b"b"
    with pytest.raises(ValueError, match="gone"):
        first.read()


def test_part_of_three_gigabytes_passes_through_a_small_window():
    chunk = bytes(1 << 20)
    pieces = iter([b"--b0undary\r\n\r\n", *([chunk] * 3072), b"\r\n--b0undary--"])

    size = 0
    for _, part in Multipart(lambda: next(pieces, b""), BOUNDARY):
        while data := part.next_chunk():
            size += len(data)

    assert size == 3072 << 20


def test_contents_keep_their_digest_in_reads_of_any_size():
    content = b"".join(hashlib.sha256(str(number).encode()).digest() for number in range(5000))
    body = body_of([content])

    for size in (1, 13, 4096, 10**6):
        ((_, part),) = [
            (headers, b"".join(iter(lambda part=part, size=size: part.read(size), b"")))
            for headers, part in Multipart(reader(in_pieces(body, [997] * 1000)), BOUNDARY)
        ]
        assert part == content


@pytest.mark.parametrize(
    "text, media_type, boundary",
    [
        ('multipart/related; type="application/dicom"; boundary="a;b"', "multipart/related", "a;b"),
        ("Multipart/Related;BOUNDARY=abc;type=application/dicom", "multipart/related", "abc"),
        ('multipart/related; boundary="a\\"b"', "multipart/related", 'a"b'),
        ("multipart/related; boundary = x ; y", "multipart/related", "x"),
        ("application/dicom", "application/dicom", None),
        ("multipart/related; boundary=", "multipart/related", ""),
        ('multipart/related; boundary="open', "multipart/related", "open"),
        ("", "", None),
    ],
)
def test_content_type_is_split_with_and_without_quotes(text, media_type, boundary):
    found, params = content_type_params(text)

    assert (found, params.get("boundary")) == (media_type, boundary)
