"""All of ``maas up`` on PostgreSQL: what the other tests of the platform see on SQLite."""

from collections.abc import Iterator

import pytest

from tests.platform import MODEL, Platform, link_weights, running_platform

pytestmark = [pytest.mark.platform, pytest.mark.slow]
QUESTION = [{"role": "user", "content": "The capital of France is which city? Answer briefly."}]


@pytest.fixture(scope="module")
def shared(tmp_path_factory, smollm2_dir, postgres) -> Iterator[Platform]:
    home = tmp_path_factory.mktemp("on-postgres")
    link_weights(smollm2_dir, home)
    with (
        postgres.empty() as url,
        running_platform(home, MAAS_DATABASE_URL=url) as running,
    ):
        yield running


def _ask(platform: Platform) -> str:
    stream = platform.openai().chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=20, stream=True
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def _num_charged(platform: Platform) -> int:
    return sum(row["num_requests"] for row in platform.cli("usage")["usage"])


def test_it_serves_and_charges_and_keeps_no_store_of_its_own(shared):
    assert "Paris" in _ask(shared)
    shared.wait(lambda: _num_charged(shared) == 1, "the charge", 20)
    assert not list(shared.home.glob("*.db"))
    assert shared.run_cli("audit", "verify").returncode == 0


def test_killed_gateway_comes_back_and_no_charge_is_lost_or_doubled(shared):
    before = _num_charged(shared)
    _ask(shared)
    # At once: the charge is in the log and may not be in the store yet.
    shared.find("maas.bootstrap.gateway").kill()
    shared.wait_ready()
    assert "Paris" in _ask(shared)
    shared.wait(lambda: _num_charged(shared) == before + 2, "both charges", 30)
