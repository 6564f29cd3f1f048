import json
import math
from dataclasses import replace

import pytest
import torch
from named import language_model_to_train, load_reranker, load_retriever
from tiny import DOCUMENTS, QUERIES, Tiny

from shortlist.data.collections import Collection, open_collection
from shortlist.errors import UserError
from shortlist.models.dense import DenseModel
from shortlist.models.language import LanguageModel
from shortlist.models.pointwise import PointwiseModel
from shortlist.models.save import Trainable
from shortlist.records import Group
from shortlist.text.batching import token_batches
from shortlist.text.inputs import Inputs
from shortlist.train.examples import batches
from shortlist.train.forecast import MOST_BATCHES, MOST_TEXTS, Forecast, forecast
from shortlist.train.memory import step_memory

QUERY_BY_ID = {query.query_id: query for query in QUERIES}
GROUPS = [Group(f"q{i}", (f"d{i}",), tuple(f"d{j}" for j in range(12) if j != i)[: 3 if i else 2]) for i in range(8)]
OPTIONS = {"batch_size": 4, "negatives": 3, "steps": 4, "seed": 0, "token_budget": 64}


@pytest.fixture
def collection(tiny: Tiny) -> Collection:
    return open_collection(str(tiny.collection))


@pytest.fixture
def retriever(tiny: Tiny) -> DenseModel:
    return load_retriever(str(tiny.retriever))


@pytest.fixture
def reranker(tiny: Tiny) -> PointwiseModel:
    return load_reranker(str(tiny.reranker))


def foreseen(model: Trainable, collection: Collection, groups: list[Group] = GROUPS, **options) -> Forecast:
    kind = {DenseModel: "retriever", PointwiseModel: "reranker", LanguageModel: "language-model"}[type(model)]
    return forecast(kind, model, groups, QUERY_BY_ID, collection, **(OPTIONS | options))


def cut_to(model: DenseModel | PointwiseModel, **lengths: int) -> None:
    model.inputs = Inputs(model.inputs.form.with_lengths(**lengths), model.inputs.tokenizer)


def step_lengths(model: DenseModel, collection: Collection, steps: int = 2) -> list[list[int]]:
    """Tokens of all inputs of each step of the first epoch."""
    made = batches(GROUPS, QUERY_BY_ID, collection, batch_size=4, negatives=3, seed=0, first_step=0, steps=steps)
    return [
        [
            *map(len, model.inputs.query_ids(batch.queries)),
            *map(len, model.inputs.document_ids([d for group in batch.documents for d in group])),
        ]
        for batch in made
    ]


@pytest.mark.slow
def test_tokens_are_those_of_the_batches_that_training_will_see(retriever: DenseModel, collection: Collection):
    found = foreseen(retriever, collection)
    lengths = step_lengths(retriever, collection)
    real = sum(map(sum, lengths))
    padded = sum(len(rows) * max(each[r] for r in rows) for each in lengths for rows in token_batches(each, 64))
    assert found.tokens_per_step == real / 2
    assert found.padding == pytest.approx(padded / real - 1)
    assert found.padding > 0
    assert found.tokens == 2 * real
    assert found.texts_per_step == {"queries": 4, "documents": 31 / 2}
    assert (found.sampled_batches, found.sampled_texts) == (2, 8 + 31)


@pytest.mark.slow
def test_a_language_models_texts_are_two_for_every_query(tiny: Tiny, collection: Collection):
    model = language_model_to_train(str(tiny.llama))
    found = foreseen(model, collection, negatives=None)
    [batch] = batches(GROUPS, QUERY_BY_ID, collection, batch_size=8, negatives=0, seed=0, first_step=0, steps=1)
    pairs = [(query, group[0]) for query, group in zip(batch.queries, batch.documents, strict=True)]
    lengths = [len(ids) for turned in (False, True) for ids in model.inputs.pair_ids(pairs, turned=turned)]
    assert found.texts_per_step == {"texts": 8}
    assert found.tokens_per_step == sum(lengths) / 2
    assert found.longest == {"texts": max(lengths)}


@pytest.mark.slow
def test_steps_count_in_epochs_whose_last_step_may_be_short(retriever: DenseModel, collection: Collection):
    found = foreseen(retriever, collection, batch_size=3, steps=4)
    assert found.epochs == (8 + 3) / 8
    assert found.tokens == pytest.approx(found.tokens_per_step / 3 * 11)
    assert foreseen(retriever, collection, batch_size=100, steps=5).epochs == 5
    assert foreseen(retriever, collection, batch_size=100).texts_per_step["queries"] == 8


@pytest.mark.slow
def test_groups_with_fewer_negatives_than_asked_for_are_counted(retriever: DenseModel, collection: Collection):
    assert foreseen(retriever, collection).short_groups == 1
    assert foreseen(retriever, collection, negatives=2).short_groups == 0
    assert foreseen(retriever, collection, negatives=None).short_groups == 0


