"""Losses beside those of sentence-transformers, which are fed with scores in place of a model."""

import math
from typing import Any

import pytest
import torch
from rankings import random_scores, ranking
from torch import Tensor, nn

from shortlist.math.guidance import guided
from shortlist.math.losses.contrastive import infonce
from shortlist.math.losses.distillation import kl
from shortlist.math.losses.listwise import listmle, listnet
from shortlist.math.losses.pairwise import lambdarank, margin_mse, ranknet
from shortlist.math.ranking import Ranking

pytestmark = pytest.mark.slow

QUERIES, DOCS = 4, 6
SCORES, LABELS = random_scores(QUERIES, DOCS), random_scores(QUERIES, DOCS, seed=1) + 4  # no grade is below 0
GIVEN = Ranking(SCORES, LABELS, LABELS, torch.ones(QUERIES, DOCS, dtype=torch.bool))


class Scores(nn.Module):
    """A cross-encoder that knows the score of each pair of numbers."""

    num_labels, device = 1, torch.device("cpu")

    def preprocess(self, pairs: list[tuple[str, str]], **options: Any) -> dict[str, Tensor]:
        return {"scores": torch.stack([SCORES[int(query), int(document)] for query, document in pairs])}

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features


class Vectors(nn.Module):
    """A sentence encoder whose features are its vectors."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["vectors"]}


def listwise(name: str, **options: Any) -> float:
    """What a listwise loss of sentence-transformers says of the scores and labels."""
    from sentence_transformers.cross_encoder import losses

    loss = getattr(losses, name)(model=Scores(), **options)
    queries, documents = list(map(str, range(QUERIES))), [list(map(str, range(DOCS)))] * QUERIES
    return loss([queries, documents], list(LABELS)).item()


def test_listnet_is_theirs():
    assert listnet(GIVEN).item() == pytest.approx(listwise("ListNetLoss"), rel=1e-6)


def test_listmle_and_its_position_weights_are_theirs():
    theirs = listwise("ListMLELoss", respect_input_order=False)
    assert listmle(GIVEN).item() == pytest.approx(theirs, rel=1e-6)
    theirs = listwise("PListMLELoss", respect_input_order=False)
    assert listmle(GIVEN, weigh_positions=True).item() == pytest.approx(theirs, rel=1e-6)


def test_ranknet_is_theirs_but_for_the_base_of_the_logarithm():
    assert ranknet(GIVEN).item() == pytest.approx(math.log(2) * listwise("RankNetLoss"), rel=1e-6)


def test_lambdarank_is_theirs_but_for_the_sum_over_pairs():
    from sentence_transformers.cross_encoder.losses import LambdaRankScheme

    theirs = listwise("LambdaLoss", weighting_scheme=LambdaRankScheme(), reduction_log="natural")
    pairs = DOCS * (DOCS - 1) // 2
    assert lambdarank(GIVEN, k=DOCS, gain="exponential").item() == pytest.approx(pairs * theirs, rel=1e-5)


def test_margin_mse_and_kl_are_theirs_but_for_the_square_of_the_temperature():
    from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss, MarginMSELoss

    features = [{"vectors": torch.ones(QUERIES, 1)}, *({"vectors": SCORES[:, i : i + 1]} for i in range(DOCS))]
    given = ranking(SCORES, torch.zeros(QUERIES, dtype=torch.long), LABELS)
    theirs = MarginMSELoss(Vectors())(features, LABELS)
    torch.testing.assert_close(margin_mse(given), theirs, rtol=1e-6, atol=1e-6)
    theirs = DistillKLDivLoss(Vectors(), temperature=2.0)(features, LABELS)
    torch.testing.assert_close(4 * kl(given, temperature=2.0, teacher_temperature=2.0), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("strategy", "margin"), [("absolute", 0.0), ("absolute", 0.1), ("relative", 0.2)])
def test_what_a_guide_leaves_out_is_what_theirs_does(strategy: str, margin: float):
    from sentence_transformers.sentence_transformer.losses import GISTEmbedLoss

    generator = torch.Generator().manual_seed(0)
    sides = [nn.functional.normalize(torch.randn(8, 4, generator=generator), dim=1) for _ in range(6)]
    loss = object.__new__(GISTEmbedLoss)  # its own start wants two whole models with tokenizers
    nn.Module.__init__(loss)
    settings = {"model": Vectors(), "guide": Guide(), "temperature": 0.05, "similarity_fct": nn.CosineSimilarity(-1)}
    settings |= {"margin_strategy": strategy, "margin": margin, "must_retokenize": False}
    settings |= {"contrast_anchors": False, "contrast_positives": False, "gather_across_devices": False}
    settings |= {"cross_entropy_loss": nn.CrossEntropyLoss()}
    for name, value in settings.items():
        setattr(loss, name, value)
    theirs = loss([{"vectors": sides[i], "guide": sides[i + 3]} for i in range(3)], torch.zeros(8))
    queries, documents, guide_queries, guide_documents = (
        sides[0],
        torch.cat(sides[1:3]),
        sides[3],
        torch.cat(sides[4:]),
    )
    given = ranking(queries @ documents.T, torch.arange(8), None)
    options = {"margin": margin, "relative": strategy == "relative"}
    keep = guided(given.keep, guide_queries @ guide_documents.T, given.relevance, **options)
    assert 20 < int((~keep).sum()) < 110
    torch.testing.assert_close(infonce(given._replace(keep=keep), temperature=0.05), theirs, rtol=1e-5, atol=1e-5)


class Guide(nn.Module):
    """A sentence encoder that sees other vectors."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["guide"]}
