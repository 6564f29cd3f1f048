"""The kind of index `tree`: hierarchical clusters of vectors, with texts for models.

A search by vectors keeps the best nodes of each level and scores the documents below them exactly, from the store. A
language model can describe the nodes; without one, a node's text is made of the documents nearest to its mean.

https://arxiv.org/abs/2510.13217
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from shortlist.data.allowed import Allowed
from shortlist.data.answers import ANSWERS, AnswerLog
from shortlist.data.collections import Collection, open_collection
from shortlist.data.files import atomic_write, optional_json, write_json
from shortlist.data.stores.vectors import VectorReader, refuse_not_finite
from shortlist.errors import UserError, not_given
from shortlist.index.flat import check_queries
from shortlist.index.parameters import Footprint
from shortlist.index.protocols import FetchDocuments, Opening
from shortlist.math.clusters import LEAST_BRANCH, PART_POINTS, cluster_tree, nearest_leaves, node_means
from shortlist.math.tree import Tree, descend
from shortlist.progress import Advance, progress, say
from shortlist.records import Document, Hit
from shortlist.rerankers.asking import QUESTION, ask_each
from shortlist.rerankers.language import how_to_open, language_model, model_identity
from shortlist.rerankers.limits import LimitReachedError
from shortlist.text.answers import text_in
from shortlist.text.prompts import Prompt, named_prompt

TREE, TEXTS, DESCRIPTION = "tree.safetensors", "texts.jsonl", "index.json"
DEFAULTS = {"branch": 16, "effort": 64, "seed": 0}
"""Children of a node, about; nodes of a level that a search keeps; the seed of k-means."""
NEAREST = 8
"""Documents, or nodes below, whose texts stand for a node's."""
FIRST_WORDS = 12
"""Words of a document without a title in a node's text."""
WHOLE = 4096
"""A search begins at the lowest level with at most so many nodes, which one product scores."""
READ_PER_HIT = 16
"""The documents below the kept nodes are on average as many as this, in multiples of k."""


@dataclass(frozen=True)
class Writing:
    """The language model that describes nodes, and the texts that it reads."""

    collection: Collection
    prompt: Prompt
    model: Mapping[str, Any]
    """Arguments of `rerankers.opening.open_language_model` that name it."""
    identities: Mapping[str, str]
    """Identities of the corpus, the model and the prompt."""
    max_calls: int | None = None
    """Most prompts to send now (None: all)."""


def open_writing(
    *, collection: str | None, writer: str | None, writer_name: str | None, writer_prompt: str, max_calls: int | None
) -> Writing | None:
    """Look up the language model that is to describe nodes, if one is.

    Raises:
        UserError: a setting is missing or says nothing, or there is no such model or prompt.
    """
    if writer is None:
        given = {"--writer-name": writer_name, "--max-calls": max_calls}
        given |= {"--writer-prompt": None if writer_prompt == "tree-node" else writer_prompt}
        for flag in (flag for flag, value in given.items() if value is not None):
            raise not_given("--writer", f"{flag} is for a language model that describes nodes")
        return None
    if max_calls is not None and max_calls < 1:
        raise UserError(f"--max-calls is {max_calls}; expected at least 1.")
    if collection is None:
        raise not_given("--collection", "--writer reads its documents")
    prompt = named_prompt(writer_prompt)
    if prompt.asks != "text":
        raise UserError(f"--writer-prompt: {prompt.name!r} asks for no text; the prompt `tree-node` does.")
    how = how_to_open(
        language_model(writer, model_name=writer_name, max_length=None, token_budget=None, precision="fp32")
    )
    opened = open_collection(collection)
    identities = {
        "collection": opened.identity("corpus"),
        "writer": model_identity(how)["model"],
        "writer_prompt": prompt.digest(),
    }
    return Writing(opened, prompt, how, identities, max_calls)


