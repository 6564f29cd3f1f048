"""The commands, with their modules and descriptions; a module has `Config` and `run`."""

from importlib import import_module
from typing import Any, NamedTuple


class Command(NamedTuple):
    """A command of `shortlist`, which may also be a stage of a recipe."""

    module: str
    """Name of its module within the package, imported when the command runs."""
    words: str
    """Description for the list of commands."""
    example: str
    """Arguments to try it with."""
    settings: str = ""
    """Name of the module with its `Config`, `check_first` and `has_run`, if its own module loads PyTorch. It may also
    have `starts`, which runs the command in several processes that work together."""

    @property
    def light(self) -> str:
        """The module with its `Config`, which loads quickly."""
        return f"shortlist.{self.settings or self.module}"


COMMANDS = {
    "index": Command("index", "build an index over words or vectors", "--collection my-data --out work/bm25"),
    "functions": Command(
        "demo.functions",
        "make a collection of Python functions and their docstrings",
        "--sources standard-library --out work/functions",
    ),
    "init": Command(
        "init",
        "make a new backbone: random weights, a tokenizer for a collection",
        "--collection my-data --out work/backbone",
    ),
    "convert": Command(
        "convert",
        "make collections of files; convert training data, clicks, vectors",
        "triplets.jsonl --out work/triplets",
    ),
    "queries": Command(
        "queries",
        "have a language model write queries for documents",
        "--collection my-data --writer shortlist-mini/language-model --out work/made",
    ),
    "aspects": Command(
        "aspects",
        "have a language model divide queries into sub-queries",
        "--collection my-data --writer Qwen/Qwen3-4B --out work/aspects",
    ),
    "preferences": Command(
        "preferences",
        "mine which of two summaries a model should write",
        "--run work/train.trec --collection my-data --writer Qwen/Qwen3-4B --reranker work/reranker "
        "--out work/preferences.jsonl",
    ),
    "select": Command(
        "select",
        "keep of a pool the texts that look like yours",
        "--pool irds:msmarco-passage --like my-data --size 100000 --out work/selected",
    ),
    "prune": Command(
        "prune",
        "keep the training groups that are worth their cost",
        "--groups work/groups.jsonl --collection my-data --model shortlist-mini --size 1000 --out work/fewer.jsonl",
    ),
    "mix": Command(
        "mix",
        "find out how much of each source to train on for a target",
        "--sources sources.yaml --model shortlist-mini --collection my-data --split dev --out work/mixed.yaml",
    ),
    "train": Command(
        "train",
        "fine-tune a retriever or a reranker",
        "retriever --backbone sentence-transformers/all-MiniLM-L6-v2 --collection my-data --out work/retriever",
        "settings.train_job",
    ),
    "average": Command(
        "average",
        "make one model of several by averaging their weights",
        "work/retriever work/retriever-2 --out work/average",
    ),
    "inspect": Command("inspect", "show what a model is, and how it reads a text", "shortlist-mini"),
    "export": Command(
        "export",
        "write a model as other tools load it",
        "work/retriever --to sentence-transformers --out work/exported",
    ),
    "push": Command(
        "export.push", "put a model on the hub, with a card", "work/retriever --to me/my-retriever --dry-run"
    ),
    "encode": Command(
        "encode",
        "embed a corpus",
        "--model sentence-transformers/all-MiniLM-L6-v2 --collection my-data --out work/vectors",
        "settings.encode",
    ),
    "verify": Command("verify", "check that an output is as it was written", "work/vectors", "settings.verify"),
    "search": Command(
        "search",
        "find each query's long list, by BM25, vectors or both",
        "--index work/bm25 --collection my-data --out work/bm25.trec",
    ),
    "ask": Command(
        "ask",
        "answer one question with a pipeline",
        "'where do otters live' --index work/bm25 --collection my-data",
    ),
    "mine": Command(
        "mine",
        "draw hard negatives from runs",
        "--runs work/train.trec --collection my-data --split train --out work/groups.jsonl",
    ),
    "rerank": Command(
        "rerank",
        "reorder a run with a reranker",
        "--model work/reranker --run work/bm25.trec --collection my-data --out work/reranked.trec",
        "settings.rerank",
    ),
    "heads": Command(
        "heads",
        "choose a language model's attention heads for reranking",
        "--model Qwen/Qwen3-4B --collection my-data --split train --method core --out work/heads.json",
    ),
    "fuse": Command("fuse", "make one run of several", "--runs work/bm25.trec work/dense.trec --out work/hybrid.trec"),
    "cut": Command(
        "cut",
        "keep of each list as much as a promised recall takes",
        "calibrate --run work/train.trec --collection my-data --recall 0.9 --out work/rule.json",
    ),
    "tune": Command(
        "tune",
        "choose a pipeline's depths, shares and weights on judged queries",
        "--pipeline pipeline.yaml --split train --out work/tuned",
    ),
    "follow": Command(
        "follow",
        "add the documents that found ones name, such as citations",
        "--run work/bm25.trec --collection my-data --field citations --out work/followed.trec",
    ),
    "diversify": Command(
        "diversify",
        "choose first documents that differ or cover a query's aspects",
        "--run work/dense.trec --vectors work/vectors --lambda 0.7 --out work/varied.trec",
    ),
    "pool": Command(
        "pool",
        "list the documents of several runs that wait to be judged",
        "--runs work/bm25.trec work/dense.trec --depth 20 --out work/pool.tsv",
    ),
    "judge": Command(
        "judge",
        "have a language model grade the documents that nobody has judged",
        "--model Qwen/Qwen3-8B --runs work/bm25.trec --collection my-data --out work/machine.tsv",
    ),
    "evaluate": Command(
        "evaluation.evaluate",
        "compare the quality and the cost of runs",
        "--runs work/bm25.trec work/hybrid.trec --collection my-data",
    ),
    "agree": Command(
        "evaluation.agree",
        "compare sets of judgements, and the order of runs by each",
        "--judgements my-data/qrels/test.tsv work/machine.tsv --runs work/bm25.trec work/dense.trec",
    ),
    "diagnose": Command(
        "evaluation.diagnose",
        "show where relevant documents are lost, and which queries",
        "--run work/bm25.trec --reranked work/reranked.trec --collection my-data",
    ),
    "lengths": Command(
        "evaluation.lengths",
        "count the tokens of a collection's texts",
        "--collection my-data --model shortlist-mini --out work/lengths",
    ),
    "table": Command(
        "evaluation.table",
        "add your results to a published table",
        "--published passage --results work/results.json --sets dl19 --rows RepLLaMA --out work/table",
    ),
    "report": Command("evaluation.report", "write an HTML report on the results in folders", "work --out report.html"),
    "run": Command("recipe", "run the steps of a recipe, skipping what is done", "my-recipe.yaml --out work/my-recipe"),
    "serve": Command(
        "serve", "search, embed and rerank over HTTP, with a page", "--collection my-data --bm25 work/bm25"
    ),
    "mcp": Command(
        "mcp",
        "offer search and rerank as tools to language models (MCP)",
        "--collection my-data --reranker work/reranker",
    ),
    "demo": Command("demo.system", "train and measure a system on this machine's own Python", ""),
}

