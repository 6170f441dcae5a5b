"""The process of an export beside others: its threads sleep where they wait."""

import pytest

from maas.edge.export.start import environment


def test_threads_sleep_where_they_wait_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("MAAS_HOME", "here")
    assert environment()["OMP_WAIT_POLICY"] == "PASSIVE"
    assert environment()["MAAS_HOME"] == "here"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert environment()["OMP_WAIT_POLICY"] == "ACTIVE"
