"""What a real engine delivers is what a tenant is charged, to the token."""

import time
from decimal import Decimal

import pytest
from openai import RateLimitError

from maas.bootstrap.store import open_store
from maas.core.settings import Settings
from tests.platform import MODEL

pytestmark = pytest.mark.platform
QUESTION = [{"role": "user", "content": "Write a story about a lighthouse."}]
INPUT, OUTPUT = Decimal("0.10"), Decimal("0.40")


@pytest.fixture(scope="module")
def price(platform):
    platform.cli("price", "set", MODEL, "--input", str(INPUT), "--output", str(OUTPUT))
    # Gateways read prices with their next snapshot.
    time.sleep(1)


@pytest.fixture
def tenant(platform, price, request):
    """A project of its own and a client with its key."""
    name = request.node.name.replace("_", "-")[:60]
    platform.cli("project", "create", name)
    key = platform.cli("key", "create", "--project", name, "--name", "app")["key"]
    time.sleep(1)
    return name, platform.openai(key)


def usage_of(platform, name: str, num_requests: int) -> dict:
    """Return a project's usage once so many requests are in the journal."""
    project = next(p for p in platform.cli("project", "list")["projects"] if p["name"] == name)

    def find() -> dict | None:
        rows = platform.cli("usage", "--project", name, "--group-by", "project_id,exactness")
        found = [row for row in rows["usage"] if row["project_id"] == project["id"]]
        return found[0] if found and found[0]["num_requests"] == num_requests else None

    return platform.wait(find, f"{num_requests} charges of {name}", 20)


def test_answers_are_charged_by_the_engines_own_count(platform, tenant):
    name, client = tenant
    ask = {"model": MODEL, "messages": QUESTION, "max_tokens": 16, "temperature": 0}
    whole = client.chat.completions.with_raw_response.create(**ask)
    usages = [whole.parse().usage]
    stream = client.chat.completions.create(
        **ask, stream=True, stream_options={"include_usage": True}
    )
    usages += [chunk.usage for chunk in stream if chunk.usage]
    costs = [(u.prompt_tokens * INPUT + u.completion_tokens * OUTPUT) / 10**6 for u in usages]
    assert whole.headers["x-maas-cost"] == f"{costs[0]:.9f} USD"
    charged = usage_of(platform, name, 2)
    assert charged["exactness"] == "exact"
    assert charged["input_tokens"] == sum(u.prompt_tokens for u in usages)
    assert charged["output_tokens"] == sum(u.completion_tokens for u in usages)
    assert Decimal(charged["amount"]) == sum(costs)


def test_a_client_that_leaves_pays_for_what_went_out(platform, tenant):
    name, client = tenant
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=200, temperature=0, stream=True
    )
    num_read = 0
    for chunk in stream:
        num_read += bool(chunk.choices and chunk.choices[0].delta.content)
        if num_read == 8:
            break
    stream.close()
    charged = usage_of(platform, name, 1)
    assert charged["exactness"] == "estimated"
    assert 8 <= charged["output_tokens"] < 200
    assert charged["input_tokens"] > 6


def test_what_does_not_fit_a_budget_is_refused_and_costs_nothing(platform, tenant):
    name, client = tenant
    platform.cli("limit", "set", "project", name, "--monthly-budget", "0.00001")
    time.sleep(1)
    with pytest.raises(RateLimitError, match="monthly_budget"):
        client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=200)
    client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=2)
    assert usage_of(platform, name, 1)["output_tokens"] <= 2


def test_engines_say_how_many_requests_they_run_at_a_time(platform):
    store = open_store(Settings(home=platform.home))
    try:
        capacities = [replica.max_num_seqs for replica in store.replicas.live()]
    finally:
        store.database.close()
    # Without this nobody waits in front of a full engine, and nothing is fair.
    assert capacities
    assert all(capacities)