@pytest.mark.slow
def test_what_is_too_long_is_counted_by_kind(retriever: DenseModel, collection: Collection):
    plain = foreseen(retriever, collection)
    assert plain.cut == {"queries": 0, "documents": 0}
    batch = [*step_lengths(retriever, collection)[0][:4]]
    assert plain.longest["queries"] >= max(batch)
    cut_to(retriever, query=5, document=plain.longest["documents"] - 1)
    found = foreseen(retriever, collection)
    assert found.cut["queries"] == 1
    longest = [len(ids) == plain.longest["documents"] - 1 for ids in retriever.inputs.document_ids(DOCUMENTS)]
    assert 0 < sum(longest) < 12
    assert 0 < found.cut["documents"] < 1
    assert found.longest == plain.longest
    assert found.tokens < plain.tokens


@pytest.mark.slow
def test_a_text_of_just_the_length_is_not_cut(retriever: DenseModel, collection: Collection):
    plain = foreseen(retriever, collection)
    cut_to(retriever, query=plain.longest["queries"], document=plain.longest["documents"])
    assert foreseen(retriever, collection) == plain


@pytest.mark.slow
def test_a_reranker_reads_pairs(reranker: PointwiseModel, collection: Collection):
    found = foreseen(reranker, collection)
    assert found.texts_per_step == {"pairs": 31 / 2}
    assert found.cut == {"pairs": 0}
    cut_to(reranker, document=found.longest["pairs"] - 1)
    assert 0 < foreseen(reranker, collection).cut["pairs"] < 1


def test_a_query_that_leaves_no_room_is_an_error_before_the_training(reranker: PointwiseModel, collection: Collection):
    cut_to(reranker, document=8)
    with pytest.raises(UserError, match=r"query 'q\d+'"):
        foreseen(reranker, collection)


@pytest.mark.slow
def test_a_sample_is_bounded_and_comes_from_everywhere(retriever: DenseModel, collection: Collection):
    groups = [Group(f"q{i * 12 // 5000}", ("d1",), ("d2",)) for i in range(5000)]
    small = foreseen(retriever, collection, groups, batch_size=1, negatives=1)
    assert (small.sampled_batches, small.sampled_texts) == (MOST_BATCHES, 3 * MOST_BATCHES)
    large = foreseen(retriever, collection, groups, batch_size=100, negatives=1)
    assert (large.sampled_batches, large.sampled_texts) == (6, 1800)
    assert large.sampled_texts <= MOST_TEXTS
    assert foreseen(retriever, collection, groups, batch_size=3000, negatives=1).sampled_batches == 1
    ends = [Group("q0", ("d0",)), *[Group("q1", ("d1",))] * 998, Group("q3", ("d3",))]
    wordy = foreseen(retriever, collection, ends, batch_size=2)
    assert wordy.longest["documents"] == max(len(ids) for ids in retriever.inputs.document_ids([DOCUMENTS[3]]))


@pytest.mark.slow
def test_memory_is_that_of_the_largest_step_of_the_first_process(retriever: DenseModel, collection: Collection):
    retriever.backbone.embed_tokens.weight.requires_grad_(False)
    found = foreseen(retriever, collection, token_budget=10_000)
    steps = [
        [(len(rows), max(lengths[row] for row in rows)) for rows in token_batches(lengths, sum(lengths))]
        for lengths in step_lengths(retriever, collection)
    ]
    passes = max(steps, key=lambda passes: sum(rows * tokens for rows, tokens in passes))
    expected = step_memory(retriever, passes, device=torch.device("cpu"))
    assert found.memory == expected
    assert found.parameters - found.trainable == retriever.backbone.embed_tokens.weight.numel()
    narrow = foreseen(retriever, collection, token_budget=10_000, dtype=torch.bfloat16).memory
    assert expected.weights - narrow.weights == 2 * retriever.backbone.embed_tokens.weight.numel()


@pytest.mark.slow
def test_processes_share_the_activations_and_if_sharded_the_model(retriever: DenseModel, collection: Collection):
    alone = foreseen(retriever, collection).memory
    shared = foreseen(retriever, collection, processes=2).memory
    assert shared.activations < 0.7 * alone.activations
    assert shared.weights == alone.weights
    assert foreseen(retriever, collection, processes=2, sharded=True).memory.optimizer == alone.optimizer / 2
    assert foreseen(retriever, collection, cached=True).memory.activations < 0.7 * alone.activations


@pytest.mark.slow
def test_a_model_without_weights_gives_the_same_forecast(retriever: DenseModel, collection: Collection):
    expected = foreseen(retriever, collection)
    assert foreseen(retriever.to("meta"), collection) == expected


def test_the_lines_say_it_in_words(retriever: DenseModel, collection: Collection):
    found = foreseen(retriever, collection, processes=2)
    lines = {line[:15].strip(): line[15:] for line in found.lines()}
    assert lines["parameters"].endswith("of them train (100.0%)")
    assert lines["steps"] == "4, or 2 times through 8 groups"
    assert lines["negatives"] == "1 groups have fewer than asked for"
    assert lines["queries cut"] == f"0.0%; the longest has {found.longest['queries']} tokens"
    assert lines["sample"].endswith("from 39 in 2 batches")
    assert "GiB for each of 2 processes: an estimate" in lines["memory"]
    assert max(map(len, found.lines())) < 100
    paper = replace(found, parameters=6_700_000_000, trainable=80_000_000, steps=3833, tokens=1.2e9)
    assert "80,000,000 of them train (1.2%)" in "\n".join(paper.lines())
    values = json.loads(json.dumps(found.to_dict()))
    assert values["memory"]["total"] == found.memory.total
    assert math.isclose(values["tokens"], found.tokens)
