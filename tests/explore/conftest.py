"""One explorer on the shipped organism for all tests of this folder; they only ask it."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from gatelens.explore.explorer import Explorer
from gatelens.explore.opening import open_explorer
from gatelens.explore.server import application


@pytest.fixture(scope="session")
def explorer() -> Explorer:
    return open_explorer()


@pytest.fixture(scope="session")
def client(explorer: Explorer) -> TestClient:
    return TestClient(application(explorer), base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
