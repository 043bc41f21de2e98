from __future__ import annotations

import pytest

from tests.plugins.hosts.tensorrt.plugin_tools import Tools, build_tools


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    return build_tools(tmp_path_factory.mktemp("plugin"))
