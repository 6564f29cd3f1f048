from dataclasses import replace
from pathlib import Path

import pytest
import torch
from named import load_reranker, load_retriever, reranker_to_train, retriever_to_train
from tiny import DOCUMENTS, Tiny, shaken

from shortlist.errors import UserError
from shortlist.export.tools import check_modules
from shortlist.math.pooling import mean
from shortlist.models.adapter_settings import make_adapter
from shortlist.models.adapters import add_adapter
from shortlist.models.latent import LatentPooling
from shortlist.models.run import embed_documents
from shortlist.models.save import save_model
from shortlist.text.contract import InputContract

HIDDEN = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [5.0, 1.0]], [[7.0, 8.0], [9.0, 9.0], [9.0, 9.0]]])
LENGTHS = torch.tensor([3, 1])


def latent(contract: InputContract) -> InputContract:
    return replace(contract, reading=replace(contract.reading, pooling="latent"))


def test_states_attend_to_the_learned_vectors_as_worked_out_by_hand():
    pool = LatentPooling(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 2), torch.zeros(2, 2))
    # the state (1, 2) has products 2 and 4 with the two vectors, divided by the root of 2
    odds = torch.softmax(torch.tensor([2.0, 4.0]) / 2**0.5, 0)
    expected = torch.tensor([1.0, 2.0]) + 2 * odds
    torch.testing.assert_close(pool(HIDDEN[:1, :1], LENGTHS[1:])[0], expected)


def test_two_layers_follow_the_attention():
    pool = LatentPooling(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0], [1.0]]))
    gelu = torch.nn.functional.gelu(torch.tensor(7.0))
    torch.testing.assert_close(pool(HIDDEN, LENGTHS)[1], torch.tensor([7.0, 8.0]) + torch.stack([gelu * 0, gelu]))


def test_a_new_pooling_begins_close_to_the_mean_and_every_weight_learns():
    pool = LatentPooling.new(2, seed=0)
    torch.testing.assert_close(pool(HIDDEN, LENGTHS), mean(HIDDEN, LENGTHS), atol=0.05, rtol=0)
    pool.narrow.data += 0.1
    pool(HIDDEN, LENGTHS).sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in pool.parameters())


def test_padding_changes_nothing_whatever_it_holds():
    pool = shaken(LatentPooling.new(2, seed=0)).train()
    hidden = HIDDEN.clone()
    hidden[1, 1:] = torch.nan
    torch.testing.assert_close(pool(hidden, LENGTHS), pool(HIDDEN, LENGTHS))
    pool(hidden, LENGTHS).sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in pool.parameters())


@pytest.mark.parametrize("adapter", [False, True])
def test_a_latent_pooling_is_saved_with_its_model(adapter: bool, tiny: Tiny, tmp_path: Path):
    model = retriever_to_train(str(tiny.llama), None, seed=3, adjust=latent)
    lora = add_adapter(model.backbone, make_adapter("lora", r=2, alpha=4)) if adapter else None
    shaken(model)
    save_model(model, tmp_path, adapter=lora, base=str(tiny.llama))
    loaded = load_retriever(str(tmp_path))
    assert loaded.reading.pooling == "latent"
    vectors = embed_documents(model, DOCUMENTS)
    torch.testing.assert_close(embed_documents(loaded, DOCUMENTS), vectors, atol=1e-5, rtol=0)
    again = retriever_to_train(str(tmp_path), None, seed=4)  # training goes on from these weights, not from new ones
    torch.testing.assert_close(again.pool.state_dict(), model.pool.state_dict())


def test_a_latent_pooling_without_weights_or_in_a_reranker_is_refused(tiny: Tiny):
    contract = latent(load_retriever(str(tiny.retriever)).contract)
    with pytest.raises(UserError, match="no weights of a latent pooling"):
        load_retriever(str(tiny.retriever), contract=contract)
    with pytest.raises(UserError, match="a latent pooling is a retriever's"):
        reranker_to_train(str(tiny.llama), None, seed=0, adjust=latent)
    with pytest.raises(UserError, match="a latent pooling is a retriever's"):
        load_reranker(str(tiny.reranker), contract=latent(load_reranker(str(tiny.reranker)).contract))


def test_sentence_transformers_has_no_module_for_it(tiny: Tiny):
    model = retriever_to_train(str(tiny.llama), None, seed=3, adjust=latent)
    with pytest.raises(UserError, match="pools by latent, for which sentence-transformers has no module"):
        check_modules(model, "m")
    cut = retriever_to_train(str(tiny.llama), None, adjust=lambda contract: contract.with_dims(4))
    with pytest.raises(UserError, match="cuts its vectors to 4 dimensions"):
        check_modules(cut, "m")
