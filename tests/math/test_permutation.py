import math
import random
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist.math.permutation import (
    PLANS,
    Count,
    Plan,
    Question,
    Round,
    Verdict,
    all_at_once,
    all_pairs,
    count_questions,
    exclusion,
    groups,
    halving_rounds,
    in_both_orders,
    listwise,
    pair_bubblesort,
    pair_heapsort,
    run_plan,
    run_plans,
    set_bubblesort,
    set_heapsort,
    set_insertion,
    sliding_pairs,
    tournaments,
)

Answers = Callable[[list[Question]], list[Verdict]]
NAN = float("nan")
SHUFFLES = [np.random.default_rng(seed).permutation(100).tolist() for seed in range(200)]
SORTS: dict[str, Callable[[int, int], Plan]] = {
    "pair_heapsort": lambda num_docs, k: pair_heapsort(num_docs, k=k),
    "pair_bubblesort": lambda num_docs, k: pair_bubblesort(num_docs, k=k),
    "sliding_pairs": lambda num_docs, k: sliding_pairs(num_docs, passes=k),
    **{
        f"{name} {children}": lambda num_docs, k, name=name, children=children: PLANS[name](
            num_docs, k=k, children=children
        )
        for name in ("set_heapsort", "set_bubblesort", "set_insertion")
        for children in (2, 3, 9, 19)
    },
}
ANY: dict[str, Callable[[int, int, int], Plan]] = {
    "listwise": lambda num_docs, k, window: listwise(num_docs, window=window, stride=1 + k, passes=2),
    "all_pairs": lambda num_docs, k, window: all_pairs(num_docs),
    "pair_heapsort": lambda num_docs, k, window: pair_heapsort(num_docs, k=k),
    "pair_bubblesort": lambda num_docs, k, window: pair_bubblesort(num_docs, k=k),
    "sliding_pairs": lambda num_docs, k, window: sliding_pairs(num_docs, passes=k),
    "set_heapsort": lambda num_docs, k, window: set_heapsort(num_docs, k=k, children=window - 1),
    "set_bubblesort": lambda num_docs, k, window: set_bubblesort(num_docs, k=k, children=window - 1),
    "set_insertion": lambda num_docs, k, window: set_insertion(num_docs, k=k, children=window - 1),
    "tournaments": lambda num_docs, k, window: tournaments(num_docs, repeats=1 + k % 3),
    "exclusion": lambda num_docs, k, window: exclusion(num_docs, window=window),
    "groups": lambda num_docs, k, window: groups(num_docs, size=window, repeats=1 + k % 3),
    "all_at_once": lambda num_docs, k, window: all_at_once(num_docs),
}
"""Every plan for a number of documents, a k and a window."""


def by(labels: Sequence[float]) -> Answers:
    """Answer with the documents' labels, and refuse what is no comparison."""

    def answer(questions: list[Question]) -> list[Verdict]:
        assert questions
        assert all(len(set(question)) == len(question) >= 2 for question in questions)
        return [[float(labels[document]) for document in question] for question in questions]

    return answer


def best_only(labels: Sequence[float]) -> Answers:
    """Say of each question only which document is best."""

    def answer(questions: list[Question]) -> list[Verdict]:
        bests = [max(question, key=lambda document: labels[document]) for question in questions]
        return [[float(doc == best) for doc in question] for question, best in zip(questions, bests, strict=True)]

    return answer


def moody(seed: int, scores: Sequence[float] = (NAN, 0.0, 0.0, 1.0, 2.0)) -> Answers:
    """Answer each question at random, and always the same."""
    return lambda questions: [
        random.Random(hash((seed, *question))).choices(scores, k=len(question)) for question in questions
    ]


def silent(questions: list[Question]) -> list[Verdict]:
    return [[NAN] * len(question) for question in questions]


def asked(plan: Plan, answer: Answers) -> list[list[Question]]:
    """Run a plan and return its questions, round by round."""
    rounds: list[list[Question]] = []

    def keep(questions: list[Question]) -> list[Verdict]:
        rounds.append(questions)
        return answer(questions)

    run_plan(plan, keep)
    return rounds


def order(scores: np.ndarray) -> list[int]:
    """The placed documents, best first."""
    return np.argsort(-scores, kind="stable")[: np.isfinite(scores).sum()].tolist()


