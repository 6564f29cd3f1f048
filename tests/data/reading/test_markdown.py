from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from shortlist.data.reading.markdown import front_matter, markdown_parts, read_markdown
from shortlist.data.reading.wholes import SourceFile
from shortlist.text.chunks import Section

TEXT = """---
title: Otters
year: 2020
day: 2020-01-02
tags: [a, b]
author: {name: Ann}
---
before

# All *about* `otters` ##
intro
```sh
# not a heading
```
Two
lines
===
x

- item
---
<!-- # no -->
### [Deep](x.md) {#id}
end
"""


def read(tmp_path: Path, text: str):
    (tmp_path / "a.md").write_text(text)
    [whole] = read_markdown(SourceFile(tmp_path / "a.md", "a.md"))
    return whole


def test_sections_stand_under_their_headings_and_front_matter_is_metadata(tmp_path: Path):
    whole = read(tmp_path, TEXT)
    assert whole.title == "Otters"
    assert whole.metadata == {"year": 2020, "day": "2020-01-02", "tags": ["a", "b"], "author.name": "Ann"}
    assert whole.sections == [
        Section("before"),
        Section("# All *about* `otters` ##\nintro\n```sh\n# not a heading\n```", ("All about otters",)),
        Section("Two\nlines\n===\nx\n\n- item\n---\n<!-- # no -->", ("Two lines",)),
        Section("### [Deep](x.md) {#id}\nend", ("Two lines", "Deep")),
    ]


def test_the_only_heading_of_the_first_level_is_the_title(tmp_path: Path):
    assert read(tmp_path, "# One\n## Two").title == "One"
    assert read(tmp_path, "# One\n# Two").title == ""


@pytest.mark.parametrize("text", ["--- \n- a\n---\n", "---\na: [\n---\nb", "---\nno end", "----\na: b\n---\n"])
def test_what_is_no_front_matter_is_text(text: str):
    assert front_matter(text) == ({}, 0)


def test_front_matter_that_grows_without_end_is_cut_short():
    bomb = "a: &a [x, x]\n" + "".join(f"{n}: &{n} [*{p}, *{p}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True))
    fields, _ = front_matter(f"---\n{bomb}---\n")
    assert len(str(fields)) < 1000


LINES = st.sampled_from(
    ["# a", "## b #", "####### c", "#d", "text", "", "===", "---", "-", "- x\n", "```", "~~~~", "\n    # e", "> q"]
)


@settings(max_examples=100, deadline=None)
@given(st.lists(LINES, max_size=7))
def test_headings_are_those_of_a_whole_parser(lines: list[str]):
    text = "\n".join(lines)
    tokens = [token for token in MarkdownIt().parse(text) if token.type == "heading_open" and token.level == 0]
    assert [level for level, _, _ in markdown_parts(text) if level] == [int(token.tag[1]) for token in tokens]


def test_no_text_is_lost_at_headings():
    assert "".join("".join(text.split()) for _, _, text in markdown_parts(TEXT)) == "".join(TEXT.split())
