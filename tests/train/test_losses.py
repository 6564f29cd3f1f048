import pytest
import torch
from torch import Tensor

from shortlist.errors import UserError
from shortlist.math.losses import LOSSES
from shortlist.math.ranking import Ranking
from shortlist.train.losses import Term, parse_losses, total_loss


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
    assert parsed("infonce") == [Term("infonce", 1.0, {"temperature": 0.05})]
    assert parsed("infonce", None) == [Term("infonce", 1.0, {"temperature": 0.01})]


def test_losses_have_weights_and_parameters_of_their_own_in_any_order():
    found = parsed("kl.teacher_temperature=2 infonce=0.5 infonce.temperature=0.02 kl=0.25")
    assert found == [
        Term("kl", 0.25, {"temperature": 0.05, "teacher_temperature": 2.0}),
        Term("infonce", 0.5, {"temperature": 0.02}),
    ]


def test_a_loss_of_which_only_a_parameter_is_named_is_meant_too():
    assert parsed("infonce.temperature=0.02") == [Term("infonce", 1.0, {"temperature": 0.02})]


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
        ("", "--loss names no loss; known: infonce, kl, toy"),
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
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(words: str, message: str):
    with pytest.raises(UserError) as error:
        parsed(words)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
