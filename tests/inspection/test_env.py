"""``vitcod env``: enough for a bug report, and nothing that tells who sends it."""

from __future__ import annotations

import json
import os
import socket

import pytest
import torch
from command_line import Cli

from vitcod_cli import __version__


def test_versions_and_machine(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out = cli("env").out
    found = json.loads(cli("env", "--json").out)
    assert found["vitcod"] == __version__
    assert found["packages"]["torch"] == torch.__version__
    assert found["cores"] == os.cpu_count()
    assert found["settings"]["HF_HUB_OFFLINE"] == "1"
    for text in (out, json.dumps(found)):
        assert "hf_secret" not in text
        assert os.getcwd() not in text
        assert socket.gethostname() not in text.split()
    for name, value in found["packages"].items():
        assert f"{name} " in out
        assert value in out