def build_tree(
    vectors: VectorReader, folder: Path, *, advance: Advance, writing: Writing | None = None, **chosen: int
) -> dict[str, Any]:
    """Build a tree over a store, or go on describing the nodes of one.

    Memory holds all vectors, as float32, about three times.

    Raises:
        UserError: a parameter is not possible, or a vector is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parameters = _checked(DEFAULTS | chosen)
    if not (folder / TREE).exists():
        _write_arrays(vectors, folder, branch=parameters["branch"], seed=parameters["seed"])
    advance(vectors.num_docs)
    arrays = load_file(folder / TREE)
    tree = Tree(arrays["starts"], arrays["leaves"])
    asked = {} if writing is None else _write_texts(vectors, folder, tree, arrays, writing)
    results = {"num_nodes": tree.num_inner, "depth": int(tree.depths[-1])} | asked
    made_from = {"shard_hashes": vectors.shard_hashes, "order": order_of(vectors), "num_docs": vectors.num_docs}
    write_json(folder / DESCRIPTION, {"parameters": parameters, **made_from, "texts": writing is not None, **results})
    return results


def _checked(parameters: dict[str, int]) -> dict[str, int]:
    for name, least in (("branch", LEAST_BRANCH), ("effort", 1)):
        if parameters[name] < least:
            raise UserError(f"{name} {parameters[name]}: expected at least {least}.")
    return parameters


def _write_arrays(vectors: VectorReader, folder: Path, *, branch: int, seed: int) -> None:
    if not vectors.num_docs:
        raise UserError(f"{vectors.folder}: holds no document; a tree needs some.")
    rows = vectors.take(np.arange(vectors.num_docs))
    refuse_not_finite(vectors, torch.arange(len(rows)), torch.from_numpy(np.isfinite(rows).all(1)))
    tree = cluster_tree(rows, branch=branch, seed=seed)
    rows = rows[tree.leaves]
    centres = node_means(tree, rows)
    nearest = nearest_leaves(tree, rows, centres, NEAREST)
    with atomic_write(folder / TREE, "wb") as file:
        file.write(save({"starts": tree.starts, "leaves": tree.leaves, "centres": centres, "nearest": nearest}))


def order_of(vectors: VectorReader) -> str:
    """Hash which row of a store holds which document."""
    return sha256(np.ascontiguousarray(vectors.positions_of(np.arange(vectors.num_rows))).tobytes()).hexdigest()


def _write_texts(
    vectors: VectorReader, folder: Path, tree: Tree, arrays: Mapping[str, np.ndarray], writing: Writing
) -> dict[str, int]:
    """Have all nodes but the root described, level by level from below.

    Raises:
        LimitReachedError: nodes are left, and no more may be asked now; the log holds what was answered.
    """
    from shortlist.rerankers.opening import open_language_model

    model, shared = open_language_model(prompt=writing.prompt, reads="text", **writing.model)
    log, texts, unread = AnswerLog(folder / ANSWERS), dict[int, Document](), 0
    nearest = arrays["nearest"]

    def fetch(doc_ids: Sequence[str], query_id: str | None = None) -> Mapping[str, Document]:
        del query_id
        return writing.collection.documents(doc_ids)

    fallback, known = NodeTexts(tree, nearest, vectors.doc_ids, None), len(log)
    with progress("describing", tree.num_inner - 1, "nodes") as advance:
        for depth in range(int(tree.depths[-1]) - 1, 0, -1):
            nodes = np.flatnonzero(tree.depths[: tree.num_inner] == depth)
            shown = list(_below(tree, nodes, arrays["centres"], nearest, texts, vectors.doc_ids, fetch))
            asked = [(QUESTION, documents) for documents in shown]
            left = None if writing.max_calls is None else writing.max_calls - (len(log) - known)
            for place, answer in ask_each(model, asked, log, shared=shared, max_calls=left, advance=advance):
                node = int(nodes[place])
                if text := text_in(answer):
                    texts[node] = Document(f"node {node}", text)
                else:
                    unread += 1
                    texts[node] = fallback([node], fetch)[node]
            if any(int(node) not in texts for node in nodes):
                log.close()
                raise LimitReachedError(f"{tree.num_inner - 1 - len(texts):,} of {tree.num_inner - 1:,} nodes are left")
    with atomic_write(folder / TEXTS) as file:
        file.writelines(json.dumps([node, texts[node].text], ensure_ascii=False) + "\n" for node in sorted(texts))
    prompt_tokens, answer_tokens = log.num_tokens()
    counts = {"calls": len(log), "prompt_tokens": prompt_tokens, "answer_tokens": answer_tokens, "malformed": unread}
    log.close()
    say(f"index: {len(texts):,} nodes described in {counts['calls']:,} calls; {unread:,} answers could not be read.")
    return counts


def _below(
    tree: Tree,
    nodes: Int[np.ndarray, " nodes"],
    centres: Float32[np.ndarray, "inner dim"],
    nearest: Int[np.ndarray, "inner most"],
    texts: Mapping[int, Document],
    doc_ids: Sequence[str],
    fetch: FetchDocuments,
) -> Iterator[list[Document]]:
    """Yield what stands for each node: the children, or documents, nearest to its mean."""
    for node in nodes.tolist():
        children = tree.children(np.array([node]))
        if children[0] >= tree.num_inner:
            leaves = nearest[node][nearest[node] >= 0]
            yield list(fetch([doc_ids[int(place)] for place in tree.leaves[leaves]]).values())
        else:
            gaps = np.square(centres[children] - centres[node]).sum(1)
            yield [texts[child] for child in children[np.argsort(gaps, kind="stable")[:NEAREST]].tolist()]


class NodeTexts(NamedTuple):
    """Texts of inner nodes: as described, or made of the documents nearest to their means."""

    tree: Tree
    nearest: Int[np.ndarray, "inner most"]
    doc_ids: Sequence[str]
    described: Mapping[int, str] | None

    def __call__(self, nodes: Sequence[int], fetch: FetchDocuments) -> dict[int, Document]:
        """Return a text for each node."""
        if self.described is not None:
            return {node: Document(f"node {node}", self.described[node]) for node in nodes}
        names = {node: self._names(node) for node in nodes}
        documents = fetch(list(dict.fromkeys(name for own in names.values() for name in own)))
        return {
            node: Document(f"node {node}", "; ".join(beginning(documents[name]) for name in own))
            for node, own in names.items()
        }

    def _names(self, node: int) -> list[str]:
        leaves = self.nearest[node][self.nearest[node] >= 0]
        return [self.doc_ids[int(place)] for place in self.tree.leaves[leaves]]


def beginning(document: Document) -> str:
    """Return a document's title, or its first words."""
    return document.title.strip() or " ".join(document.text.split(maxsplit=FIRST_WORDS)[:FIRST_WORDS])


