import math

import pytest
import torch
from named import load_retriever, reranker_to_train, retriever_to_train
from tiny import DOCUMENTS, QUERIES, Tiny
from torch import Tensor

from shortlist.math.losses import LOSSES
from shortlist.math.losses.contrastive import infonce
from shortlist.math.ranking import Ranking
from shortlist.models.kinds import KINDS
from shortlist.models.outputs import Rows
from shortlist.records import Document
from shortlist.text.hashes import document_text_hash
from shortlist.text.inputs import Inputs
from shortlist.train.examples import Batch
from shortlist.train.guide import Guide
from shortlist.train.losses import parse_losses
from shortlist.train.objectives import OBJECTIVES, countable, make_example
from shortlist.train.steps import Outcome


@pytest.fixture(scope="module")
def inputs(tiny: Tiny) -> Inputs:
    return retriever_to_train(str(tiny.llama), None).inputs


def test_whatever_has_scores_has_a_temperature():
    assert OBJECTIVES.keys() == {name for name, kind in KINDS.items() if kind.to_train}


SHARED = Batch(
    queries=QUERIES[:2],
    documents=[[DOCUMENTS[0], DOCUMENTS[5], DOCUMENTS[6]], [DOCUMENTS[1], DOCUMENTS[5]]],
    positives=[frozenset({"d0"}), frozenset({"d1", "d6"})],
    scores=[(3.0, 1.0, 0.0), (2.0, 4.0)],
    grades=[(2, 1, 0), ()],
)
"""A document in both groups, and one of the first group that answers the second query too."""


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Ranking]:
    """Every ranking that a loss was given."""
    seen: list[Ranking] = []

    def watched(ranking: Ranking, *, temperature: float = 1.0) -> Tensor:
        seen.append(ranking)
        return infonce(ranking, temperature=temperature)

    monkeypatch.setitem(LOSSES, "watched", watched)
    return seen


def test_a_retrievers_ranking_has_every_document_of_the_batch_and_what_is_known_of_it(
    inputs: Inputs, given: list[Ranking]
):
    outcome_of(SHARED, [[5.0, 4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0]], inputs, "watched")
    [ranking] = given
    assert ranking.scores.tolist() == [[5.0, 4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0]]
    assert ranking.keep.tolist() == [[True] * 4 + [False], [True, True, False, True, False]]
    assert ranking.relevance.tolist() == [[2, 1, 0, 0, 1], [0, 0, 0, 1, 0]]
    assert ranking.teacher is not None
    assert ranking.teacher.nan_to_num(-1).tolist() == [[3, 1, 0, -1, 1], [-1, 4, -1, 2, 4]]


def test_a_rerankers_ranking_has_each_querys_own_group(tiny: Tiny, given: list[Ranking]):
    inputs = reranker_to_train(str(tiny.llama), None, seed=0).inputs
    terms = parse_losses(["watched"], temperature=1.0)
    outcome = make_example("reranker", inputs, SHARED, terms).objective(Rows(torch.tensor([5.0, 4.0, 3.0, 1.0, 2.0])))
    [ranking] = given
    assert ranking.scores.tolist() == [[5.0, 4.0, 3.0], [1.0, 2.0, 0.0]]
    assert ranking.keep.tolist() == [[True] * 3, [True, True, False]]
    assert ranking.relevance.tolist() == [[2, 1, 0], [1, 0, 0]]
    assert ranking.teacher is not None
    assert ranking.teacher.nan_to_num(-1).tolist() == [[3, 1, 0], [2, 4, -1]]
    assert outcome.accuracy == 0.5


def test_without_grades_and_teacher_the_positive_is_1_and_there_is_no_teacher(inputs: Inputs, given: list[Ranking]):
    plain = SHARED._replace(scores=(), grades=())
    outcome_of(plain, [[5.0, 4.0, 3.0, 2.0, 1.0]] * 2, inputs, "watched")
    assert given[0].relevance.tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 1, 0]]
    assert given[0].teacher is None
    outcome_of(plain._replace(scores=[(), ()]), [[5.0, 4.0, 3.0, 2.0, 1.0]] * 2, inputs, "watched")
    assert given[1].teacher is None


