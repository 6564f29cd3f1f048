#!/usr/bin/env bash
# torch 2.13.0: torch.set_num_threads(1) in a thread of a pool is lost when another thread sets its own number afterwards.
#
# The number is per thread once a thread has used it, but a thread takes it over from a global value at its first use,
# not when set_num_threads is called there. So a pool whose initializer sets one thread each computes with as many as
# the main thread sets later, before the pool's first work. torch.get_num_threads() right after it, in the same thread,
# makes the setting stay.
#
# Seen: {'set': 3, 'set and read': 1}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/python" - <<'PYTHON'
import threading

import torch


def number_in_a_thread(read: bool) -> int:
    ready, go, found = threading.Event(), threading.Event(), []

    def work() -> None:
        torch.set_num_threads(1)
        if read:
            torch.get_num_threads()
        ready.set()
        go.wait()
        found.append(torch.get_num_threads())

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    torch.set_num_threads(3)
    go.set()
    thread.join()
    return found[0]


found = {"set": number_in_a_thread(False), "set and read": number_in_a_thread(True)}
print(found)
assert found == {"set": 3, "set and read": 1}
PYTHON
