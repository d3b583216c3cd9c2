"""Generated requests against the service's own description: right and wrong ones, no 5xx, nothing undocumented."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi import checks as openapi_checks

CHECKS = [
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of schemathesis
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_generated_requests_get_what_is_documented(client, mode):
    schema = schemathesis.openapi.from_asgi("/openapi.json", client.app)
    statuses = set()
    for result in schema.get_all_operations():
        operation = result.ok()
        if mode is schemathesis.GenerationMode.NEGATIVE and operation.method.upper() == "GET":
            continue  # nothing can be wrong about them

        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case):
            response = case.call()
            statuses.add(response.status_code)
            is_too_late = response.status_code == 504 and "x-timeout-ms" in {name.lower() for name in case.headers}
            assert response.status_code < 500 or is_too_late
            case.validate_response(response, checks=CHECKS)

        check()
    assert 422 in statuses