def test_a_teacher_is_followed_among_the_documents_of_the_querys_own_group(inputs: Inputs):
    scores = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    found = outcome_of(SHARED, scores.tolist(), inputs, "kl").loss.item()
    places = [[0, 1, 2], [3, 1]]  # the shared document counts in its first column
    expected = 0.0
    for row, columns, teacher in zip(scores, places, SHARED.scores, strict=True):
        wanted, given = torch.tensor(teacher).softmax(0), row[columns].softmax(0)
        expected += (wanted * (wanted / given).log()).sum().item() / 2
    assert found == pytest.approx(expected, rel=1e-6)


def outcome_of(batch: Batch, scores: list[list[float]], inputs: Inputs, losses: str = "infonce") -> Outcome:
    """What a retriever's objective makes of these similarities: one-hot queries pick them out of the documents."""
    vectors = torch.cat([torch.eye(len(scores)), torch.tensor(scores).T])
    return make_example("retriever", inputs, batch, parse_losses(losses.split(), temperature=1.0)).objective(
        Rows(vectors)
    )


def test_another_positive_of_a_query_does_not_count_as_its_negative(inputs: Inputs):
    batch = Batch(
        QUERIES[:2], [[DOCUMENTS[0]], [DOCUMENTS[1], DOCUMENTS[2]]], [frozenset({"d0", "d2"}), frozenset({"d1"})]
    )
    outcome = outcome_of(batch, [[1.0, 0.0, 9.0], [0.0, 1.0, 2.0]], inputs)
    first = math.log(1 + math.exp(-1))  # d0 against d1; d2 is an answer too
    second = math.log(1 + math.exp(-1) + math.exp(1))
    assert outcome.loss.item() == pytest.approx((first + second) / 2)
    assert outcome.accuracy == 0.5


def test_a_document_counts_once_however_often_the_batch_holds_it(inputs: Inputs):
    shared = DOCUMENTS[5]
    batch = Batch(QUERIES[:2], [[DOCUMENTS[0], shared], [DOCUMENTS[1], shared]], [frozenset({"d0"}), frozenset({"d1"})])
    outcome = outcome_of(batch, [[2.0, 1.0, 0.0, 1.0], [0.0, 1.0, 2.0, 1.0]], inputs)
    assert outcome.loss.item() == pytest.approx(math.log(1 + math.exp(-1) + math.exp(-2)))


def test_a_positive_that_two_queries_share_stays_the_positive_of_both(inputs: Inputs):
    batch = Batch(QUERIES[:2], [[DOCUMENTS[0]], [DOCUMENTS[0]]], [frozenset({"d0"})] * 2)
    assert outcome_of(batch, [[1.0, 1.0], [1.0, 1.0]], inputs).loss.item() == pytest.approx(0.0, abs=1e-7)


def test_the_gradient_draws_the_positive_near_and_pushes_the_negatives_away(inputs: Inputs):
    batch = Batch(QUERIES[:1], [DOCUMENTS[:3]], [frozenset({"d0"})])
    vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [0.8, -0.6]], requires_grad=True)
    example = make_example("retriever", inputs, batch, parse_losses(["infonce"], temperature=1.0))
    example.objective(Rows(vectors)).loss.backward()
    assert vectors.grad is not None
    odds = torch.softmax(torch.tensor([0.6, 0.0, 0.8]), dim=0)
    expected = torch.stack([odds - torch.tensor([1.0, 0.0, 0.0]), torch.zeros(3)], dim=1)
    torch.testing.assert_close(vectors.grad[1:], expected)


def kept(doc_ids: str, own: list[int], positives: list[set[str]]) -> list[str]:
    """Rows of countable as strings of 0 and 1."""
    return ["".join(str(int(k)) for k in row) for row in countable(list(doc_ids), own, positives)]


def test_everything_counts_where_nothing_repeats():
    assert kept("abcd", [0, 2], [{"a"}, {"c"}]) == ["1111", "1111"]


def test_a_repeated_document_counts_in_its_first_column():
    assert kept("abcb", [0, 2], [{"a"}, {"c"}]) == ["1110", "1110"]


def test_another_positive_of_the_query_is_not_pushed_away():
    assert kept("abcd", [0, 2], [{"a", "d", "elsewhere"}, {"c"}]) == ["1110", "1111"]


def test_the_positive_of_two_queries_stays_with_each_of_them_in_its_own_column():
    assert kept("abac", [0, 2], [{"a"}, {"a"}]) == ["1101", "0111"]


def test_a_repeat_of_the_own_positive_does_not_count_against_it():
    assert kept("aabb", [0, 2], [{"a"}, {"b"}]) == ["1010", "1010"]


