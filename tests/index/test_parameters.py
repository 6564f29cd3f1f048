import pytest

from shortlist.errors import UserError
from shortlist.index.parameters import NAMES, Parameters, automatic, memory_and_disk


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("num_docs", [1, 2, 50, 5000, 10**6, 8_841_823])
@pytest.mark.parametrize("dim", [1, 7, 384, 4096])
def test_every_corpus_has_parameters(kind, num_docs, dim):
    parameters = automatic(kind, num_docs, dim)
    for name in NAMES[kind]:
        assert getattr(parameters, name) >= 1
    assert parameters.sample <= num_docs
    if kind != "hnsw":
        assert parameters.effort <= max(parameters.lists, 8)
        assert parameters.lists == 1 or parameters.sample >= 39 * parameters.lists
    assert parameters.code_bytes == 0 or dim % parameters.code_bytes == 0


def test_lists_grow_with_the_root_of_the_corpus_until_each_has_its_training():
    assert [automatic("ivf-flat", n, 384).lists for n in (50, 5000, 10**6, 8_841_823)] == [1, 128, 4000, 11894]
    assert automatic("ivf-flat", 8_841_823, 4096).lists == 2**32 // (4 * 4096) // 39  # 4 GiB of sample
    assert automatic("ivf-flat", 10**6, 384).effort == 253  # 4 sqrt(4000)


def test_codes_divide_the_dimension_and_are_refined_the_more_the_fewer_they_are():
    found = [automatic("ivf-pq", 10**6, dim) for dim in (384, 768, 1024, 4096, 30)]
    assert [parameters.code_bytes for parameters in found] == [96, 192, 256, 512, 6]
    assert [parameters.refine for parameters in found] == [4, 4, 4, 8, 5]


def test_what_depends_on_a_chosen_parameter_follows_it():
    parameters = automatic("ivf-pq", 10**6, 384, lists=400, code_bytes=24, effort=None)
    assert parameters == Parameters(effort=80, refine=16, sample=25600, lists=400, code_bytes=24)
    assert automatic("hnsw", 10**6, 384, links=48, effort=77).effort == 77


@pytest.mark.parametrize(
    ("kind", "chosen", "message"),
    [
        ("ivf", {}, "unknown kind of approximate index 'ivf': perhaps 'ivf-pq' or 'ivf-flat'"),
        ("hnsw", {"lists": 5}, "unknown parameter of an hnsw index 'lists': perhaps 'bits' or 'links'"),
        ("hnsw", {"links": 1}, "links 1: expected at least 2"),
        ("hnsw", {"bits": 5}, "bits 5: expected one of 4, 6, 8, 16"),
        ("hnsw", {"refine": 0}, "refine 0: expected at least 1"),
        ("ivf-flat", {"lists": -1}, "lists -1: expected at least 1"),
        ("ivf-flat", {"lists": 2000}, "2,000 lists of 1,000 documents, trained on a sample of 1,000"),
        ("ivf-flat", {"lists": 20, "sample": 19}, "20 lists of 1,000 documents, trained on a sample of 19"),
        ("ivf-pq", {"code_bytes": 5}, "code_bytes 5: does not divide the vectors' dimension, 384"),
    ],
)
def test_parameters_that_cannot_be_are_refused_in_one_line(kind, chosen, message):
    with pytest.raises(UserError, match=message) as error:
        automatic(kind, 1000, 384, **chosen)
    assert "\n" not in str(error.value)


def test_sizes_equal_those_worked_out_by_hand():
    flat = memory_and_disk("ivf-flat", automatic("ivf-flat", 10**6, 384), 10**6, 384)
    codebook = 4000 * (384 * 4 + 24)
    assert (flat.ram, flat.disk) == (codebook, codebook + 10**6 * (384 * 4 + 8))
    half = memory_and_disk("ivf-flat", automatic("ivf-flat", 10**6, 384), 10**6, 384, dtype="float16")
    assert half.disk == codebook + 10**6 * (384 * 2 + 8)
    quantised = memory_and_disk("ivf-pq", automatic("ivf-pq", 10**6, 384), 10**6, 384)
    assert quantised.ram == quantised.disk == codebook + 256 * 384 * 4 + 10**6 * (96 + 8)
    graph = memory_and_disk("hnsw", automatic("hnsw", 10**6, 384, bits=4), 10**6, 384)
    assert graph.ram == graph.disk == pytest.approx(10**6 * (192 + 8 * 32 + 24), rel=1e-3)


def test_building_lists_takes_no_more_memory_for_more_bytes_per_document():
    wide, narrow = (
        memory_and_disk("ivf-flat", automatic("ivf-flat", 10**6, 384), 10**6, 384, dtype=dtype).building
        for dtype in ("float32", "int8")
    )
    assert wide == narrow
