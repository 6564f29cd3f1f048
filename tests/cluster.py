"""A Ray cluster on this machine, with nodes that a test can kill."""

import os
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
        ours = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        environment.setenv("PYTHONPATH", os.pathsep.join(ours))  # where the nodes find the tests' tasks
        # A dead node is noticed within seconds.
        config = {
            "health_check_initial_delay_ms": 0,
            "health_check_period_ms": 300,
            "health_check_failure_threshold": 5,
        }
        cluster = started(Cluster, {"num_cpus": 0, "include_dashboard": False, "_system_config": config})
        ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def started(make: Callable[..., Any], head: dict[str, Any], *, tries: int = 3) -> Any:
    """A cluster with its nodes; Ray gives each of them 30 s to start, which a busy machine may not have."""
    cluster = make()
    try:
        cluster.add_node(**head)
        for _ in range(2):
            cluster.add_node(num_cpus=2)
    except Exception as error:
        cluster.shutdown()
        if tries == 1 or "timed out" not in str(error):
            raise
        return started(make, head, tries=tries - 1)
    return cluster
