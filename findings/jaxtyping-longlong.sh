#!/usr/bin/env bash
# numpy 2.4.6, jaxtyping 0.3.11: an array of C's long long is int64 by name and by ==, and no Int for jaxtyping.
#
# numpy has two types of 64-bit integers on Linux, long and long long. An array made with dtype="q", such as one that
# takes over a Python array("q"), prints as int64 and equals it, and fails a check of jaxtyping's Int, whose table has
# the one type object only. dtype=numpy.int64 makes an array that passes.
#
# Seen: dtype prints as int64, equals int64: True; an Int array: q False, int64 True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 jaxtyping==0.3.11
"$folder/venv/bin/python" - <<'PYTHON'
from array import array

import numpy as np
from jaxtyping import Int

found = np.array(array("q", [1, 2, 3]), dtype="q")
passes = {name: isinstance(found.astype(name), Int[np.ndarray, " n"]) for name in ("q", "int64")}
print(f"dtype prints as {found.dtype}, equals int64: {found.dtype == np.int64}; an Int array: {passes}")
assert str(found.dtype) == "int64"
assert found.dtype == np.int64
assert passes == {"q": False, "int64": True}
PYTHON
