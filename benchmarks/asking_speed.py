"""Language models as rerankers: the same questions asked by shortlist, by llm-rankers and by transformers' generate.

    python benchmarks/asking_speed.py --llm-rankers ../llm-rankers --size tiny --out benchmarks/asking_speed.md

Models have random weights, so only time is compared; that answers are right is tested. Every side of a comparison runs
in each round, and what is reported is the median over rounds of the ratio. A query is DL19's with its first candidates.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from measuring import conditions, publish, quiet, table
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from shortlist.data.collections import open_collection
from shortlist.data.runs import read_run
from shortlist.models.drafts import Draft
from shortlist.progress import say
from shortlist.records import Query
from shortlist.rerankers import Candidates
from shortlist.rerankers.kinds import prepare
from shortlist.text.prompts import named_prompt
from shortlist.text.rendering import Renderer
from shortlist.text.tokenizer import train_bpe

SIZES = {
    "tiny": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 4},
    "small": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8},
}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
Side = Callable[[], tuple[int, int]]
"""Does the work and returns the number of units done, by which time is divided, and of prompts that were asked."""


def make_model(folder: Path, size: str, texts: Sequence[str]) -> Path:
    """Save a random language model with a tokenizer of 8,000 pieces and a chat template."""
    tokenizer: PreTrainedTokenizerFast = train_bpe(texts, vocab_size=8000)
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES[size],
        vocab_size=len(tokenizer),
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        initializer_range=0.05,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def compare(sides: dict[str, Side], rounds: int, ours: str) -> list[list[str]]:
    """Time the sides in turn and return a row for each: time for one, times ours, and both by the prompt."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    asked: dict[str, float] = {}
    for number in range(rounds):
        names = list(sides)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            done, prompts = sides[name]()
            asked[name] = prompts / done
            seconds[name].append((time.perf_counter() - start) / done)
            say(f"{name}: {1000 * seconds[name][-1]:,.1f} ms")
    rows = []
    for name, each in seconds.items():
        ratios = [one / our for one, our in zip(each, seconds[ours], strict=True)]
        by_prompt = statistics.median(ratios) * asked[ours] / asked[name]
        rows.append(
            [name, f"{1000 * statistics.median(each):,.1f}", f"{statistics.median(ratios):.2f}",
             f"{min(ratios):.2f}-{max(ratios):.2f}", f"{asked[name]:,.0f}", f"{by_prompt:.2f}"]
        )  # fmt: skip
    return rows


class Work:
    """The questions, and our rerankers over one model."""

    def __init__(self, model: Path, lists: list[Candidates]) -> None:
        self.model, self.lists = str(model), lists

    def reranker(self, method: str, **settings: Any) -> Any:
        """Open one of our rerankers, whose answers are not kept from one round to the next."""
        return prepare(method, {"model": self.model, **settings}).open()

    def ours(self, method: str, count: int, depth: int, **settings: Any) -> Side:
        """Rerank so many queries together."""
        opened = self.reranker(method, **settings)

        def run() -> tuple[int, int]:
            opened.questions.log.forget()
            before = opened.questions.tally.calls
            lists = [Candidates(query, documents[:depth]) for query, documents in self.lists[:count]]
            assert len(list(opened.score_lists(lists))) == count
            return count, opened.questions.tally.calls - before

        return run

    def peers(self, kind: Any, count: int, depth: int, cut: int, each: int, **settings: Any) -> Side:
        """Rerank so many queries with a ranker of llm-rankers, which asks `each` prompts to compare."""
        from llmrankers.rankers import SearchResult

        ranker = kind(self.model, None, "cpu", k=10, **settings)

        def run() -> tuple[int, int]:
            prompts = 0
            with torch.inference_mode():
                for query, documents in self.lists[:count]:
                    hits = [SearchResult(one.doc_id, 0.0, ranker.truncate(one.text, cut)) for one in documents[:depth]]
                    ranker.rerank(ranker.truncate(query.text, cut), hits)
                    prompts += ranker.total_compare * each  # which it counts anew for each query
            return count, prompts

        return run


