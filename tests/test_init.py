from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import DOCUMENTS, QUERIES, Tiny, write_collection, write_llama

from shortlist import init
from shortlist.data.formats import write_queries
from shortlist.data.manifest import read_manifest
from shortlist.errors import UserError
from shortlist.models.backbone import load_backbone
from shortlist.models.retriever import Retriever
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


def shorter(tiny: Tiny, tmp_path: Path, **change) -> init.Config:
    deep = write_llama(tmp_path / "deep", num_hidden_layers=3)
    return init.Config(**({"from_": str(deep), "layers": 2, "out": tmp_path / "short"} | change))


def test_a_model_keeps_its_first_layers(tiny: Tiny, tmp_path: Path):
    init.run(shorter(tiny, tmp_path))
    deep, short = load_backbone(str(tmp_path / "deep")), load_backbone(str(tmp_path / "short"))
    assert short.config.num_hidden_layers == len(short.layers) == 2
    kept = short.state_dict()
    assert {name for name in deep.state_dict() if not name.startswith("layers.2.")} == kept.keys()
    assert all(torch.equal(value, deep.state_dict()[name]) for name, value in kept.items())
    with torch.inference_mode():
        states = deep(torch.tensor([[1, 5, 9]]), output_hidden_states=True).hidden_states[2]
        torch.testing.assert_close(short(torch.tensor([[1, 5, 9]])).last_hidden_state, short.norm(states))
    assert load_tokenizer(tmp_path / "short").get_vocab() == load_tokenizer(tmp_path / "deep").get_vocab()


def test_without_a_number_of_layers_all_are_kept(tiny: Tiny, tmp_path: Path):
    init.run(shorter(tiny, tmp_path, layers=None))
    assert len(load_backbone(str(tmp_path / "short")).layers) == 3


def test_a_retriever_of_fewer_layers_is_one_still(tiny: Tiny, tmp_path: Path):
    init.run(init.Config(from_=str(tiny.retriever), layers=1, out=tmp_path / "same"))
    whole, same = Retriever.load(str(tiny.retriever)), Retriever.load(str(tmp_path / "same"))
    assert same.encode_queries("which colour has the apple") == pytest.approx(
        whole.encode_queries("which colour has the apple")
    )


def test_a_reranker_leaves_its_head_and_contract_behind(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    init.run(init.Config(from_=str(tiny.reranker), layers=1, out=tmp_path / "same"))
    assert "above its backbone is left out" in capsys.readouterr().err
    assert not (tmp_path / "same" / "contract.json").exists()
    assert len(load_backbone(str(tmp_path / "same")).layers) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 4}, "--layers is 4; expected 1 to 3"),
        ({"layers": 0}, "--layers is 0"),
        ({"hidden": 64}, "--hidden is for a new backbone"),
        ({"collection": "x"}, "--collection is for a new backbone"),
        ({"from_": None}, "--collection is missing"),
        ({"from_": "nowhere/at-all"}, "nowhere/at-all"),
    ],
)
def test_what_cannot_be_made_from_a_model_is_refused(tiny: Tiny, tmp_path: Path, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        init.run(shorter(tiny, tmp_path, **change))
