"""Variables that look like options and are none."""

from __future__ import annotations

import pytest
from click.testing import CliRunner, Result

from lucid_deploy.cli import main


def run(*words: str, **variables: str) -> Result:
    return CliRunner().invoke(main, list(words), env=variables)


@pytest.mark.parametrize(
    ("words", "name", "meant"),
    [
        ("doctor", "LUCID_DEPLOY_RUNN_X", "LUCID_DEPLOY_RUN_X"),
        ("run x", "LUCID_DEPLOY_THREADS", "LUCID_DEPLOY_RUN_THREADS"),
        ("run x", "LUCID_DEPLOY_PREFIX_TOKENS", "LUCID_DEPLOY_RUN_PREFIX_CACHE_TOKENS"),
        ("doctor", "LUCID_DEPLOY_VERBOS", "LUCID_DEPLOY_VERBOSE"),
        ("doctor", "LUCID_DEPLOY_ZZZ", None),
        ("doctor", "LUCID_DEPLOY_RUN", None),
        ("doctor", "LUCID_DEPLOY_VERSION", None),
        ("plugin build", "LUCID_DEPLOY_PLUGIN_BUIL_ARCH", "LUCID_DEPLOY_PLUGIN_BUILD_ARCH"),
        ("plugin build", "LUCID_DEPLOY_PLUGIN_ARCH", "LUCID_DEPLOY_PLUGIN_BUILD_ARCH"),
    ],
)
def test_a_variable_of_no_command_is_refused(words: str, name: str, meant: str | None) -> None:
    result = run(*words.split(), **{name: "1"})
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1), result.output
    assert f"The environment variable {name} is no option" in result.stderr
    hint = result.stderr.partition(" Did you mean ")[2].strip()
    assert hint == ("" if meant is None else f"{meant}?")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LUCID_DEPLOY_EXPORT_DTYPE", "bf16"),  # of another command
        ("LUCID_DEPLOYMENT", "1"),
        # What Kubernetes says of a service called lucid-deploy, or lucid-deploy-api.
        ("LUCID_DEPLOY_SERVICE_HOST", "10.0.0.1"),
        ("LUCID_DEPLOY_API_SERVICE_PORT_HTTP", "8000"),
        ("LUCID_DEPLOY_PORT", "tcp://10.0.0.1:8000"),
        ("LUCID_DEPLOY_PORT_8000_TCP_ADDR", "10.0.0.1"),
    ],
)
def test_other_variables_are_not_looked_at(name: str, value: str) -> None:
    assert run("completion", "bash", **{name: value}).exit_code == 0
