import threading
import time
from collections.abc import Iterator

import pytest
from tiny import Tiny

from shortlist.data.collections import open_collection
from shortlist.errors import UserError
from shortlist.records import Group, Query
from shortlist.text.hashes import document_text_hash
from shortlist.train.examples import (
    Batch,
    ahead,
    batches,
    check_groups,
    draw_group,
    learn_together,
    num_steps,
    plan_steps,
    without_missing,
)

GROUPS = [Group(f"q{i}", (f"d{i}",), tuple(f"d{j}" for j in range(12) if j != i)) for i in range(5)]
QUERIES = {f"q{i}": Query(f"q{i}", f"query {i}") for i in range(5)}


def made(tiny: Tiny, groups: list[Group] = GROUPS, **options) -> list[Batch]:
    defaults = {"batch_size": 2, "negatives": 3, "seed": 0, "first_step": 0, "steps": 6}
    return list(batches(groups, QUERIES, open_collection(str(tiny.collection)), **(defaults | options)))


def ids(batch: Batch) -> list[list[str]]:
    return [[document.doc_id for document in group] for group in batch.documents]


def test_a_batch_is_queries_by_group_with_the_positive_first(tiny: Tiny):
    for batch in made(tiny, steps=2):
        assert len(batch.queries) == len(batch.documents) == len(batch.positives) == 2
        for query, group, positives in zip(batch.queries, ids(batch), batch.positives, strict=True):
            own = "d" + query.query_id[1:]
            assert group[0] == own
            assert len(set(group)) == 4
            assert positives == {own}


def test_the_last_batch_of_an_epoch_is_short_of_queries_and_none_is_left_out(tiny: Tiny):
    epoch = made(tiny, steps=3)
    assert [len(batch.queries) for batch in epoch] == [2, 2, 1]
    assert sorted(query.query_id for batch in epoch for query in batch.queries) == sorted(QUERIES)
    assert num_steps(5, 2, 1) == 3
    assert num_steps(4, 2, 3) == 6


def test_a_query_left_over_joins_the_step_before_it_where_it_would_have_no_negative(tiny: Tiny):
    for epochs in (1, 2):
        steps = num_steps(5, 2, epochs, merge=True)
        merged = made(tiny, steps=steps, merge=True)
        assert [len(batch.queries) for batch in merged] == [2, 3] * epochs
        assert made(tiny, steps=steps, merge=True, first_step=steps - 1) == merged[-1:]
    assert num_steps(6, 2, 1, merge=True) == 3
    assert num_steps(1, 2, 1, merge=True) == 1
    alone = [group._replace(negatives=()) for group in GROUPS]
    assert learn_together("retriever", alone, None)
    assert learn_together("retriever", GROUPS, 0)
    assert not learn_together("retriever", GROUPS, None)
    assert not learn_together("reranker", alone, None)


def test_queries_with_equal_texts_share_their_positives(tiny: Tiny):
    groups = [Group("q0", ("d0",), ("d3",)), Group("q1", ("d1",), ("d4",)), Group("q2", ("d2",))]
    queries = QUERIES | {"q1": Query("q1", "QUERY  0")}
    collection = open_collection(str(tiny.collection))
    [batch] = batches(groups, queries, collection, batch_size=3, negatives=3, seed=0, first_step=0, steps=1)
    found = {query.query_id: doc_ids for query, doc_ids in zip(batch.queries, batch.positives, strict=True)}
    assert found == {"q0": {"d0", "d1"}, "q1": {"d0", "d1"}, "q2": {"d2"}}


def test_judged_documents_are_positives_too_but_for_a_groups_own_negatives(tiny: Tiny):
    judged = {"q0": frozenset({"d3", "d5", "missing"}), "elsewhere": frozenset({"d9"})}
    [batch] = made(tiny, [Group("q0", ("d0",), ("d3",))], batch_size=1, steps=1, judged=judged)
    assert batch.positives == [{"d0", "d5", "missing"}]
    [five] = open_collection(str(tiny.collection)).documents(["d5"]).values()
    assert batch.answers == [{document_text_hash(five)}]


def test_batches_go_on_from_any_step_as_if_never_interrupted(tiny: Tiny):
    whole = made(tiny)
    for first_step in range(1, 6):
        assert made(tiny, first_step=first_step) == whole[first_step:]


def test_all_positives_are_named_though_one_is_drawn(tiny: Tiny):
    groups = [Group("q0", ("d0", "d1", "d2"), ("d3",))]
    seen = made(tiny, groups, batch_size=1, steps=12)
    assert {group[0] for batch in seen for group in ids(batch)} == {"d0", "d1", "d2"}
    assert {batch.positives[0] for batch in seen} == {frozenset({"d0", "d1", "d2"})}
    assert all(group[1:] == ["d3"] for batch in seen for group in ids(batch))


def test_a_positive_of_one_group_is_known_in_the_querys_other_groups(tiny: Tiny):
    groups = [Group("q0", ("d0",), ("d3",)), Group("q0", ("d1",), ("d4",)), Group("q1", ("d2",))]
    for batch in made(tiny, groups, batch_size=3, steps=1):
        assert dict(zip([q.query_id for q in batch.queries], batch.positives, strict=True)) == {
            "q0": frozenset({"d0", "d1"}),
            "q1": frozenset({"d2"}),
        }
        assert sum(positives == {"d0", "d1"} for positives in batch.positives) == 2