def test_the_own_positive_stays_even_where_it_is_not_listed():
    assert kept("abc", [1], [set()]) == ["111"]
    assert kept("bab", [2], [{"a"}]) == ["001"]


def test_one_set_of_positives_is_wanted_for_each_query():
    with pytest.raises(ValueError, match="zip"):
        countable(["a"], [0], [])


def twin(document: Document, doc_id: str) -> Document:
    """The same text under another id, but for case and white space."""
    return Document(doc_id, f"  {document.text.upper()}")


def test_a_text_is_no_negative_of_the_query_it_answers_under_another_id(inputs: Inputs):
    batch = Batch(
        QUERIES[:2], [[DOCUMENTS[0]], [twin(DOCUMENTS[0], "other")]], [frozenset({"d0"}), frozenset({"other"})]
    )
    assert outcome_of(batch, [[1.0, 1.0], [1.0, 1.0]], inputs).loss.item() == 0.0


def test_a_text_counts_once_under_any_id(inputs: Inputs):
    documents = [[DOCUMENTS[0], DOCUMENTS[5]], [DOCUMENTS[1], twin(DOCUMENTS[5], "other")]]
    batch = Batch(QUERIES[:2], documents, [frozenset({"d0"}), frozenset({"d1"})])
    outcome = outcome_of(batch, [[2.0, 1.0, 0.0, 1.0], [0.0, 1.0, 2.0, 1.0]], inputs)
    assert outcome.loss.item() == pytest.approx(math.log(1 + math.exp(-1) + math.exp(-2)))


def test_the_text_of_a_positive_outside_the_batch_is_no_negative(inputs: Inputs):
    batch = Batch(QUERIES[:2], [[DOCUMENTS[0]], [DOCUMENTS[1]]], [frozenset({"d0", "far"}), frozenset({"d1"})])
    batch = batch._replace(answers=[frozenset({document_text_hash(DOCUMENTS[1])}), frozenset()])
    first, second = 0.0, math.log(1 + math.exp(-1))
    assert outcome_of(batch, [[1.0, 9.0], [0.0, 1.0]], inputs).loss.item() == pytest.approx((first + second) / 2)


def test_the_first_of_equal_texts_in_a_group_says_how_relevant_they_are(inputs: Inputs, given: list[Ranking]):
    group = [DOCUMENTS[0], twin(DOCUMENTS[0], "other"), DOCUMENTS[1]]
    batch = Batch(QUERIES[:1], [group], [frozenset({"d0"})], grades=[(3, 1, 0)])
    outcome = outcome_of(batch, [[1.0, 5.0, 0.0]], inputs, "watched")
    assert given[0].keep.tolist() == [[True, False, True]]
    assert given[0].relevance.tolist() == [[3, 3, 0]]
    assert outcome.accuracy == 1.0


def test_a_reranker_does_not_push_away_the_text_of_a_positive(tiny: Tiny, given: list[Ranking]):
    inputs = reranker_to_train(str(tiny.llama), None, seed=0).inputs
    documents = [[DOCUMENTS[0], twin(DOCUMENTS[0], "other"), DOCUMENTS[2], DOCUMENTS[1]], [DOCUMENTS[3], DOCUMENTS[4]]]
    batch = Batch(QUERIES[:2], documents, [frozenset({"d0", "d2"}), frozenset({"d3"})])
    terms = parse_losses(["watched"], temperature=1.0)
    make_example("reranker", inputs, batch, terms).objective(Rows(torch.ones(6)))
    assert given[0].keep.tolist() == [[True, False, False, True], [True, True, False, False]]


STARTED = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0, 0.0]])


def test_the_start_models_scores_are_laid_out_as_the_models_are(tiny: Tiny, inputs: Inputs, given: list[Ranking]):
    terms = parse_losses(["watched", "anchor"], temperature=1.0)
    vectors = Rows(torch.cat([torch.eye(2), torch.zeros(5, 2)]))
    start = Rows(torch.cat([torch.eye(2), STARTED.T]))
    example = make_example("retriever", inputs, SHARED, terms)
    assert example.reads_start
    loss = example.objective(vectors, start_rows=start).loss
    assert given[0].start is not None
    assert given[0].start.tolist() == STARTED.tolist()
    assert loss > given[0].scores.new_tensor(math.log(4))  # the anchor has its part
    pairs = reranker_to_train(str(tiny.llama), None, seed=0).inputs
    example = make_example("reranker", pairs, SHARED, terms)
    example.objective(Rows(torch.zeros(5)), start_rows=Rows(torch.tensor([5.0, 4.0, 3.0, 1.0, 2.0])))
    assert given[1].start is not None
    assert given[1].start.tolist() == [[5.0, 4.0, 3.0], [1.0, 2.0, 0.0]]


