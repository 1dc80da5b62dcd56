"""Options of the test suite."""

import pytest
from hypothesis import HealthCheck, settings

# Machines differ and are busy: no test fails because it was slow.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_addoption(parser):
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write tests/golden anew from what the compiler makes now; review the difference",
    )


@pytest.fixture
def update_golden(request):
    return request.config.getoption("--update-golden")