def test_a_document_keeps_its_score_and_its_grade_wherever_it_is_drawn(tiny: Tiny):
    negatives = tuple(f"d{j}" for j in range(2, 12))
    scores, grades = tuple(float(j) for j in range(12)), (3, 2, *[1] * 5, *[0] * 5)
    for batch in made(tiny, [Group("q0", ("d0", "d1"), negatives, scores, grades)], batch_size=1, steps=12):
        places = [int(doc_id[1:]) for doc_id in ids(batch)[0]]
        assert list(batch.scores) == [tuple(float(place) for place in places)]
        assert list(batch.grades) == [tuple(grades[place] for place in places)]
    for graded in made(tiny, [Group("q0", ("d0", "d1"), negatives, (), grades)], batch_size=1, steps=1):
        assert (list(graded.scores), len(graded.grades[0])) == ([()], 4)


def test_seed_and_epoch_alone_decide_the_draw():
    def draw(epoch: int, seed: int) -> list[Group]:
        [(found, numbers)] = plan_steps(5, batch_size=5, seed=seed, first_step=epoch, steps=epoch + 1)
        assert found == epoch
        return [draw_group(GROUPS[i], i, epoch=epoch, seed=seed, negatives=3) for i in numbers]

    assert draw(1, 7) == draw(1, 7)
    assert [g.query_id for g in draw(0, 7)] != [g.query_id for g in draw(1, 7)]
    assert draw(0, 7) != draw(0, 8)


def test_every_epoch_takes_another_slice_of_the_negatives():
    slices = [
        {
            group.query_id: set(draw_group(group, number, epoch=epoch, seed=0, negatives=3).negatives)
            for number, group in enumerate(GROUPS)
        }
        for epoch in range(3)
    ]
    for query_id in QUERIES:
        first, second, third = (epoch[query_id] for epoch in slices)
        assert len(first | second | third) == 9  # of 11: none twice before all were used


def test_groups_differ_in_their_slices():
    same = [Group(f"q{i}", ("p",), tuple(f"n{j}" for j in range(50))) for i in range(4)]
    drawn = [draw_group(group, number, epoch=0, seed=0, negatives=5) for number, group in enumerate(same)]
    assert len({group.negatives for group in drawn}) == 4


@pytest.mark.parametrize("negatives", [None, 0, 3])
def test_a_teachers_scores_go_with_their_documents(tiny: Tiny, negatives: int | None):
    groups = [
        Group(
            f"q{i}",
            (f"d{i}", f"d{i + 5}"),
            ("d10", "d11", f"d{i + 1}", f"d{i + 6}"),
            tuple(100 * i + j for j in (i, i + 5, 10, 11, i + 1, i + 6)),
        )
        for i in range(4)
    ]
    for batch in made(tiny, groups, negatives=negatives, steps=8):
        assert len(batch.scores) == len(batch.queries)
        for query, group, scores in zip(batch.queries, ids(batch), batch.scores, strict=True):
            assert list(scores) == [100 * int(query.query_id[1:]) + int(doc_id[1:]) for doc_id in group]


def test_without_a_number_all_negatives_are_used():
    for group in (draw_group(group, i, epoch=3, seed=0, negatives=None) for i, group in enumerate(GROUPS)):
        assert group.negatives == GROUPS[int(group.query_id[1:])].negatives


def test_groups_without_a_query_are_refused():
    with pytest.raises(UserError, match=r"here: 1 of 2 queries are not in the collection, the first 'x'"):
        check_groups([GROUPS[0], Group("x", ("d0",))], QUERIES, where="here")
    with pytest.raises(UserError, match="here: no groups"):
        check_groups([], QUERIES, where="here")
    check_groups(GROUPS, QUERIES, where="here")


def test_working_ahead_keeps_the_order_and_everything():
    assert list(ahead(iter(range(20)))) == list(range(20))
    assert list(ahead(iter([]))) == []


def test_working_ahead_goes_no_further_than_asked():
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            yield i

    stream = ahead(items(), depth=2)
    next(stream)
    time.sleep(0.1)
    assert len(made) <= 4  # one used, two waiting, one in hand


def test_an_error_of_the_thread_surfaces_where_the_items_are_used():
    def items() -> Iterator[int]:
        yield 1
        raise UserError("no such document")

    stream = ahead(items())
    assert next(stream) == 1
    with pytest.raises(UserError, match="no such document"):
        next(stream)


def test_the_thread_ends_when_nobody_wants_more():
    before = threading.active_count()
    stream = ahead(iter(range(1000)))
    next(stream)
    stream.close()
    deadline = time.monotonic() + 60
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() == before


def test_what_the_collection_lacks_is_left_out_of_groups_with_its_scores_and_grades(tiny: Tiny, capsys):
    groups = [
        Group("q0", ("gone", "d0"), ("d1", "lost"), (4.0, 3.0, 2.0, 1.0), (2, 1, 0, 0)),
        Group("q1", ("gone",), ("d1",)),
        Group("q2", ("d2",), ("d1",)),
        Group("q9", ("d2",)),
    ]
    kept = without_missing(groups, QUERIES, open_collection(str(tiny.collection)))
    assert kept == [Group("q0", ("d0",), ("d1",), (3.0, 2.0), (1, 0)), groups[2]]
    message = "left out 2 of 5 documents and 1 of 4 queries, which the collection lacks; 2 groups have a positive"
    assert message in capsys.readouterr().err
    assert without_missing(groups[2:3], QUERIES, open_collection(str(tiny.collection))) == groups[2:3]
    assert capsys.readouterr().err == ""