def all_pairs_of(work: Work, ranker: Any, count: int, depth: int, cut: int) -> Side:
    """Ask a ranker of llm-rankers about all pairs, one after another, as its sorts do."""

    def run() -> tuple[int, int]:
        with torch.inference_mode():
            for query, documents in work.lists[:count]:
                texts = [ranker.truncate(one.text, cut) for one in documents[:depth]]
                for i, one in enumerate(texts):
                    for other in texts[i + 1 :]:
                        ranker.compare(ranker.truncate(query.text, cut), [one, other])
        return count, count * depth * (depth - 1)

    return run


def load_lists(data: Path, most: int) -> list[Candidates]:
    """Read DL19's queries with their best BM25 candidates."""
    collection = open_collection(str(data))
    run = read_run(data / "runs" / "bm25-100.trec")
    queries: dict[str, Query] = {query.query_id: query for query in collection.queries("dl19")}
    lists = []
    for query_id, hits in run.items():
        documents = collection.documents({hit.doc_id for hit in hits[:most]})
        lists.append(Candidates(queries[query_id], [documents[hit.doc_id] for hit in hits[:most]]))
    return lists


def windows(model: Path, lists: list[Candidates], prompt: str, count: int) -> list[list[int]]:
    """Render the first window of each query."""
    from shortlist.models.folder import open_folder

    renderer = Renderer(named_prompt(prompt), open_folder(str(model)).tokenizer, most_tokens=8192)
    return [one.ids for one in renderer.render_many([(q, d[:20]) for q, d in lists[:count]])]


def generation(work: Work, prompts: list[list[int]], most: int, batch: int) -> dict[str, Side]:
    """The same prompts continued one by one and in batches by transformers, and by our generator."""
    causal = AutoModelForCausalLM.from_pretrained(work.model).eval()
    generator = work.reranker("listwise").questions.model.generator

    def by_transformers(size: int, count: int) -> Side:
        def run() -> tuple[int, int]:
            for start in range(0, count, size):
                some = prompts[start : min(count, start + size)]
                longest = max(map(len, some))
                ids = torch.tensor([[0] * (longest - len(one)) + one for one in some])
                mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in some])
                causal.generate(ids, attention_mask=mask, max_new_tokens=most, min_new_tokens=most, do_sample=False,
                                pad_token_id=0)  # fmt: skip
            return count, count

        return run

    def ours() -> tuple[int, int]:
        generator.generate(prompts, most=most)
        return len(prompts), len(prompts)

    return {
        "transformers, one at a time": by_transformers(1, min(8, len(prompts))),
        f"transformers, batches of {batch}": by_transformers(batch, len(prompts)),
        "shortlist": ours,
    }


def single_token(work: Work, prompts: list[list[int]]) -> dict[str, Side]:
    """Listwise by one token's logits, rendering and reading included, beside the prefill of the same ids alone."""
    first = work.ours("listwise", len(prompts), 20, prompt="first")
    generator = work.reranker("listwise").questions.model.generator

    def prefill() -> tuple[int, int]:
        generator.hidden(prompts, [[len(one) - 1] for one in prompts])
        return len(prompts), len(prompts)

    return {"the prefill alone": prefill, "shortlist, single token": first}


def sharing(work: Work, count: int) -> dict[str, Side]:
    """All pairs with and without the common beginnings computed once."""
    both = {}
    for share in (True, False):
        opened = work.reranker("pairwise", sort="all")
        opened.questions.model.generator.share = share

        def run(opened: Any = opened) -> tuple[int, int]:
            opened.questions.log.forget()
            list(opened.score_lists([Candidates(query, documents[:20]) for query, documents in work.lists[:count]]))
            return count, 380 * count

        both["beginnings shared" if share else "each prompt whole"] = run
    return both


