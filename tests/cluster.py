"""A Ray cluster on this machine, with nodes that a test can kill."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def two_nodes() -> Iterator[Any]:
    """A head that works at nothing and two nodes of two CPUs, joined by this process."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        for check in ("READY", "HEALTH"):  # Ray Serve kills a proxy that a busy machine has not started in 5 s
            environment.setenv(f"RAY_SERVE_PROXY_{check}_CHECK_TIMEOUT_S", "120")
        ours = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        environment.setenv("PYTHONPATH", os.pathsep.join(ours))  # where the nodes find the tests' tasks
        # A dead node is noticed within seconds.
        config = {
            "health_check_initial_delay_ms": 0,
            "health_check_period_ms": 500,
            "health_check_failure_threshold": 12,
        }
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": config}
        environment.setattr("ray._private.node.time", PatientTime())
        cluster = _started(lambda: Cluster(initialize_head=True, head_node_args=head))
        try:
            for _ in range(2):
                add_node(cluster, num_cpus=2)
            ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


def add_node(cluster: Any, **resources: int) -> Any:
    """Add a node to a cluster."""
    return _started(lambda: cluster.add_node(**resources))


def _started(start: Callable[[], Any]) -> Any:
    """Start a node, twice if need be: Ray aborts one whose helpers are not there in 15 s, which nothing can change."""
    for _ in range(2):
        try:
            return start()
        except Exception as error:  # of many kinds: wherever Ray was waiting for the node
            said = f"{type(error).__name__}: {error}"
    pytest.skip(f"this machine is too slow for Ray to start a node ({said})")


class PatientTime:
    """The module `time` with a slow clock: Ray gives a node 30 s to start, and a busy machine takes longer."""

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def monotonic(self) -> float:
        return time.monotonic() / 4