@final
class TreeIndex:
    """A tree over a vector store, searched by inner product.

    Attributes:
        tree: the tree.
        centres: the mean vector of each inner node.
        texts: gives the text of a node.
        effort: nodes of a level that a search keeps, at least.
    """

    def __init__(
        self,
        vectors: VectorReader,
        tree: Tree,
        centres: Float32[np.ndarray, "inner dim"],
        texts: NodeTexts,
        *,
        effort: int,
        branch: int,
    ) -> None:
        self.vectors, self.tree, self.centres, self.texts = vectors, tree, centres, texts
        self.effort, self._branch = effort, branch

    def __repr__(self) -> str:
        return f"<TreeIndex of {self.vectors.num_docs:,} vectors and {self.tree.num_inner:,} nodes>"

    def find(
        self, queries: Float[np.ndarray, "queries dim"], k: int, *, allowed: Allowed | None = None
    ) -> list[list[Hit]]:
        """Find at most k of the documents with the greatest inner product with each query.

        They are sorted best first, equal ones in corpus order, and their scores are exact.

        Args:
            allowed: the only documents to find (None: all).
        """
        return self.find_among(queries, k, allowed=allowed)[0]

    def find_among(
        self, queries: Float[np.ndarray, "queries dim"], k: int, *, beam: int | None = None, allowed: Allowed | None
    ) -> tuple[list[list[Hit]], list[int]]:
        """Search like `find`, and count the documents that each query has read.

        Args:
            beam: nodes of a level to keep (None: the effort, and enough for k).
        """
        check_queries(queries, k, dim=self.vectors.dim)
        beam = max(self.effort, -(-READ_PER_HIT * k // self._branch)) if beam is None else beam
        keep = None if allowed is None else allowed.mask(self.vectors.doc_ids)
        alive = None if keep is None else self.tree.alive(keep)
        found = [self._search(np.ascontiguousarray(query), k, beam, keep, alive) for query in queries]
        hits = [self.vectors.doc_ids.hits(scores[None], positions[None])[0] for scores, positions, _ in found]
        return hits, [count for _, _, count in found]

    def _search(
        self,
        query: Float[np.ndarray, " dim"],
        k: int,
        beam: int,
        keep: Bool[np.ndarray, " docs"] | None,
        alive: Bool[np.ndarray, " nodes"] | None,
    ) -> tuple[Float[np.ndarray, " k"], Int[np.ndarray, " k"], int]:
        """Return scores and positions, best first, and the number of documents read."""
        if keep is not None and np.count_nonzero(keep) <= beam * self._branch:  # no more than would be read anyway
            positions = np.flatnonzero(keep)
        else:
            positions = np.sort(
                self.tree.leaves[descend(self.tree, self.centres, query, beam=beam, whole=WHOLE, alive=alive)]
            )
        scores = self.vectors.take(positions) @ query
        best = np.argsort(-scores, kind="stable")[:k]
        return scores[best], positions[best], len(positions)


def open_tree_index(folder: Path, built: Mapping[str, Any], how: Opening) -> TreeIndex:
    """Open an index of the kind `tree` over the vectors at `how.vectors`.

    Raises:
        UserError: it is not whole, or was built from other vectors.
    """
    del built
    assert how.vectors is not None
    vectors, description = VectorReader(how.vectors), optional_json(folder / DESCRIPTION)
    made_from = {"shard_hashes": vectors.shard_hashes, "order": order_of(vectors), "num_docs": vectors.num_docs}
    try:
        parameters, same = description["parameters"], all(description[key] == now for key, now in made_from.items())
        arrays = load_file(folder / TREE)
        described = _described(folder / TEXTS) if description["texts"] else None
        tree = Tree(arrays["starts"], arrays["leaves"])
        texts = NodeTexts(tree, arrays["nearest"], vectors.doc_ids, described)
        whole = tree.num_inner == description["num_nodes"] and len(described or texts.nearest) >= tree.num_inner - 1
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: not a whole tree ({reason}); make one with `shortlist index`.") from None
    if not whole:
        raise UserError(f"{folder}: not a whole tree; make one with `shortlist index`.")
    if not same:
        raise UserError(
            f"{folder}: is a tree of other vectors than {vectors.folder} holds now; build it again with `shortlist "
            "index --overwrite`."
        )
    effort = parameters["effort"] if how.effort is None else how.effort
    return TreeIndex(vectors, tree, arrays["centres"], texts, effort=effort, branch=parameters["branch"])


def _described(path: Path) -> dict[int, str]:
    return dict(map(json.loads, path.read_text("utf-8").splitlines()))


def tree_growth(total: int, part: int) -> float:
    """Estimate how many times as long clustering a document takes among more documents."""
    return min(total, PART_POINTS) / min(part, PART_POINTS)


def tree_footprint(vectors: VectorReader, writing: Writing | None = None, **chosen: int) -> Footprint:
    """Estimate the size of a tree, and the calls that describe its nodes."""
    parameters = _checked(DEFAULTS | chosen)
    nodes = round(vectors.num_docs / parameters["branch"] * 1.2) + 1
    size = nodes * (4 * vectors.dim + 8 * NEAREST + 8) + 8 * vectors.num_docs
    words = ", ".join(f"{name}={value}" for name, value in parameters.items())
    calls = "" if writing is None else f"; about {nodes:,} calls of the language model"
    return Footprint(size, size, 3 * 4 * vectors.num_docs * vectors.dim, words + calls)
