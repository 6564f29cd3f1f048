"""One training step: token ids -> outputs -> loss -> gradients, in length-bucketed micro-batches.

The plain step keeps every activation until the backward pass. The cached step runs the model twice instead and keeps
the activations of one micro-batch at a time (https://arxiv.org/abs/2101.06983); its gradients are the same. So are
those of several processes, each of which runs its share of the micro-batches.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from shortlist.math.losses import Loss, countable, distillation
from shortlist.models.language import LanguageModel
from shortlist.models.outputs import Rows, join, select
from shortlist.models.reranker import Reranker
from shortlist.models.retriever import Retriever
from shortlist.models.run import Model
from shortlist.text.batching import pad, token_batches
from shortlist.text.inputs import Inputs
from shortlist.train.examples import Batch
from shortlist.train.gather import ALONE, World, gather_rows, is_sharded, sum_gradients, within_memory


class Outcome(NamedTuple):
    """What a batch's outputs are worth."""

    loss: Float[Tensor, ""]
    accuracy: float
    """Share of queries whose positive scores highest among the documents that count; of a language model, share of
    tokens that it found likeliest."""


class Example(NamedTuple):
    """A batch made ready: every input of the model, and what to do with every output."""

    token_ids: list[list[int]]
    query_ids: list[str]
    objective: Callable[[Rows], Outcome]


class Teaching(NamedTuple):
    """How much a teacher's scores of a group count."""

    share: float = 0.0
    """Of the loss, 0 to 1; the rest is that of picking the positive."""
    temperature: float = 1.0
    """Divides the teacher's scores."""


NOBODY = Teaching()


def retriever_example(
    model: Retriever, batch: Batch, *, loss: Loss, temperature: float, teaching: Teaching = NOBODY
) -> Example:
    """Every query against every document of the batch (in-batch negatives), unlabelled positives left out; a teacher
    is followed in the query's own group."""
    documents = [document for group in batch.documents for document in group]
    sizes = torch.tensor([len(group) for group in batch.documents])
    own = torch.cumsum(sizes, 0) - sizes
    keep = countable([d.doc_id for d in documents], own.tolist(), batch.positives)

    def objective(vectors: Rows) -> Outcome:
        queries, docs = vectors.values[: len(batch.queries)], vectors.values[len(batch.queries) :]
        scores = queries @ docs.T
        outcome = _outcome(scores, own, keep, loss, temperature)
        groups = [row[at : at + size] for row, at, size in zip(scores, own.tolist(), sizes.tolist(), strict=True)]
        return _follow(outcome, groups, batch.scores, teaching, temperature)

    token_ids = model.inputs.query_ids(batch.queries) + model.inputs.document_ids(documents)
    return Example(token_ids, [q.query_id for q in batch.queries], objective)


def reranker_example(
    model: Reranker, batch: Batch, *, loss: Loss, temperature: float, teaching: Teaching = NOBODY
) -> Example:
    """Every query against the documents of its own group only."""
    pairs = [(q, d) for q, group in zip(batch.queries, batch.documents, strict=True) for d in group]
    sizes = [len(group) for group in batch.documents]
    own = torch.zeros(len(sizes), dtype=torch.long)
    keep = pad_sequence([torch.ones(size, dtype=torch.bool) for size in sizes], batch_first=True)

    def objective(scores: Rows) -> Outcome:
        groups = list(scores.values.split(sizes))
        rows = pad_sequence(groups, batch_first=True)  # short groups stay whole, never regrouped
        return _follow(_outcome(rows, own, keep, loss, temperature), groups, batch.scores, teaching, temperature)

    return Example(model.inputs.pair_ids(pairs), [q.query_id for q in batch.queries], objective)


def language_example(model: LanguageModel, batch: Batch) -> Example:
    """The mean loss of all tokens of the batch's texts but each one's first."""
    token_ids = language_texts(model.inputs, batch)
    num_tokens = sum(len(ids) - 1 for ids in token_ids)

    def objective(sums: Rows) -> Outcome:
        loss, likeliest = sums.values.sum(0) / num_tokens
        return Outcome(loss, likeliest.item())

    return Example(token_ids, [q.query_id for q in batch.queries], objective)


def language_texts(inputs: Inputs, batch: Batch) -> list[list[int]]:
    """Token ids of every query with its positive, as a reranker reads them and, after all of those, in the other order.

    In one order the query's words foretell the document's, in the other the document's foretell the query.
    """
    pairs = [(query, group[0]) for query, group in zip(batch.queries, batch.documents, strict=True)]
    return inputs.pair_ids(pairs) + inputs.pair_ids(pairs, turned=True)


def _outcome(scores: Tensor, own: Tensor, keep: Tensor, loss: Loss, temperature: float) -> Outcome:
    own, keep = own.to(scores.device), keep.to(scores.device)
    best = scores.detach().masked_fill(~keep, -torch.inf).argmax(1)
    value = loss(scores, own, temperature=temperature, keep=keep)
    return Outcome(value, (best == own).float().mean().item())


