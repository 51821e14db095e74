"""Credentials for tests. They are put together here, so that no file of the project holds one."""

from __future__ import annotations

import string

_ALPHABET = string.ascii_letters + string.digits


def letters(number: int) -> str:
    """Return letters and digits that look random, the same on each call."""
    return "".join(_ALPHABET[(7 * index * index + 3 * index + 11) % len(_ALPHABET)] for index in range(number))


TOKENS = {
    "Hugging Face token": "hf_" + letters(34),
    "GitHub token": "ghp_" + letters(36),
    "fine-grained GitHub token": "github_pat_" + letters(22) + "_" + letters(59),
    "GitLab token": "glpat-" + letters(20),
    "OpenAI key": "sk-" + letters(48),
    "OpenAI project key": "sk-proj-" + letters(40) + "-" + letters(30),
    "Anthropic key": "sk-ant-api03-" + letters(80),
    "Stripe key": "sk_live_" + letters(24),
    "AWS access key": "AKIA" + letters(16).upper(),
    "Google key": "AIza" + letters(35),
    "Slack token": "xoxb-" + "1234567890-" + letters(24),
    "Slack webhook": "https://hooks.slack.com/services/T0000/B0000/" + letters(24),
    "JSON web token": "eyJ" + letters(20) + ".eyJ" + letters(40) + "." + letters(43),
    "private key": "-----BEGIN RSA PRIVATE " + "KEY-----\n" + letters(64) + "\n-----END RSA PRIVATE " + "KEY-----",
    "npm token": "npm_" + letters(36),
    "Vault token": "hvs." + letters(90),
}
"""A credential of each known shape, by name."""
