"""The OpenAPI document is complete and true: requests made from it never fail, and every answer is as it says."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from serving import Built

from shortlist.serve.app import create_app

schemathesis = pytest.importorskip("schemathesis")

OPERATIONS = ["GET /health", "GET /info", "GET /metrics", "GET /ready", "GET /search", "GET /v1/models"]
OPERATIONS += ["GET /v1/search", "POST /embed", "POST /rerank", "POST /score", "POST /search", "POST /v1/embeddings"]
OPERATIONS += ["POST /v1/rerank", "POST /v1/score", "POST /v1/search", "POST /v2/embed", "POST /v2/rerank"]
PATIENT = settings(
    max_examples=25, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck), deadline=None
)


@pytest.fixture(scope="module")
def operations(built: Built) -> Iterator[dict[str, Any]]:
    """Every operation of the document, by method and path."""
    service = built.service()
    document = schemathesis.openapi.from_asgi("/openapi.json", create_app(service))
    found = [result.ok() for result in document.get_all_operations()]
    yield {f"{operation.method.upper()} {operation.path}": operation for operation in found}
    service.close()


def test_every_operation_is_in_the_document(operations: dict[str, Any]):
    assert sorted(operations) == OPERATIONS


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_answer_is_as_the_document_says(operations: dict[str, Any], name: str, mode: str):
    if mode == "negative" and name.startswith("GET"):
        pytest.skip("takes nothing that could be wrong")
    checks = schemathesis.checks
    kept = [checks.not_a_server_error, checks.status_code_conformance, checks.content_type_conformance]
    kept.append(checks.response_schema_conformance)
    made = operations[name].as_strategy(generation_mode=schemathesis.GenerationMode(mode))

    @PATIENT
    @given(case=made)
    def ask(case: Any) -> None:
        case.call_and_validate(checks=kept)

    ask()
