import numpy as np
import pytest
import torch
from torch import Tensor

from shortlist.math import interaction
from shortlist.math.interaction import maxsim_scores, xtr_scores
from shortlist.math.maxsim import TokenVectors, maxsim

QUERIES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
QUERY_COUNTS = torch.tensor([2, 1])
DOCUMENTS = torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.0, -1.0]])
DOC_COUNTS = torch.tensor([2, 0, 1])


def ragged(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random unit vectors; some texts have none."""
    generator = torch.Generator().manual_seed(seed)
    query_counts, doc_counts = torch.tensor([3, 5, 1, 4]), torch.tensor([4, 7, 0, 2, 9, 1])
    vectors = [torch.randn(int(n.sum()), 6, generator=generator) for n in (query_counts, doc_counts)]
    queries, documents = (torch.nn.functional.normalize(each, dim=1) for each in vectors)
    return queries, query_counts, documents, doc_counts


def plain(queries: Tensor, query_counts: Tensor, documents: Tensor, doc_counts: Tensor) -> Tensor:
    """The definition, by PyTorch's own gradients."""
    rows = []
    for query in queries.split(query_counts.tolist()):
        parts = documents.split(doc_counts.tolist())
        rows.append([(query @ d.T).max(1).values.sum() if len(d) else -torch.tensor(float(len(query))) for d in parts])
    return torch.stack([torch.stack(row) for row in rows])


def test_scores_are_those_worked_out_by_hand():
    scores = maxsim_scores(QUERIES, QUERY_COUNTS, DOCUMENTS, DOC_COUNTS)
    torch.testing.assert_close(scores, torch.tensor([[1.8, -2.0, -1.0], [-0.6, -1.0, 0.0]]))


def test_scores_are_those_of_the_definition_but_for_documents_without_vectors():
    queries, query_counts, documents, doc_counts = ragged()
    expected = maxsim(
        *(TokenVectors(v.numpy(), n.numpy()) for v, n in ((queries, query_counts), (documents, doc_counts)))
    )
    expected[:, 2] = -query_counts.numpy()
    np.testing.assert_allclose(maxsim_scores(*ragged()).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("at_once", [1, 60, 1 << 24])
def test_gradients_are_those_of_the_definition_in_any_number_of_parts(at_once: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(interaction, "SIMILARITIES_AT_ONCE", at_once)
    gradients = []
    for score in (maxsim_scores, plain):
        queries, query_counts, documents, doc_counts = ragged()
        leaves = queries.requires_grad_(), documents.requires_grad_()
        weights = torch.arange(24.0).view(4, 6).sin()
        (score(queries, query_counts, documents, doc_counts) * weights).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def test_the_similarities_of_all_tokens_are_never_together(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(interaction, "SIMILARITIES_AT_ONCE", 60)
    _, query_counts, _, doc_counts = ragged()
    tokens = int(query_counts.sum())
    parts = interaction._chunks(doc_counts, tokens, torch.device("cpu"))
    assert [tokens * places.numel() for _, places, _ in parts] == [13 * 9, 13 * 7, 13 * 4, 13 * 2 * 2]


def test_xtr_counts_what_was_found_and_divides_by_it():
    queries, counts = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([2])
    documents = torch.tensor([[0.6, 0.8], [0.8, -0.6], [-1.0, 0.0], [0.0, -1.0]])
    # the first token finds 0.8 of the first document and 0.6 of it; the second 0.8 and, at 0, the second document
    scores = xtr_scores(queries, counts, documents, torch.tensor([2, 1, 1]), k=2)
    torch.testing.assert_close(scores, torch.tensor([[(0.8 + 0.8) / 2, 0.0, 0.0]]))
    everything = xtr_scores(queries, counts, documents, torch.tensor([2, 1, 1]), k=99)
    torch.testing.assert_close(everything, torch.tensor([[0.8, (-1 + 0) / 2, (0 - 1) / 2]]))


def test_xtr_with_enough_tokens_is_the_mean_of_maxsim():
    queries, query_counts, documents, doc_counts = ragged()
    every = xtr_scores(queries, query_counts, documents, doc_counts, k=1000)
    expected = maxsim_scores(queries, query_counts, documents, doc_counts) / query_counts[:, None]
    torch.testing.assert_close(every, expected)


@pytest.mark.parametrize("k", [1, 3, 8, 100])
def test_xtr_gives_the_scores_of_sentence_transformers(k: int):
    from sentence_transformers.multi_vector_encoder.scoring import xtr_scores as reference

    queries, query_counts, documents, doc_counts = ragged()
    padded = [
        torch.nn.utils.rnn.pad_sequence(list(v.split(n.tolist())), batch_first=True)
        for v, n in ((queries, query_counts), (documents, doc_counts))
    ]
    masks = [torch.arange(p.shape[1]) < n[:, None] for p, n in zip(padded, (query_counts, doc_counts), strict=True)]
    expected = reference(padded[0], padded[1][:, None], masks[0], masks[1][:, None], top_k=k)
    expected[:, 2] = -1
    torch.testing.assert_close(xtr_scores(queries, query_counts, documents, doc_counts, k=k), expected)


def test_a_document_twice_in_the_batch_gets_the_same_score_twice():
    queries, query_counts, documents, doc_counts = ragged()
    both = xtr_scores(queries, query_counts, documents.repeat(2, 1), doc_counts.repeat(2), k=3)
    torch.testing.assert_close(both[:, :6], both[:, 6:])


def test_only_what_was_found_gets_a_gradient():
    queries, query_counts, documents, doc_counts = ragged()
    documents.requires_grad_()
    xtr_scores(queries, query_counts, documents, doc_counts, k=1).sum().backward()
    assert documents.grad is not None
    found = (queries @ documents.detach().T).argmax(1).unique()
    assert documents.grad.abs().sum(1).nonzero().flatten().tolist() == found.tolist()
