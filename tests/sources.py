"""The package's own files, read once."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1] / "shortlist"
TREES = {path.relative_to(ROOT): ast.parse(path.read_text("utf-8")) for path in sorted(ROOT.rglob("*.py"))}