def ideal(labels: Sequence[float]) -> list[int]:
    return sorted(range(len(labels)), key=lambda document: -labels[document])


# ---- both orders


def test_shown_in_both_orders_a_liking_for_a_place_cancels():
    labels = [3, 9, 1, 7, 5, 8]

    def likes_the_first(questions: list[Question]) -> list[Verdict]:
        return [[labels[doc] + 5.0 * (place == 0) for place, doc in enumerate(question)] for question in questions]

    def plan(num_docs: int) -> Plan:
        return set_heapsort(num_docs, k=6, children=1)

    assert order(run_plan(plan(6), likes_the_first)) != ideal(labels)
    assert order(run_plan(in_both_orders(plan, 6), likes_the_first)) == ideal(labels)
    one, both = count_questions(plan(6)), count_questions(in_both_orders(plan, 6))
    assert both == Count(2 * one.questions, one.rounds, 2 * one.documents)


def test_in_both_orders_each_document_has_the_mean_of_its_scores():
    told: list[list[Verdict]] = []

    def one_question(num_docs: int) -> Plan:
        told.append((yield [(0, 1, 2)]))
        return np.arange(num_docs, dtype=float)

    answers: dict[Question, Verdict] = {(0, 1, 2): [1.0, NAN, NAN], (2, 1, 0): [NAN, 4.0, 2.0]}
    run_plan(in_both_orders(one_question, 3), lambda questions: [answers[question] for question in questions])
    [[scores]] = told
    assert scores[:2] == [1.5, 4.0]
    assert math.isnan(scores[2])


# ---- sorts


@pytest.mark.parametrize(
    ("name", "in_order", "upside_down", "shuffled"),
    [
        ("pair_heapsort", 203, 292, 278),
        ("pair_bubblesort", 99, 945, 933),
        ("sliding_pairs", 945, 945, 945),
        ("set_heapsort 2", 102, 147, 140),
        ("set_heapsort 3", 69, 83, 82),
        ("set_heapsort 9", 30, 39, 31),
        ("set_heapsort 19", 19, 25, 23),
        ("set_bubblesort 2", 475, 475, 475),
        ("set_bubblesort 3", 318, 318, 318),
        ("set_bubblesort 9", 109, 109, 109),
        ("set_bubblesort 19", 54, 54, 54),
    ],
)
def test_sorts_ask_as_often_as_those_of_llm_rankers(name: str, in_order: int, upside_down: int, shuffled: int):
    calls = 2 if "pair" in name else 1
    few = SHUFFLES[:2] if "bubble" in name or "sliding" in name else SHUFFLES[:10]
    assert count_questions(SORTS[name](100, 10), by(range(100, 0, -1))).questions == in_order * calls
    assert count_questions(SORTS[name](100, 10)).questions == upside_down * calls
    mean = np.mean([count_questions(SORTS[name](100, 10), by(labels)).questions for labels in few])
    assert mean == pytest.approx(shuffled * calls, rel=0.02, abs=0.6)


@pytest.mark.parametrize("name", SORTS)
def test_perfect_answers_give_the_right_top_and_equal_grades_keep_their_order(name: str):
    for number, shuffle in enumerate(SHUFFLES):
        labels = [label for label in shuffle if label < 12]
        grades = labels if number % 2 else [label % 4 for label in labels]
        assert order(run_plan(SORTS[name](12, 5), by(grades)))[:5] == ideal(grades)[:5]


@pytest.mark.parametrize("name", [name for name in SORTS if name.startswith("set_")])
def test_sets_need_to_be_told_only_which_document_is_best(name: str):
    for labels in SHUFFLES[:5]:
        told = [run_plan(SORTS[name](30, 5), answer(labels)) for answer in (by, best_only)]
        assert np.array_equal(*told, equal_nan=True)


@pytest.mark.parametrize("name", SORTS)
@pytest.mark.parametrize("num_docs", [0, 1, 2, 3, 4])
def test_sorts_take_lists_of_any_length(name: str, num_docs: int):
    for labels in ([*range(num_docs)], [*range(num_docs, 0, -1)]):
        scores = run_plan(SORTS[name](num_docs, 3), by(labels))
        assert order(scores)[:3] == ideal(labels)[:3]
        assert np.isfinite(scores).sum() == (num_docs if name == "sliding_pairs" else min(3, num_docs))
        assert scores.max(initial=num_docs, where=np.isfinite(scores)) == num_docs


