"""The probe of the sandbox, and the refusal of weaker isolation than a configuration requires."""

from __future__ import annotations

import json

import pytest

from rlad.sandbox.probe import probe_sandbox, require_isolation

from .pod import in_a_pod

SOLVE = (
    "from rlad.verifiers import build_verifier\nfrom rlad.errors import ConfigError\n"
    "try: build_verifier({'name': 'code_tests'})\nexcept ConfigError as error: print(error)\n"
    "verifier = build_verifier({'name': 'code_tests', 'isolation': 'filtered'})\n"
    "response = '```python\\ndef f(x): return x + 1\\n```'\n"
    'print(verifier.verify(response, \'{"asserts": "assert f(1) == 2"}\').outcome.name)\n'
)


def test_pod_is_refused_until_the_configuration_accepts_it() -> None:
    if probe_sandbox().level == "any":
        pytest.skip("this machine has no Landlock or no seccomp")
    output = in_a_pod("-c", SOLVE)
    assert "requires isolation 'full', but this machine gives 'filtered' (namespaces: " in output
    assert "isolation: filtered" in output
    assert output.splitlines()[-1] == "CORRECT"
    found = json.loads(in_a_pod("-m", "pipelines", "doctor", "sandbox", "--json"))
    assert (found["status"], found["isolation"]) == ("warning", "filtered")


def test_isolation_that_is_not_required_is_not_probed() -> None:
    require_isolation("any", "this test")
