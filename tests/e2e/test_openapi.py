"""schemathesis asks the gateway what its OpenAPI allows and what it does not: no server error, nothing undescribed."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

schemathesis = pytest.importorskip("schemathesis", reason="E2E TOOLS ABSENT: schemathesis (make e2e installs it)")
pytest.importorskip("uvicorn", reason="NOT RUN: `pip install lhydra[web]` brings uvicorn and Starlette")
from lhydra_server.web.openapi import document  # noqa: E402
from tests.e2e.test_gateway import Web, backend, web  # noqa: E402

checks = pytest.importorskip("schemathesis.specs.openapi.checks")
CHECKS = [checks.response_schema_conformance, checks.content_type_conformance, checks.status_code_conformance]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with backend(tmp_path_factory.mktemp("users")) as address, web(address, allow_plays=True) as found:
        yield found


@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize("path", document()["paths"])
def test_nothing_that_is_asked_is_a_server_error(gateway: Web, path: str, mode: str) -> None:
    operation = schemathesis.openapi.from_dict(document())[path]["POST"]
    asked: list[int] = []

    @settings(max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
    def ask(case: Any) -> None:
        reply = case.call(base_url=f"http://127.0.0.1:{gateway.port}")
        asked.append(reply.status_code)
        assert reply.status_code < 500 or reply.status_code == 501, reply.text  # 501: the fake server lacks the method
        case.validate_response(reply, checks=CHECKS)

    ask()
    assert asked
