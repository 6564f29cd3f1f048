import numpy as np
import pytest
import torch
import torch.nn.functional as F

from shortlist.math.residual import (
    BITS,
    Codebook,
    ResidualCodes,
    count_centroids,
    fit_codebook,
    from_residual,
    nearest,
    spherical_kmeans,
    to_residual,
)

GENERATOR = torch.Generator().manual_seed(0)
SAMPLE = F.normalize(torch.randn(600, 16, generator=GENERATOR) + torch.eye(16).repeat(38, 1)[:600], dim=1)
BOOK = Codebook(
    centroids=torch.tensor([[1.0, 0, 0, 0], [0, 0.6, 0.8, 0]]),
    cutoffs=torch.tensor([-0.1, 0.0, 0.1]),
    weights=torch.tensor([-0.2, -0.05, 0.05, 0.2]),
)


def test_codes_worked_out_by_hand():
    """Near the second centroid: residuals 0.2, -0.05, 0.05 and 0 are in buckets 3, 1, 2 and 1."""
    codes = to_residual(torch.tensor([[0.2, 0.55, 0.85, 0.0]]), BOOK)
    assert codes.centroids.tolist() == [1]
    assert codes.residuals.tolist() == [[3 + 1 * 4 + 2 * 16 + 1 * 64]]
    restored = from_residual(codes, BOOK)
    expected = np.array([0.2, 0.55, 0.85, -0.05])
    np.testing.assert_allclose(restored.numpy()[0], expected / np.linalg.norm(expected), rtol=1e-6)
    assert (BOOK.bits, BOOK.width, BOOK.table.shape) == (2, 1, (256, 4))


def test_the_number_of_centroids_is_plaids_within_what_a_sample_can_tell_apart():
    assert count_centroids(1_000_000, 10**9) == 8192  # 16 * 1000, and the power of two below
    assert count_centroids(1_000_000, 100_000) == 4096
    assert count_centroids(10**12, 10**12) == 65536
    assert [count_centroids(tokens, tokens) for tokens in (0, 1, 31, 32)] == [1, 1, 1, 2]


def test_kmeans_finds_the_directions_that_there_are():
    centres = torch.eye(16)[:5]
    vectors = F.normalize(centres.repeat(50, 1) + 0.05 * torch.randn(250, 16, generator=GENERATOR), dim=1)
    found = spherical_kmeans(vectors, 5, iterations=9)
    assert (centres @ found.T).max(1).values.min() > 0.99
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5))


def test_no_centroid_stays_where_no_vector_is_near():
    vectors = F.normalize(torch.tensor([[1.0, 0]] * 9 + [[0.0, 1]]), dim=1)
    found = spherical_kmeans(vectors, 2, iterations=2)
    assert sorted(found.round(decimals=3).tolist()) == [[0, 1], [1, 0]]


def test_nearest_is_the_largest_product_in_every_block():
    numbers, products = nearest(SAMPLE, SAMPLE[:40])
    expected = (SAMPLE @ SAMPLE[:40].T).max(1)
    assert numbers.equal(expected.indices)
    torch.testing.assert_close(products, expected.values)


@pytest.mark.parametrize("bits", BITS)
def test_restored_vectors_are_of_length_1_and_nearer_with_more_bits(bits: int):
    book = fit_codebook(SAMPLE, bits=bits, num_vectors=600)
    restored = from_residual(to_residual(SAMPLE, book), book)
    torch.testing.assert_close(restored.norm(dim=1), torch.ones(600))
    least = {1: 0.80, 2: 0.94, 4: 0.99}[bits]
    assert (restored * SAMPLE).sum(1).mean() > least
    bare = book.centroids[to_residual(SAMPLE, book).centroids.long()]
    assert (restored * SAMPLE).sum(1).mean() > (bare * SAMPLE).sum(1).mean()


def test_buckets_hold_equal_shares_of_residuals():
    book = fit_codebook(SAMPLE, bits=2, num_vectors=600)
    codes = to_residual(SAMPLE, book).residuals
    buckets = (codes[:, :, None] >> torch.tensor([0, 2, 4, 6])) & 3
    shares = torch.bincount(buckets.flatten().int(), minlength=4) / buckets.numel()
    assert shares.min() > 0.15
    assert book.cutoffs.tolist() == sorted(book.cutoffs.tolist())


def test_the_same_sample_gives_the_same_codebook():
    one, other = (fit_codebook(SAMPLE, bits=1, num_vectors=600) for _ in range(2))
    assert all(getattr(one, name).equal(getattr(other, name)) for name in ("centroids", "cutoffs", "weights"))


@pytest.mark.parametrize("count", [1, 2, 30])
def test_a_sample_may_be_tiny(count: int):
    book = fit_codebook(SAMPLE[:count], bits=4, num_vectors=count)
    restored = from_residual(to_residual(SAMPLE[:count], book), book)
    assert restored.isfinite().all()


def test_nothing_is_coded_and_restored():
    codes = to_residual(SAMPLE[:0], fit_codebook(SAMPLE, bits=4, num_vectors=1))
    assert codes.residuals.shape == (0, 8)
    assert from_residual(ResidualCodes(*codes), fit_codebook(SAMPLE, bits=4, num_vectors=1)).shape == (0, 16)
