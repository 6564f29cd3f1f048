#!/usr/bin/env bash
# torch 2.13.0 on a CPU: oneDNN's ONEDNN_PRIMITIVE_CACHE_CAPACITY alone hardly limits the memory that different shapes take.
#
# Above oneDNN's own cache, PyTorch's binding to it keeps 1,024 entries in every thread, with all that oneDNN made for
# them; a variable of its own, LRU_CACHE_CAPACITY, sets that number. So a thread that has seen a thousand numbers of
# rows holds hundreds of megabytes for one layer of 256 x 256, and limiting one of the two frees less than half. The
# numbers are those of a processor with AVX-512, where an entry takes a quarter of a megabyte.
#
# Seen, MiB that a thousand numbers of rows leave behind: {'neither': 409, 'first': 317, 'second': 232, 'both': 17}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
cat > "$folder/shapes.py" <<'PYTHON'
import torch
from torch.utils import mkldnn

torch.set_num_threads(1)


def mebibytes() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


layer = mkldnn.to_mkldnn(torch.nn.Linear(256, 256).eval())
with torch.inference_mode():
    layer(torch.zeros(8, 256).to_mkldnn())
    before = mebibytes()
    for rows in range(100, 1100):
        layer(torch.zeros(rows, 256).to_mkldnn())
print(round(mebibytes() - before))
PYTHON
python=$folder/venv/bin/python
neither=$("$python" "$folder/shapes.py")
first=$(ONEDNN_PRIMITIVE_CACHE_CAPACITY=32 "$python" "$folder/shapes.py")
second=$(LRU_CACHE_CAPACITY=32 "$python" "$folder/shapes.py")
both=$(ONEDNN_PRIMITIVE_CACHE_CAPACITY=32 LRU_CACHE_CAPACITY=32 "$python" "$folder/shapes.py")
echo "{'neither': $neither, 'first': $first, 'second': $second, 'both': $both}"
((first > 4 * both && second > 4 * both && neither > first))