def guessing(work: Work, prompts: list[list[int]], most: int) -> dict[str, Side]:
    """Generation with and without guesses of what follows."""
    generator, guess = work.reranker("listwise").questions.model.generator, Draft.guess

    def side(guesses: bool) -> Side:
        def run() -> tuple[int, int]:
            with patch.object(Draft, "guess", guess if guesses else lambda self, room: []):
                generator.generate(prompts, most=most)
            return len(prompts), len(prompts)

        return run

    return {"guessed ahead": side(True), "one id at a time": side(False)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llm-rankers", type=Path, required=True, help="a checkout of ielab/llm-rankers")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/msmarco-dl19"))
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--queries", type=int, default=43, help="queries that ours reranks together")
    parser.add_argument("--peer-queries", type=int, default=2, help="queries of llm-rankers in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=["pairs", "sorts", "generation", "single", "sharing"])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    quiet()
    sys.path.insert(0, str(given.llm_rankers))
    from llmrankers.pairwise import PairwiseLlmRanker
    from llmrankers.setwise import SetwiseLlmRanker

    lists = load_lists(given.data, 100)[: given.queries]
    columns = ["", "median ms", "times ours", "from-to", "prompts", "by the prompt"]
    sections = []
    with tempfile.TemporaryDirectory() as folder:
        texts = [document.text for _, documents in lists for document in documents]
        work = Work(make_model(Path(folder) / "llama", given.size, texts[:2000]), lists)
        few = given.peer_queries

        def report(title: str, sides: dict[str, Side], ours: str = "shortlist") -> None:
            sections.append(f"## {title}\n\n{table(columns, compare(sides, given.rounds, ours))}")

        if "pairs" in given.only:
            peer = PairwiseLlmRanker(work.model, None, "cpu", method="heapsort")
            sides = {
                "llm-rankers, pair after pair": all_pairs_of(work, peer, 1, 20, 128),
                "shortlist": work.ours("pairwise", 4, 20, sort="all"),
                "shortlist, bf16": work.ours("pairwise", 4, 20, sort="all", precision="bf16"),
            }
            report("Pairwise, all 380 ordered pairs of 20 passages of 128 tokens: ms a query", sides)
        if "sorts" in given.only:
            pair = {
                "llm-rankers": work.peers(PairwiseLlmRanker, few, 100, 128, 2, method="heapsort"),
                "shortlist": work.ours("pairwise", given.queries, 100, sort="heap"),
                "shortlist, bf16": work.ours("pairwise", given.queries, 100, sort="heap", precision="bf16"),
            }
            report("Pairwise heapsort of 100, k = 10: ms a query", pair)
            sets = {
                "llm-rankers": work.peers(SetwiseLlmRanker, few, 100, 128, 1, method="heapsort", num_child=3),
                "shortlist": work.ours("setwise", given.queries, 100, sort="heap", window=4),
                "shortlist, bf16": work.ours("setwise", given.queries, 100, sort="heap", window=4, precision="bf16"),
            }
            report("Setwise heapsort of 100, four at once, k = 10: ms a query", sets)
        prompts = windows(Path(work.model), lists, "rank-zephyr", given.queries)
        if "generation" in given.only:
            report("Listwise generation, a window of 20, 90 tokens: ms a prompt", generation(work, prompts, 90, 8))
        if "guessing" in given.only:
            report("The same, guessed ahead or not: ms a prompt", guessing(work, prompts[:16], 90), "guessed ahead")
        if "single" in given.only:
            sides = single_token(work, windows(Path(work.model), lists, "first", given.queries))
            report("Listwise by a single token, a window of 20: ms a query", sides, "the prefill alone")
        if "sharing" in given.only:
            report("All pairs of 20: ms a query", sharing(work, 2), "beginnings shared")
    publish(f"Asking language models: {given.size}", conditions(None), sections, given.out)


if __name__ == "__main__":
    main()
