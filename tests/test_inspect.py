import json
from pathlib import Path

import pytest
from late import write_stanford
from sparse import write_masked

from shortlist import LateRetriever, Reranker, Retriever, SparseRetriever
from shortlist.cli import main

WORDS = ["--query", "which colour has the apple", "--document", "the apple has a colour"]


def found(capsys: pytest.CaptureFixture[str], *flags: str) -> dict:
    assert main(["inspect", *flags, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_retriever_is_shown_with_its_ids_and_its_score(tiny, capsys: pytest.CaptureFixture[str]):
    shown = found(capsys, str(tiny.retriever), *WORDS)
    model = Retriever.load(str(tiny.retriever))
    expected = float(model.encode_queries([WORDS[1]])[0] @ model.encode_documents([WORDS[3]])[0])
    assert shown["score"] == pytest.approx(expected, abs=1e-6)
    assert (shown["kind"], shown["score_is"], shown["dtypes"]) == (
        "retriever",
        "cosine",
        {"F32": shown["num_parameters"]},
    )
    query = shown["examples"]["query"]
    assert query["pieces"] == ["<s>", "query", ":", "which", "colour", "has", "the", "apple", "</s>"]
    assert query["pooled"] == 8
    assert shown["contract"]["query"] == ["<bos>", "query: {query}", "<eos>"]


def test_a_reranker_is_shown_with_its_head_and_its_score(tiny, capsys: pytest.CaptureFixture[str]):
    shown = found(capsys, str(tiny.reranker), *WORDS, "--title", "price")
    model = Reranker.load(str(tiny.reranker))
    assert shown["head"].startswith("a vector of 32, length ")
    pair = shown["examples"]["pair"]
    assert pair["pieces"][-7:] == ["price", "the", "apple", "has", "a", "colour", "</s>"]
    assert pair["pooled"] == len(pair["ids"]) - 1
    assert shown["score"] == pytest.approx(model.score(WORDS[1], ["price " + WORDS[3]])[0], abs=1e-6)


def test_the_page_marks_the_pooled_token(tiny, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", str(tiny.retriever), *WORDS]) == 0
    page = capsys.readouterr().out
    assert 'query      <bos> "query: {query}" <eos>, at most 32 tokens' in page
    assert "</s>  <- pooled" in page
    assert page.count("<- pooled") == 2
    assert "manifest   none" in page
    assert "(cosine)" in page


def test_every_token_is_marked_where_the_mean_is_taken(tiny, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", str(tiny.bert), *WORDS, "--contract", "bert"]) == 0
    page = capsys.readouterr().out
    assert page.count("<- pooled") == 7 + 7


def test_a_late_model_shows_what_each_token_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = str(write_stanford(tmp_path / "model"))
    shown = found(capsys, folder, "--query", "which boat", "--document", "the boat.")
    query, document = shown["examples"]["query"], shown["examples"]["document"]
    assert query["pieces"][:5] == ["[CLS]", "[unused0]", "which", "boat", "[SEP]"]
    assert query["gives"] == ["vector"] * 5 + ["vector, read by no other token"] * 5
    assert document["pieces"] == ["[CLS]", "[unused1]", "the", "boat", ".", "[SEP]"]
    assert document["gives"] == [*["vector"] * 4, "", "vector"]
    model = LateRetriever.load(folder)
    assert shown["score"] == pytest.approx(model.score("which boat", "the boat."), abs=1e-6)
    assert main(["inspect", folder]) == 0
    page = capsys.readouterr().out
    assert "filled up  queries, with <mask> to 10 tokens, which no other token reads" in page
    assert "no vector  ! , - . ? in documents" in page
    assert "<token:[unused0]>" in page


def test_a_sparse_model_shows_the_weights_of_terms(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = str(write_masked(tmp_path / "model"))
    words = (folder, "--contract", "splade", "--query", "which boat", "--document", "the boat.")
    shown = found(capsys, *words)
    model = SparseRetriever.load(folder, contract="splade")
    for kind, weights in (
        ("query", model.encode_queries("which boat")),
        ("document", model.encode_documents("the boat.")),
    ):
        terms = shown["terms"][kind]
        assert list(terms.values()) == sorted(terms.values(), reverse=True)
        assert terms == pytest.approx(
            dict(zip([model.terms[t] for t in weights.terms], weights.weights.tolist(), strict=True))
        )
    assert shown["score"] == pytest.approx(model.score("which boat", "the boat."), rel=1e-5)
    assert main(["inspect", *words]) == 0
    page = capsys.readouterr().out
    assert "head       the language model's, for each term" in page
    assert f"weights of {len(shown['terms']['query'])} terms, the greatest first:" in page
    assert page.rstrip().endswith("(the products of the weights of shared terms, added up)")


def test_a_form_that_is_not_known_has_to_be_named(tiny, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", str(tiny.llama)]) == 1
    assert "name one with --contract" in capsys.readouterr().err


def test_a_text_is_needed(tiny, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", str(tiny.retriever), "--query", " "]) == 1
    assert "--query and --document need text" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", str(tmp_path / "absent")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tokenizer that has a chat template, and no weights."""
    from shortlist.text.tokenizer import train_bpe

    folder = tmp_path_factory.mktemp("chat")
    tokenizer = train_bpe(["query passage the apple has a colour"] * 5, vocab_size=300)
    tokenizer.chat_template = "{% for m in messages %}{{ '<s>' + m['content'] + '</s>' }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return str(folder)


def test_a_prompt_is_shown_with_its_text_its_ids_and_its_labels(chat: str, capsys: pytest.CaptureFixture[str]):
    shown = found(
        capsys, chat, "--prompt", "prp", "--query", "which", "--document", "the apple", "a pear", "--title", "T"
    )
    assert shown["text"].startswith('<s>Given a query "which", which of the following two passages')
    assert shown["text"].endswith(
        'Passage A: "T the apple"\n\nPassage B: "a pear"\n\nOutput Passage A or Passage B:</s> Passage:'
    )
    assert len(shown["ids"]) == len(shown["pieces"])
    start, stop = shown["documents"][1]
    assert "".join(shown["pieces"][start:stop]) == 'PassageĠB:Ġ"aĠpear'
    assert shown["labels"].keys() == {"A", "B"}


def test_the_page_of_a_prompt_marks_documents_and_query(chat: str, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", chat, "--prompt", "setwise", "--query", "which", "--document", "x", "y", "z"]) == 0
    page = capsys.readouterr().out
    assert all(f"<- document {number}" in page for number in (1, 2, 3))
    assert "<- query" in page
    assert "labels, read behind the last token: A " in page
    assert main(["inspect", chat, "--prompt", "rank-zephyr", "--document", "x", "y"]) == 0
    assert "the answer has at most" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--prompt", "prp"], "1 documents are to be shown at once; expected 2"),
        (["--prompt", "prpp"], "unknown prompt 'prpp'"),
        (["--document", "x", "y"], "--document has 2 texts; expected one, or say --prompt"),
    ],
)
def test_what_a_prompt_cannot_show_is_one_line(
    flags: list[str], said: str, chat: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["inspect", chat, *flags]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_model_without_a_chat_says_what_to_do(tiny, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", str(tiny.llama), "--prompt", "rank-zephyr"]) == 1
    error = capsys.readouterr().err
    assert "has no chat template, which the prompt 'rank-zephyr' needs" in error
    assert error.count("\n") == 1