def test_documents_behind_the_k_best_have_no_score():
    assert run_plan(set_heapsort(4, k=2, children=3), by([0, 2, 1, 3])).tolist()[1::2] == [3, 4]
    assert np.isnan(run_plan(set_heapsort(4, k=2, children=3), by([0, 2, 1, 3]))[::2]).all()


def test_a_pair_is_undecided_unless_both_orders_agree():
    def first_shown(questions: list[Question]) -> list[Verdict]:
        return [[1.0, 0.0]] * len(questions)

    for name in ("pair_heapsort", "pair_bubblesort", "sliding_pairs"):
        assert order(run_plan(SORTS[name](9, 3), first_shown))[:3] == [0, 1, 2]
    assert run_plan(all_pairs(3), first_shown) == pytest.approx([1, 1, 1], abs=1e-4)


def test_heaps_ask_about_separate_branches_together():
    rounds = asked(set_heapsort(100, k=1, children=3), by(SHUFFLES[0]))
    assert len(rounds[0]) == 20  # places 13 to 32 of 100 have children and are on one level
    for together in asked(pair_heapsort(100, k=1), by(SHUFFLES[0])):
        pairs = [frozenset(question) for question in together[::2]]
        assert len(frozenset.union(*pairs)) == 2 * len(pairs)


def test_a_good_first_stage_saves_insertion_questions():
    heap, insertion = (
        count_questions(PLANS[name](100, k=10, children=2), by(range(100, 0, -1))).questions
        for name in ("set_heapsort", "set_insertion")
    )
    assert insertion < 0.8 * heap
    challenges = asked(set_insertion(7, k=2, children=2), by([6, 7, 1, 9, 2, 3, 4]))
    assert challenges == [[(0, 1)], [(0, 2, 3)], [(1, 3)], [(1, 2, 4)], [(1, 5, 6)]]


def test_passes_of_bubblesorts_follow_one_another_closely():
    assert count_questions(pair_bubblesort(100, k=10)) == Count(1890, 108, 3780)
    assert count_questions(sliding_pairs(100)) == Count(1890, 108, 3780)
    assert count_questions(set_bubblesort(100, k=10, children=9)) == Count(109, 28, 1054)


@pytest.mark.parametrize("seed", range(20))
def test_bubblesort_in_one_go_gives_what_it_gives_pass_by_pass(seed: int):
    answer = moody(seed)
    documents, asks, start = list(range(20)), 0, 19
    for place in range(8):
        swap = None
        for low in range(start, place, -1):
            upper, lower = documents[low - 1 : low + 1]
            asks += 2
            there, back = answer([(upper, lower), (lower, upper)])
            if is_better(there[1], there[0]) and is_better(back[0], back[1]):
                documents[low - 1 : low + 1] = lower, upper
                swap = swap or low
        start = min(19, swap + 1) if swap else 0
    assert order(run_plan(pair_bubblesort(20, k=8), answer)) == documents[:8]
    assert count_questions(pair_bubblesort(20, k=8), answer).questions == asks


def is_better(score: float, other: float) -> bool:
    return score > other or (np.isnan(other) and not np.isnan(score))


# ---- windows


def spans(num_docs: int, **settings: int) -> list[tuple[int, int]]:
    rounds = asked(listwise(num_docs, **settings), by(range(num_docs, 0, -1)))
    return [(question[0], question[-1] + 1) for questions in rounds for question in questions]


def test_windows_slide_to_the_first_document():
    assert spans(100) == [(start, start + 20) for start in range(80, -1, -10)]
    assert len(spans(95)) == 9
    assert spans(95)[0] == (75, 95)
    assert spans(95)[-2:] == [(5, 25), (0, 15)]
    assert spans(25) == [(5, 25), (0, 15)]
    assert [spans(num_docs) for num_docs in (0, 1, 2, 10, 20)] == [[], [], [(0, 2)], [(0, 10)], [(0, 20)]]
    assert spans(21, window=20, stride=99) == [(1, 21), (0, 2)]


