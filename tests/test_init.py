from dataclasses import replace
from pathlib import Path

import pytest
from tiny import DOCUMENTS, QUERIES, write_collection

from shortlist import init
from shortlist.data.formats import write_queries
from shortlist.data.manifest import read_manifest
from shortlist.errors import UserError
from shortlist.models.backbone import load_backbone
from shortlist.records import Query
from shortlist.text.prompts import named_prompt
from shortlist.text.rendering import Renderer
from shortlist.text.tokenizer import load_tokenizer


@pytest.fixture
def config(tmp_path: Path) -> init.Config:
    collection = write_collection(tmp_path / "collection")
    return init.Config(collection=str(collection), out=tmp_path / "model", layers=1, hidden=32, heads=2, vocab_size=300)


def test_a_backbone_has_the_shape_asked_for_and_its_tokenizers_vocabulary(config: init.Config):
    init.run(config)
    model, tokenizer = load_backbone(str(config.out)), load_tokenizer(config.out)
    shape = model.config
    assert (shape.num_hidden_layers, shape.hidden_size, shape.num_attention_heads) == (1, 32, 2)
    assert shape.intermediate_size == 96  # 8/3 of 32, up to a multiple of 32
    assert shape.vocab_size == len(tokenizer) <= 300
    assert (shape.pad_token_id, shape.bos_token_id, shape.eos_token_id) == (0, 1, 2)
    manifest = read_manifest(config.out)
    assert manifest is not None
    assert manifest["results"]["parameters"] == sum(p.numel() for p in model.parameters())


def test_the_seed_alone_decides_the_weights(config: init.Config):
    def weights(name: str, seed: int) -> bytes:
        out = config.out.with_name(name)
        init.run(replace(config, out=out, seed=seed))
        return (out / "model.safetensors").read_bytes()

    assert weights("a", 1) == weights("b", 1) != weights("c", 2)


def test_the_tokenizer_knows_the_words_of_documents_and_of_the_splits_queries(config: init.Config):
    folder = Path(config.collection)
    write_queries(folder / "queries.jsonl", [*QUERIES[:11], Query("q11", "zyzzyva " * 50)])
    init.run(replace(config, words_only=True))
    seen = load_tokenizer(config.out)
    assert len(seen.tokenize("harbour")) == 1
    assert len(seen.tokenize("zyzzyva")) > 1  # q11 is for tests alone
    init.run(replace(config, words_only=True, split="test", out=config.out.with_name("test")))
    assert len(load_tokenizer(config.out.with_name("test")).tokenize("zyzzyva")) == 1


def test_a_tokenizer_of_words_sees_no_punctuation_and_the_other_loses_nothing(config: init.Config):
    init.run(replace(config, words_only=True))
    words = load_tokenizer(config.out)
    ids = [words(text, add_special_tokens=False)["input_ids"] for text in ("the apple", "  The, (apple)!")]
    assert ids[0] == ids[1]
    init.run(replace(config, out=config.out.with_name("bytes")))
    everything = load_tokenizer(config.out.with_name("bytes"))
    text = "  The,\n(apple)! é"
    assert everything.decode(everything(text, add_special_tokens=False)["input_ids"]) == text


def test_a_shape_that_cannot_be_is_refused(config: init.Config):
    with pytest.raises(UserError, match=r"--hidden 30: expected a multiple of 2 x --heads 4"):
        init.run(replace(config, hidden=30, heads=4))


def test_a_backbone_is_made_once(config: init.Config, capsys: pytest.CaptureFixture[str]):
    init.run(config)
    init.run(config)
    assert "already done" in capsys.readouterr().err
    with pytest.raises(UserError, match="hidden: 32 there, 64 now"):
        init.run(replace(config, hidden=64))


def test_a_new_tokenizer_has_a_chat_for_prompts(config: init.Config):
    init.run(config)
    renderer = Renderer(named_prompt("first"), load_tokenizer(config.out))
    text = renderer.render(QUERIES[0], DOCUMENTS[:2]).text
    assert text.startswith("system: You are RankLLM, ")
    assert text.endswith("do not say any word or explain.</s>\nassistant:[")
    init.run(replace(config, words_only=True, out=config.out.with_name("words")))
    renderer = Renderer(named_prompt("prp"), load_tokenizer(config.out.with_name("words")))
    assert renderer.render(QUERIES[0], DOCUMENTS[:2]).text.endswith(
        "Output Passage A or Passage B:</s>\nassistant: Passage:"
    )
