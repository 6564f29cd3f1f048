#!/usr/bin/env bash
# torch 2.13.0, FSDP2: after a pass without a backward, weights that are changed in place are not seen by the next pass.
#
# fully_shard leaves the root module's parameters assembled after a forward pass, for the backward pass to come. Where
# none comes (an evaluation, or a reference model's pass under no_grad), p.copy_() on the parameters changes the shards
# alone, and the next forward pass computes with the weights from before, without a word. reshard() on the module, or
# torch.distributed.fsdp's own loading functions, make the change seen.
#
# Seen, in one process on a CPU: {'copied': 'old', 'copied and resharded': 'new'}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
cat > "$folder/script.py" <<'PYTHON'
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
mesh, found, x = init_device_mesh("cpu", (1,)), {}, torch.ones(1, 4)
for name in ("copied", "copied and resharded"):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
    fully_shard(model, mesh=mesh)
    with torch.no_grad():
        before = model(x).item()
        for p in model.parameters():
            p.copy_(p * 2)
        if name != "copied":
            model.reshard()
        found[name] = "old" if model(x).item() == before else "new"
print(found)
assert found == {"copied": "old", "copied and resharded": "new"}
dist.destroy_process_group()
PYTHON
"$folder/venv/bin/python" "$folder/script.py" "$folder/store"
