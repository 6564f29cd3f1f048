import pytest
import torch
from torch import Tensor

from shortlist.errors import UserError
from shortlist.math.losses import LOSSES
from shortlist.math.ranking import Ranking
from shortlist.records import Group
from shortlist.train.losses import (
    ABOVE_0,
    AT_LEAST,
    Term,
    check_needs,
    needs,
    needs_positive,
    parse_losses,
    total_loss,
)


def toy(
    ranking: Ranking,
    *,
    margin: float = 0.5,
    rounds: int = 2,
    sharp: bool = False,
    bands: tuple[float, ...] = (0.0, 1.0),
) -> Tensor:
    """Parameters of every kind."""
    return ranking.scores.sum() * margin


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "toy", toy)


def parsed(words: str, temperature: float | None = 0.05) -> list[Term]:
    return parse_losses(words.split(), temperature=temperature)


def test_a_name_alone_has_weight_1_and_the_temperature_of_all():
    assert parsed("infonce") == [Term("infonce", 1.0, {"temperature": 0.05, "focal": 0.0, "positives": "best"})]
    assert parsed("infonce", None) == [Term("infonce", 1.0, {"temperature": 0.01, "focal": 0.0, "positives": "best"})]


def test_losses_have_weights_and_parameters_of_their_own_in_any_order():
    found = parsed("kl.teacher_temperature=2 infonce=0.5 infonce.temperature=0.02 kl=0.25")
    assert found == [
        Term("kl", 0.25, {"temperature": 0.05, "teacher_temperature": 2.0}),
        Term("infonce", 0.5, {"temperature": 0.02, "focal": 0.0, "positives": "best"}),
    ]


def test_a_loss_of_which_only_a_parameter_is_named_is_meant_too():
    assert parsed("infonce.temperature=0.02") == [
        Term("infonce", 1.0, {"temperature": 0.02, "focal": 0.0, "positives": "best"})
    ]


def test_parameters_are_read_as_what_their_defaults_are():
    [term] = parsed("toy.margin=2 toy.rounds=7 toy.sharp=true toy.bands=1,2.5,3")
    assert term.parameters == {"margin": 2.0, "rounds": 7, "sharp": True, "bands": (1.0, 2.5, 3.0)}
    assert [type(value) for value in term.parameters.values()] == [float, int, bool, tuple]


def test_the_total_is_the_weighted_sum():
    ranking = Ranking(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]]), None, torch.ones(1, 2, dtype=torch.bool))
    found = total_loss(parsed("toy=2 toy.margin=0.25 infonce=0.5", 1.0), ranking)
    expected = 2 * 0.25 * 3 + 0.5 * torch.log(1 + torch.tensor(1.0).exp())
    torch.testing.assert_close(found, expected)
    assert total_loss(parsed("toy", None), ranking) == 1.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "--loss names no loss; known: anchor, approxndcg, bands, hinge, infonce, js,"),
        ("infonc", "--loss infonc: unknown loss 'infonc': perhaps 'infonce'"),
        ("infonc.temperature=1", "perhaps 'infonce'"),
        ("kl=", "--loss kl=: the weight is ''; expected a number above 0"),
        ("kl=half", "the weight is 'half'"),
        ("kl=0", "the weight is '0'"),
        ("kl=-1", "the weight is '-1'"),
        ("kl=nan", "the weight is 'nan'"),
        ("kl=inf", "the weight is 'inf'"),
        ("kl infonce kl=0.5", "--loss kl=0.5: kl is said twice"),
        ("kl.temperature=1 kl.temperature=1", "kl.temperature is said twice"),
        ("kl.temprature=1", "unknown parameter of kl 'temprature': perhaps 'temperature'"),
        ("kl.temperature", "'' is not a number; temperature is 1.0 by default"),
        ("kl.temperature=warm", "'warm' is not a number"),
        ("kl.temperature=inf", "'inf' is not a number"),
        ("kl.temperature=0", "--loss kl.temperature=0: expected more than 0"),
        ("kl.teacher_temperature=-1", "expected more than 0"),
        ("toy.rounds=1.5", "'1.5' is not a whole number"),
        ("toy.sharp=yes", "'yes' is not true or false"),
        ("toy.bands=1,b", "'1,b' is not such a value"),
        ("ranknet.order=techer", "unknown value of ranknet.order 'techer': perhaps 'teacher'?"),
        ("policy.reward=map", "unknown value of policy.reward 'map': known: mrr, ndcg, recall."),
        ("policy.samples=1", "--loss policy.samples=1: expected at least 2"),
        ("infonce.focal=-1", "--loss infonce.focal=-1: expected at least 0"),
        ("sinkhorn.epsilon=0", "--loss sinkhorn.epsilon=0: expected more than 0"),
        ("sinkhorn.iterations=0", "--loss sinkhorn.iterations=0: expected at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(words: str, message: str):
    with pytest.raises(UserError) as error:
        parsed(words)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_bounds_are_of_parameters_that_there_are():
    for name in (*AT_LEAST, *ABOVE_0):
        loss, _, parameter = name.partition(".")
        [term] = parsed(loss)
        assert parameter in term.parameters
        assert term.parameters[parameter] >= AT_LEAST.get(name, 1e-9)


def test_a_word_is_a_choice():
    [term] = parsed("ranknet.order=teacher ranknet.weigh_by_ranks=true")
    assert term.parameters == {"temperature": 0.05, "order": "teacher", "weigh_by_ranks": True}


@pytest.mark.parametrize(
    ("words", "expected", "positive"),
    [
        ("infonce", set(), True),
        ("kl", {"teacher"}, False),
        ("kl anchor", {"teacher", "start"}, False),
        ("infonce anchor", {"start"}, True),
        ("ranknet", set(), True),
        ("ranknet.order=teacher", {"teacher"}, False),
        ("margin_mse", {"teacher"}, True),
        ("margin_mse.pairs=all", {"teacher"}, False),
        ("sinkhorn", {"teacher", "shared documents"}, False),
        ("bands", {"grades"}, True),
        ("toy", set(), True),
    ],
)
def test_a_loss_says_what_it_needs(words: str, expected: set[str], positive: bool):
    terms = parsed(words)
    assert set().union(*map(needs, terms)) == expected
    assert needs_positive(terms) == positive


def refusal(words: str, groups: list[Group], role: str = "retriever") -> str:
    with pytest.raises(UserError) as error:
        check_needs(parsed(words), groups, where="g.jsonl", role=role)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_groups_or_the_kind_of_model_lack_is_said_in_one_line():
    plain, taught = Group("q0", ("d0",), ("d1",)), Group("q1", ("d0",), ("d1",), (2.0, 1.0))
    unjudged = Group("q2", (), ("d1", "d2"))
    assert "--loss listmle: 1 of 2 groups of g.jsonl have no teacher's" in refusal(
        "listmle.order=teacher", [plain, taught]
    )
    assert "--loss bands: none of the 1 groups of g.jsonl has grades" in refusal("bands", [plain])
    said = refusal("infonce anchor", [plain, unjudged])
    assert said.startswith("--loss infonce: 1 of 2 groups of g.jsonl have no relevant document; leave them out, or use")
    assert "a reranker ranks each query's own list; use kl, js or pld" in refusal("sinkhorn", [taught], "reranker")
    check_needs(parsed("anchor"), [plain, unjudged], where="g.jsonl")
    check_needs(parsed("sinkhorn"), [taught], where="g.jsonl")
    check_needs([], [unjudged], where="g.jsonl")  # a language model