@given(
    num_docs=st.integers(0, 60),
    window=st.integers(2, 25),
    stride=st.integers(1, 30),
    passes=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_every_document_is_read_in_windows_of_the_right_size(
    num_docs: int, window: int, stride: int, passes: int, seed: int
):
    rounds = asked(listwise(num_docs, window=window, stride=stride, passes=passes), moody(seed))
    questions = [question for together in rounds for question in together]
    assert sorted({document for question in questions for document in question}) == list(
        range(num_docs if num_docs > 1 else 0)
    )
    assert all(2 <= len(question) <= window for question in questions)


@pytest.mark.parametrize(("num_docs", "window", "stride"), [(100, 20, 10), (95, 20, 10), (37, 10, 4), (8, 20, 10)])
def test_one_pass_of_windows_brings_the_best_to_the_head(num_docs: int, window: int, stride: int):
    for shuffle in SHUFFLES[:50]:
        grades = [float(label % 7) for label in shuffle[:num_docs]]
        top = window - stride
        scores = run_plan(listwise(num_docs, window=window, stride=stride), by(grades))
        assert order(scores)[:top] == ideal(grades)[:top]
        assert sorted(scores) == list(range(1, num_docs + 1))


@pytest.mark.parametrize("seed", range(20))
def test_passes_of_windows_may_overlap_in_time_without_a_difference(seed: int):
    answer = moody(seed)
    documents = list(range(50))
    for _ in range(3):
        for start in range(30, -1, -10):
            shown = documents[start : start + 20]
            [scores] = answer([tuple(shown)])
            documents[start : start + 20] = [shown[at] for at in np.argsort(-np.array(scores), kind="stable")]
    assert order(run_plan(listwise(50, passes=3), answer)) == documents
    assert count_questions(listwise(50, passes=3)) == Count(12, 8, 240)


def test_documents_left_out_of_an_answer_come_last_as_they_were_shown():
    assert order(run_plan(listwise(5), lambda _: [[NAN, 1.0, NAN, 1.0, 2.0]])) == [4, 1, 3, 0, 2]
    assert order(run_plan(set_heapsort(3, k=1, children=2), lambda _: [[NAN, -5.0, NAN]])) == [1]


# ---- points


def test_all_pairs_add_up_wins_and_halves():
    def answer(questions: list[Question]) -> list[Verdict]:
        said: dict[Question, Verdict] = {
            (0, 1): [1.0, 0.0],
            (1, 0): [1.0, 0.0],
            (0, 2): [0.0, 1.0],
            (2, 0): [1.0, 0.0],
            (1, 2): [NAN, NAN],
            (2, 1): [1.0, 0.0],
        }
        assert sorted(questions) == sorted(said)
        return [said[question] for question in questions]

    assert run_plan(all_pairs(3), answer) == pytest.approx(
        [0.5, 1, 1.5], abs=1e-4
    )  # 2 beats 0 twice; the others are undecided


def test_all_pairs_keep_documents_that_never_win_and_the_order_of_equals():
    scores = run_plan(all_pairs(6), by([1, 3, 1, 3, 0, 1]))
    assert scores == pytest.approx([2, 4.5, 2, 4.5, 0, 2], abs=1e-4)
    assert order(scores) == [1, 3, 0, 2, 5, 4]
    assert len(set(scores.astype(np.float32))) == 6
    assert count_questions(all_pairs(100)) == Count(9900, 1, 19800)


def test_a_tournament_of_a_hundred_is_played_in_five_rounds():
    rounds = asked(tournaments(100, repeats=1), by(SHUFFLES[0]))
    assert [[len(group) for group in groups] for groups in rounds] == [[20] * 5, [10] * 5, [20], [10], [5]]
    assert [sorted(group) for group in rounds[0]] == [list(range(first, 100, 5)) for first in range(5)]
    assert all(group != tuple(sorted(group)) for group in rounds[0])
    left = sorted(document for group in rounds[1] for document in group)
    assert [sorted(group) for group in rounds[1]] == [left[first::5] for first in range(5)]


def test_every_round_survived_is_a_point():
    for labels in SHUFFLES[:20]:
        scores = run_plan(tournaments(100, repeats=3), by(labels))
        points = np.round(scores).astype(int)
        assert (np.bincount(points) > 0).nonzero()[0].tolist() == [
            0,
            3,
            6,
            9,
            12,
            15,
        ]  # answers were perfect all 3 times
        assert [(points >= least).sum() for least in (3, 6, 9, 12, 15)] == [50, 20, 10, 5, 2]
        assert sorted(order(scores)[:2]) == sorted(ideal(labels)[:2])
        assert all(points[one] > points[other] or one < other for one, other in pairwise(order(scores)))


def test_tournaments_do_not_wait_for_each_other_and_are_shuffled_apart():
    assert count_questions(tournaments(100, repeats=10)) == Count(130, 5, 10 * 185)
    [first, *_] = asked(tournaments(100, repeats=2, seed=1), silent)
    assert set(first[0]) == set(first[5])
    assert first[0] != first[5]
    assert first[:5] == asked(tournaments(100, repeats=1, seed=1), silent)[0]
    assert first[:5] != asked(tournaments(100, repeats=1, seed=2), silent)[0]


def test_tournaments_of_other_sizes_keep_about_half_in_each_round():
    assert halving_rounds(100) == [Round(5, 50), Round(5, 20), Round(1, 10), Round(1, 5), Round(1, 2)]
    assert halving_rounds(60) == [Round(5, 20), Round(1, 10), Round(1, 5), Round(1, 2)]
    assert [round.survivors for round in halving_rounds(1000)] == [500, 200, 100, 50, 20, 10, 5, 2]
    assert [halving_rounds(num_docs) for num_docs in (0, 1, 2, 3)] == [[], [], [Round(1, 1)], [Round(1, 2)]]
    for num_docs in range(2, 300):
        left = num_docs
        for round in halving_rounds(num_docs):
            assert 0.31 * left < round.survivors < 0.8 * left
            assert left <= 20 * round.groups
            left = round.survivors


def test_rounds_of_a_tournament_can_be_chosen():
    rounds = asked(
        tournaments(7, rounds=[Round(9, 8), Round(3, 7), Round(9, 4), Round(2, 1)], repeats=1), by([*range(7)])
    )
    assert [[sorted(group) for group in groups] for groups in rounds] == [[[0, 3, 6], [1, 4], [2, 5]], [[3, 4, 5, 6]]]


def test_exclusion_asks_for_the_worst_until_one_is_left():
    assert asked(exclusion(4), by([3, 1, 4, 2])) == [[(0, 1, 2, 3)], [(0, 2, 3)], [(0, 2)]]
    for shuffle in SHUFFLES[:20]:
        grades = [float(label % 5) for label in shuffle[:30]]
        assert order(run_plan(exclusion(30, window=30), by(grades))) == ideal(grades)
    assert count_questions(exclusion(100)).questions == 99


def test_exclusion_with_a_window_finds_the_best_of_one_document_less():
    for labels in SHUFFLES[:20]:
        assert order(run_plan(exclusion(100, window=11), by(labels)))[:10] == ideal(labels)[:10]
    assert asked(exclusion(4, window=2), by([3, 1, 4, 2])) == [[(2, 3)], [(1, 2)], [(0, 2)]]


def test_groups_are_shuffled_repeated_and_averaged():
    [questions] = asked(groups(25, size=10, repeats=3), silent)
    assert [len(question) for question in questions] == [9, 8, 8] * 3
    assert all(sorted(sum(questions[at : at + 3], ())) == list(range(25)) for at in (0, 3, 6))
    assert len({tuple(sorted(question)) for question in questions}) == 9
    answers = {question: [float(at + document) for document in question] for at, question in enumerate(questions)}
    scores = run_plan(groups(25, size=10, repeats=3), lambda questions: [answers[question] for question in questions])
    places = [[at for at, question in enumerate(questions) if document in question] for document in range(25)]
    assert scores == pytest.approx([document + np.mean(at) for document, at in enumerate(places)], abs=1e-3)


def test_a_document_that_no_answer_spoke_of_is_not_placed():
    said = {0: [NAN, NAN], 1: [2.0, NAN], 2: [NAN, 4.0], 3: [1.0, 2.0], 4: [float("-inf"), 0.0]}
    rounds = iter([0, 1])

    def answer(questions: list[Question]) -> list[Verdict]:
        return [
            [said[document][repeat] for document in question]
            for repeat in rounds
            for question in halves(questions, repeat)
        ]

    def halves(questions: list[Question], repeat: int) -> list[Question]:
        return questions[repeat * 2 : repeat * 2 + 2]

    scores = run_plan(groups(5, size=3, repeats=2), answer)
    assert np.isnan(scores).tolist() == [True, False, False, False, False]
    assert order(scores) == [2, 1, 3, 4]


def test_groups_of_one_are_single_documents_and_groups_of_two_leave_none_alone():
    [questions] = asked(groups(3, size=1), silent)
    assert sorted(questions) == [(0,), (1,), (2,)]
    [questions] = asked(groups(5, size=2), silent)
    assert [len(question) for question in questions] == [2, 2, 2]
    assert set(sum(questions, ())) == set(range(5))
    assert asked(groups(1, size=2), silent) == []


# ---- every plan


@pytest.mark.parametrize("name", PLANS)
@given(num_docs=st.integers(0, 30), k=st.integers(0, 12), window=st.integers(2, 12), seed=st.integers(0, 999))
@settings(max_examples=30)
def test_no_answer_breaks_a_plan(name: str, num_docs: int, k: int, window: int, seed: int):
    answer = moody(seed, (NAN, 0.0, 0.0, 1.0, 2.0, float("inf"), -float("inf")))

    def compare(questions: list[Question]) -> list[Verdict]:
        assert questions
        assert all(len(set(question)) == len(question) >= 2 for question in questions)
        return answer(questions)

    scores = run_plan(ANY[name](num_docs, k, window), compare)
    placed = scores[~np.isnan(scores)]
    assert scores.shape == (num_docs,)
    assert np.isfinite(placed).all()
    assert len(set(placed.astype(np.float32))) == len(placed)
    if "sort" in name or "insertion" in name:
        assert len(placed) == min(k, num_docs)
    elif name not in ("groups", "all_at_once"):
        assert len(placed) == num_docs


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("num_docs", [0, 1, 2, 7, 30])
def test_a_plan_that_is_told_nothing_leaves_the_order_as_it_is(name: str, num_docs: int):
    scores = run_plan(ANY[name](num_docs, 5, 4), silent)
    assert order(scores) == list(range(np.isfinite(scores).sum()))


def test_a_whole_list_is_asked_about_once_and_keeps_its_scores():
    [[question]] = asked(all_at_once(4), silent)
    assert question == (0, 1, 2, 3)
    scores = run_plan(all_at_once(4), lambda questions: [[-3.0, -1.0, NAN, -2.0]])
    np.testing.assert_allclose(scores, [-3, -1, NAN, -2], atol=1e-5)
    assert asked(all_at_once(1), silent) == []


def test_settings_too_small_to_compare_anything_are_refused():
    for plan in (listwise(9, window=1), listwise(9, stride=0), exclusion(9, window=1), groups(9, size=0)):
        with pytest.raises(ValueError, match=r"must be at least \d, not \d"):
            run_plan(plan, silent)
    for name in ("set_heapsort", "set_bubblesort", "set_insertion"):
        with pytest.raises(ValueError, match="children must be at least 1, not 0"):
            run_plan(PLANS[name](9, k=3, children=0), silent)


# ---- many lists


def test_lists_advance_together_and_drop_out_when_they_are_finished():
    lists = [SHUFFLES[0][:30], [1.0], [], SHUFFLES[1][:45], [1.0, 2.0]]
    batches: list[list[tuple[int, Question]]] = []

    def answer(asked: list[tuple[int, Question]]) -> list[Verdict]:
        batches.append(asked)
        return [[float(lists[number][document]) for document in question] for number, question in asked]

    ended = list(run_plans([listwise(len(labels)) for labels in lists], answer))
    assert [number for number, _ in ended] == [1, 2, 4, 0, 3]
    assert [[number for number, _ in batch] for batch in batches] == [[0, 3, 4], [0, 3], [3], [3]]
    for number, scores in ended:
        assert np.array_equal(scores, run_plan(listwise(len(lists[number])), by(lists[number])))


def test_lists_finish_as_soon_as_their_last_answer_is_there():
    running = run_plans([listwise(20), listwise(100)], lambda asked: [[0.0] * len(shown) for _, shown in asked])
    assert next(running)[0] == 0


def test_plans_of_several_kinds_run_together():
    names = list(PLANS)
    answer = by(SHUFFLES[0])
    ended = dict(
        run_plans([ANY[name](30, 5, 4) for name in names], lambda asked: answer([shown for _, shown in asked]))
    )
    for number, name in enumerate(names):
        assert np.array_equal(ended[number], run_plan(ANY[name](30, 5, 4), answer), equal_nan=True)


def test_a_wrong_number_of_answers_is_refused():
    with pytest.raises(ValueError, match="1 questions got 2 answers"):
        run_plan(listwise(5), lambda _: [[1.0] * 5] * 2)
