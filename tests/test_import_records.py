"""Reading records: cell by cell, with offsets to go on from, and what cannot be read by line."""

import csv
import gzip
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdp.imports import records as reading
from cdp.imports.records import Layout, UnusableFile, format_of, layout_of, opened, records, sniff


def read(data, layout=None, **where):
    return list(records(io.BytesIO(data), layout or Layout("csv"), **where))


def cells(data, **options):
    return [record.cells for record in read(data, Layout("csv", **options))]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ['"', '""', "\n", "\r", "\r\n", ",", "a\nb", '"\r\n"', " ", "\0", "\ufeff", "\x85", "\u2028"]
)


@given(
    st.integers(1, 5).flatmap(lambda width: st.lists(st.lists(texts, min_size=width, max_size=width), max_size=20)),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.integers(1, 40),
)
def test_whatever_python_writes_comes_back_cell_by_cell_from_every_offset(rows, delimiter, quoting, block):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting)
    writer.writerows([["héader"], *rows])
    data, layout = text.getvalue().encode(), Layout("csv", "utf-8", delimiter)
    before, reading.BLOCK = reading.BLOCK, block
    try:
        found = read(data, layout)
        assert [record.cells for record in found] == [["héader"], *rows]
        assert all(record.wrong == "" for record in found)
        assert b"".join(record.raw for record in found) == data
        for number, record in enumerate(found):
            rest = read(data, layout, offset=record.end, line=record.last)
            assert list(rest) == found[number + 1 :]
    finally:
        reading.BLOCK = before


def test_lines_are_counted_and_quoted_line_ends_belong_to_their_record():
    data = b'a,b\r\n"x\ny",2\r\n\r\nlast,3'
    assert [(one.line, one.last, one.end, one.cells) for one in read(data)] == [
        (1, 1, 5, ["a", "b"]),
        (2, 3, 14, ["x\ny", "2"]),
        (5, 5, 22, ["last", "3"]),
    ]


def test_lines_may_end_in_any_of_three_ways():
    assert cells(b"a,b\rc,d\re,f") == [["a", "b"], ["c", "d"], ["e", "f"]]
    assert cells(b"a,b\nc,d\r\ne,f\r") == [["a", "b"], ["c", "d"], ["e", "f"]]


def test_a_byte_order_mark_is_no_part_of_the_first_name():
    assert cells(b"\xef\xbb\xbfa,b\n1,2\n") == [["a", "b"], ["1", "2"]]
    assert layout_of(io.BytesIO(b'\xef\xbb\xbf"a",b\n1,2\n'), "csv").columns == ("a", "b")
    (record,) = read(b"\xef\xbb\xbf{}\n", Layout("ndjson"))
    assert record.cells == b"{}"


def test_other_encodings_are_read_and_those_without_lines_refused():
    assert cells("naïve,ß\n".encode("cp1252"), encoding="cp1252") == [["naïve", "ß"]]
    (record,) = read('{"a":"ß"}\n'.encode("latin-1"), Layout("ndjson", "latin-1"))
    assert record.cells == '{"a":"ß"}'.encode()
    assert layout_of(io.BytesIO(b"a,b\n"), "csv", encoding="UTF-8-sig").encoding == "utf-8"
    good, bad = read(b"a,b\n\\u12,x\n", Layout("csv", "raw_unicode_escape"))
    assert (good.wrong, bad.wrong[:38]) == ("", "The row cannot be read: 'rawunicodeesc")
    with pytest.raises(UnusableFile, match="Convert the file to UTF-8"):
        layout_of(io.BytesIO(b""), "csv", encoding="utf-16")
    with pytest.raises(UnusableFile, match="There is no encoding klingon"):
        layout_of(io.BytesIO(b""), "csv", encoding="klingon")
    with pytest.raises(UnusableFile, match="UTF-16"):
        layout_of(io.BytesIO("a,b\n".encode("utf-16")), "csv")


@pytest.mark.parametrize(
    ("text", "delimiter"),
    [
        ("a,b,c\n1,2,3\n", ","),
        ("a;b;c\n1,5;2;3\n", ";"),
        ("a\tb\nx, y\tz\n", "\t"),
        ("a|b\n1|2\n", "|"),
        ('a,b\n"1;2;3;4",2\n', ","),
        ("alone\n1\n", ","),
        ("", ","),
    ],
)
def test_the_delimiter_is_found(text, delimiter):
    assert sniff(text) == delimiter


def test_a_bad_row_is_told_and_the_next_one_is_read():
    layout = Layout("csv", columns=("a", "b"))
    found = read(b'a,b\n1,2,3\n1\n"x"y,2\n3,4\n"open,5\n6,7\n', layout)
    assert [(one.line, one.wrong) for one in found] == [
        (1, ""),
        (2, "The row has 3 cells, the header 2."),
        (3, "The row has 1 cells, the header 2."),
        (4, "The row cannot be read: ',' expected after '\"'."),
        (5, ""),
        (6, "The row cannot be read: unexpected end of data."),
    ]
    assert found[-1].raw == b'"open,5\n6,7\n'


@pytest.mark.parametrize("file_format", ["csv", "ndjson"])
def test_a_line_beyond_all_measure_costs_itself_alone(file_format, monkeypatch):
    monkeypatch.setattr(reading, "MOST_LINE", 1000)
    monkeypatch.setattr(reading, "BLOCK", 64)
    data = b"1\n" + b"x" * 5000 + b"\n2\n3\n"
    first, long, second, third = read(data, Layout(file_format))
    assert (first.end, long.end, second.end, third.end) == (2, 5003, 5005, 5007)
    assert (long.line, long.wrong.partition(":")[2]) == (2, " the line has more than 1000 bytes.")
    assert [one.line for one in (first, second, third)] == [1, 3, 4]


def test_a_header_needs_a_name_a_column():
    assert layout_of(io.BytesIO(b"a,,b\n"), "csv").columns == ("a", "column_2", "b")
    with pytest.raises(UnusableFile, match="Two columns are named a"):
        layout_of(io.BytesIO(b"a,b,a\n"), "csv")
    with pytest.raises(UnusableFile, match="no header row"):
        layout_of(io.BytesIO(b"\n\n"), "csv")


def test_a_compressed_file_is_read_from_an_offset_of_its_content():
    data = b"a,b\n1,2\n3,4\n"
    stream = opened(io.BytesIO(gzip.compress(data)), "x.CSV.gz")
    assert [one.cells for one in records(stream, Layout("csv"), offset=4, line=1)] == [["1", "2"], ["3", "4"]]
    assert layout_of(stream, "csv").columns == ("a", "b")


def test_the_format_is_what_the_name_says():
    names = ["a.csv", "a.tsv", "b.CSV.gz", "c.ndjson", "c.jsonl.gz", "d.json"]
    assert [format_of(name) for name in names] == ["csv", "csv", "csv", "ndjson", "ndjson", "ndjson"]
    with pytest.raises(UnusableFile, match="say --format"):
        format_of("events.xlsx")