def _follow(
    outcome: Outcome,
    groups: Sequence[Tensor],
    teacher: Sequence[Sequence[float]],
    teaching: Teaching,
    temperature: float,
) -> Outcome:
    """The outcome with a share of its loss replaced by how far the scores of each group are from a teacher's."""
    if not teaching.share:
        return outcome
    rows, theirs, keep = (
        pad_sequence(list(each), batch_first=True).to(outcome.loss.device)
        for each in (groups, map(torch.tensor, teacher), (torch.ones(len(g), dtype=torch.bool) for g in groups))
    )
    options = {"temperature": temperature, "teacher_temperature": teaching.temperature, "keep": keep}
    distance = distillation(rows, theirs, **options)
    return outcome._replace(loss=(1 - teaching.share) * outcome.loss + teaching.share * distance)


class Micro(NamedTuple):
    """One forward pass: which inputs, and the seed of its dropout."""

    texts: Int[np.ndarray, " batch"]
    seed: int


def deal(lengths: Sequence[int], token_budget: int, *, seed: int, processes: int = 1) -> list[list[Micro]]:
    """Each process's forward passes, as many for every process and alike in size.

    Where the last round does not go up, the shortest input is run again: sharded models need every process to take
    part in every pass, and a parameter must not have a gradient in some processes only.

    Args:
        lengths: tokens of each input.
        token_budget: most tokens in one forward pass, padding included.
    """
    budget = min(token_budget, -(-sum(lengths) // processes))  # else a few large passes would leave processes idle
    buckets = token_batches(lengths, max(1, budget))
    buckets += [buckets[-1][-1:]] * (-len(buckets) % processes)
    return [[Micro(buckets[i], seed + i) for i in range(rank, len(buckets), processes)] for rank in range(processes)]


def compute_outputs(
    model: Model, token_ids: Sequence[list[int]], *, token_budget: int, bf16: bool, world: World = ALONE
) -> Rows:
    """The model's rows for all inputs, in their order, without gradients; every process runs its share.

    Args:
        token_budget: most tokens in one forward pass, padding included.
        bf16: matrix products in bfloat16.
    """
    shares = deal([len(ids) for ids in token_ids], token_budget, seed=0, processes=world.size)
    with torch.no_grad(), _precision(model, bf16=bf16):
        own = join([_forward(model, token_ids, micro) for micro in shares[world.rank]])
    return _in_order(own, shares, world)


def backward(
    model: Model,
    example: Example,
    *,
    token_budget: int,
    bf16: bool,
    seed: int,
    cached: bool = False,
    world: World = ALONE,
) -> Outcome:
    """Add the gradients of the example's loss to the model's parameters; several processes must start from none.

    Args:
        example: the whole batch, the same in every process.
        token_budget: most tokens in one micro-batch, padding included.
        bf16: matrix products in bfloat16; weights, loss and gradients stay float32.
        seed: of the dropout masks; one per micro-batch, so that both passes of the cached step draw the same.
        cached: the cached step instead of the plain one.

    Raises:
        OutOfMemory: in every process if any ran out; gradients are then undefined.
    """
    shares = deal([len(ids) for ids in example.token_ids], token_budget, seed=seed, processes=world.size)
    own = shares[world.rank]
    together = ALONE if is_sharded(model) else world  # a sharded model's passes wait for the other processes

    def outputs() -> tuple[Rows, list[int]]:
        with torch.set_grad_enabled(not cached), _precision(model, bf16=bf16):
            parts = [_forward(model, example.token_ids, micro) for micro in own]
            return join(parts), [len(part.values) for part in parts]

    def again(gradients: Sequence[Tensor]) -> None:
        with _precision(model, bf16=bf16):
            for micro, gradient in zip(own, gradients, strict=True):
                output = _forward(model, example.token_ids, micro).values
                with torch.autocast(output.device.type, enabled=False):
                    output.backward(gradient)

    rows, sizes = within_memory(outputs, together)
    leaf = rows.values.detach().requires_grad_()
    outcome = example.objective(_in_order(Rows(leaf, rows.counts), shares, world))
    outcome.loss.backward()
    gradients = leaf.grad
    assert gradients is not None  # set by backward, for the type checker
    within_memory(lambda: again(gradients.split(sizes)) if cached else rows.values.backward(gradients), together)
    sum_gradients(model, world)
    return Outcome(outcome.loss.detach(), outcome.accuracy)


def _in_order(own: Rows, shares: Sequence[Sequence[Micro]], world: World) -> Rows:
    """The rows of all processes in the order of the inputs, each once."""
    places = [np.concatenate([micro.texts for micro in share]) for share in shares]
    rows = gather_rows(own, [len(place) for place in places], world)
    _, first = np.unique(np.concatenate(places), return_index=True)
    return select(rows, torch.from_numpy(first))


def _precision(model: Model, *, bf16: bool) -> torch.autocast:
    """Around all passes of a step, so that each weight is rounded to bfloat16 once."""
    return torch.autocast(_device(model).type, torch.bfloat16, enabled=bf16)


def _forward(model: Model, token_ids: Sequence[list[int]], micro: Micro) -> Rows:
    device = _device(model)
    ids, lengths = pad([token_ids[text] for text in micro.texts], model.inputs.pad_id)
    torch.manual_seed(micro.seed)
    rows = model(ids.to(device), lengths.to(device))
    return rows._replace(values=rows.values.float())


def _device(model: Model) -> torch.device:
    return next(model.parameters()).device
