"""What the command refuses before it loads anything."""

import re
from pathlib import Path
from typing import Any

import pytest

from shortlist.errors import UserError
from shortlist.serve import Config, check_servable, read_key

WORDS: dict[str, Any] = {"collection": "any", "bm25": Path("any")}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nothing to serve"),
        ({"bm25": Path("any")}, "--collection is missing"),
        (WORDS | {"language": "german"}, "--language is of the collection's own index"),
        ({"collection": "any", "vectors": Path("any")}, "--vectors without --retriever"),
        (WORDS | {"host": "0.0.0.0"}, "--host 0.0.0.0: others could reach the server"),
        (WORDS | {"queue_requests": 0}, "--queue-requests is 0; expected more than 0"),
        (
            WORDS | {"pipeline": Path("any")},
            "--pipeline says what is searched; leave out --vectors, --index and --bm25",
        ),
        ({"pipeline": Path("any.yaml")}, "any.yaml: no such file"),
        (WORDS | {"retriever_contract": "bert"}, "--retriever-contract without --retriever"),
        (WORDS | {"reranker_contract": "bert"}, "--reranker-contract without --reranker"),
        ({"retriever": "any", "budget_ms": 5.0}, "--budget-ms is for a search, and there is no --collection"),
        (WORDS | {"reranker_share": 1.5}, "--reranker-share is 1.5; expected 0 to 1"),
    ],
)
def test_flags_that_cannot_be_served_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        check_servable(Config(**settings))


@pytest.mark.parametrize("content", [None, "short\n", "a key with spaces of many characters", "ключ" * 20])
def test_a_key_that_is_not_safe_is_refused(tmp_path: Path, content: str | None):
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match="--api-key-file"):
        read_key(Config(api_key_file=file))


def test_a_key_is_read_without_the_end_of_its_line(tmp_path: Path):
    (tmp_path / "key").write_text("0123456789abcdef0123456789abcdef\n")
    assert read_key(Config(api_key_file=tmp_path / "key")) == "0123456789abcdef0123456789abcdef"
    assert read_key(Config()) is None