GROUPS = {
    "Start here": ("demo", "index", "search", "ask", "evaluate"),
    "Train": (
        "train",
        "average",
        "mine",
        "queries",
        "preferences",
        "select",
        "prune",
        "mix",
        "functions",
        "init",
        "convert",
    ),
    "Search and rerank": (
        "encode",
        "rerank",
        "heads",
        "fuse",
        "cut",
        "tune",
        "aspects",
        "diversify",
        "follow",
        "serve",
        "mcp",
        "verify",
    ),
    "Measure": ("diagnose", "judge", "agree", "pool", "lengths", "table", "report"),
    "Models and recipes": ("inspect", "export", "push", "run"),
}
"""The commands as help lists them."""

GONE: dict[str, str] = {
    "compare": "shortlist evaluate --costs",
    "search --query": "shortlist ask TEXT",
    "search --demo": "shortlist ask --demo TEXT",
    "search --demo-folder": "shortlist ask --demo TEXT --demo-folder FOLDER",
    "search --reranker": "shortlist ask TEXT --reranker MODEL",
    "search --depth": "shortlist ask TEXT --depth",
    "search --reranker-share": "shortlist ask TEXT --reranker-share",
    "train --lora": "--adapter",
    "train --distill": "--loss infonce=0.5 kl=0.5",
    "train --teacher-temperature": "--loss infonce=0.5 kl=0.5 kl.teacher_temperature=2",
}
"""Commands, and flags as `COMMAND --FLAG`, that no longer exist, with their replacements."""


def gone_settings(command: str) -> dict[str, str]:
    """Find a command's settings that no longer exist, with their replacements."""
    flags = {name.removeprefix(f"{command} --"): new for name, new in GONE.items() if name.startswith(f"{command} --")}
    return {flag.replace("-", "_"): new for flag, new in flags.items()}


def carry_out(name: str, config: Any) -> None:
    """Run a command; its own module is loaded only if there is something to do.

    What runs in several processes is done there.

    Raises:
        UserError: the command refuses its settings or what it reads.
    """
    command = COMMANDS[name]
    if command.settings:
        settings = import_module(command.light)
        settings.check_first(config)
        if settings.has_run(config) or (hasattr(settings, "starts") and settings.starts(config)):
            return
    import_module(f"shortlist.{command.module}").run(config)