def test_nobody_reads_the_start_where_no_loss_compares_with_it(inputs: Inputs, given: list[Ranking]):
    example = make_example("retriever", inputs, SHARED, parse_losses(["watched"], temperature=1.0))
    assert not example.reads_start
    assert not example.guide_ids
    example.objective(Rows(torch.zeros(7, 2)))
    assert given[0].start is None


@pytest.mark.parametrize("kind", ["retriever", "reranker"])
def test_what_a_guide_finds_near_the_positive_does_not_count(tiny: Tiny, given: list[Ranking], kind: str):
    guide = Guide(load_retriever(str(tiny.retriever)), margin=0.5)
    model = retriever_to_train(str(tiny.llama), None) if kind == "retriever" else None
    inputs = (model or reranker_to_train(str(tiny.llama), None, seed=0)).inputs
    example = make_example(kind, inputs, SHARED, parse_losses(["watched"], temperature=1.0), guide=guide)
    own = guide.model.inputs
    documents = [document for group in SHARED.documents for document in group]
    assert example.guide_ids == own.query_ids(SHARED.queries) + own.document_ids(documents)
    seen = torch.cat([torch.eye(2), torch.tensor([[1.0, 0.2], [0.9, 0.2], [0.4, 0.2], [0.8, 1.0], [0.0, 0.45]])])
    rows = Rows(torch.zeros(7, 2) if kind == "retriever" else torch.zeros(5))
    example.objective(rows, guide_rows=Rows(seen))
    example.objective(rows)
    found, unguided = (ranking.keep.tolist() for ranking in given)
    if kind == "retriever":
        assert unguided == [[True] * 4 + [False], [True, True, False, True, False]]
        # the second document of the first query is near, but judged relevant; that of the second query is near
        assert found == [[True, True, True, False, False], [True, True, False, True, False]]
    else:
        assert unguided == [[True] * 3, [True, True, False]]
        assert found == [[True] * 3, [True, True, False]]
    example = make_example(kind, inputs, SHARED._replace(grades=()), parse_losses(["watched"], temperature=1.0))
    guided = make_example(
        kind, inputs, SHARED._replace(grades=()), parse_losses(["watched"], temperature=1.0), guide=guide
    )
    guided.objective(rows, guide_rows=Rows(seen))
    expected = [[True, False, True, False, False], [True, True, False, True, False]]
    assert given[2].keep.tolist() == (expected if kind == "retriever" else [[True, False, True], [True, True, False]])


UNJUDGED = Batch(
    queries=QUERIES[:2],
    documents=[[DOCUMENTS[0], DOCUMENTS[5]], [DOCUMENTS[1], DOCUMENTS[6], DOCUMENTS[7]]],
    positives=[frozenset({"d0"}), frozenset()],
)
"""A judged query, and one whose list nobody judged."""


@pytest.mark.parametrize("kind", ["retriever", "reranker"])
def test_a_group_without_a_positive_has_grades_of_0_and_keeps_all_its_documents(
    tiny: Tiny, inputs: Inputs, given: list[Ranking], kind: str
):
    inputs = inputs if kind == "retriever" else reranker_to_train(str(tiny.llama), None, seed=0).inputs
    scores = torch.tensor([[2.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 3.0, 2.0]])
    rows = Rows(torch.cat([torch.eye(2), scores.T]) if kind == "retriever" else torch.tensor([2.0, 1.0, 1.0, 3.0, 2.0]))
    example = make_example(kind, inputs, UNJUDGED, parse_losses(["watched", "anchor"], temperature=1.0))
    outcome = example.objective(rows, start_rows=rows)
    [ranking] = given
    assert ranking.relevance.sum(1).tolist() == [1, 0]
    assert ranking.keep[1].sum() == (5 if kind == "retriever" else 3)
    assert outcome.accuracy == 1.0  # of the judged query alone
    nobody = UNJUDGED._replace(positives=[frozenset(), frozenset()])
    alone = make_example(kind, inputs, nobody, parse_losses(["anchor"], temperature=1.0))
    outcome = alone.objective(rows, start_rows=rows)
    assert outcome.accuracy == 0.0
    assert outcome.loss.item() == pytest.approx(0, abs=1e-6)
