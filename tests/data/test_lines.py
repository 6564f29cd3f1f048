import gzip
import json

import pytest

from shortlist.data.lines import MalformedError, count_lines, numbered_lines, parse_json, parse_lines
from shortlist.errors import UserError

MIXED = b'{"a": 1}\n \t\r\n[2]\n{"\xff": 3}\r\n{"\xc3\xa9\xe2\x80\xa8": 4}\r\n{"a": 5}'


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_every_bad_line_is_told_and_the_others_keep_their_number_and_their_start(tmp_path, name):
    path, told = tmp_path / name, []
    path.write_bytes(gzip.compress(MIXED) if name.endswith("gz") else MIXED)
    lines = list(parse_lines(path, parse_json, told.append))
    assert [(number, record) for number, _, record in lines] == [(1, {"a": 1}), (5, {"é\u2028": 4}), (6, {"a": 5})]
    assert [json.loads(MIXED[start:].split(b"\n")[0]) for _, start, _ in lines] == [record for *_, record in lines]
    assert told == [
        f"{path}:3: found a JSON list; expected one object per line.",
        f"{path}:4: not UTF-8 text (invalid start byte at byte 3 of the line); convert it.",
    ]


def test_blank_lines_are_not_counted_and_bad_ones_are(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(MIXED)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(MIXED + b"\n\n"))
    assert count_lines(tmp_path / "a.jsonl") == count_lines(tmp_path / "b.jsonl.gz") == 5


def test_the_first_bad_line_ends_the_reading_unless_it_is_told_to_someone(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine\n\xff\n")
    with pytest.raises(
        UserError, match=r"a.txt:2: not UTF-8 text \(invalid start byte at byte 1 of the line\)"
    ) as caught:
        list(numbered_lines(tmp_path / "a.txt"))
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("line", ['{"a": [1, "\\u00e9"]}', ' \t{"a": [1, "é"]} ', '{"a":[1,"\\uD834\\uDD1E"]}'])
def test_an_object_on_a_line_is_read_as_json_reads_it(line):
    assert parse_json(line) == json.loads(line)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": 1} {"b": 2}', r"not JSON \(Extra data at column 10\)"),
        ('\ufeff{"a": 1}', "not JSON .*BOM"),
        ('{"a": 1', "not JSON .* at column 8"),
        ('{"a": "\\uD83D"}', "half of a surrogate pair"),
        ('{"a": "\\ud83d \\ude00"}', "half of a surrogate pair"),
        ('{"a": ' + "9" * 5000 + "}", "cannot be read .*5000 digits"),
        ('{"a": ' + "[" * 200_000, "cannot be read .*recursion"),
        ("1", "found a JSON int"),
    ],
)
def test_what_is_not_one_object_is_malformed(line, message):
    with pytest.raises(MalformedError, match=message):
        parse_json(line)
