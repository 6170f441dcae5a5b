"""Two gateways and two controllers on one PostgreSQL: kill or stop any; the service goes on.

Real processes, as an operator starts them; the controllers' cluster is a journal (no Ray), and
the engine behind the model ``tiny`` is a fake one.
"""

import random
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from tests.chaos.journal_controller import read_journal
from tests.chaos.shared_site import LEASE_S, Site, running_site
from tests.fakes.engine import fake_engine


@pytest.fixture
def site(postgres, tmp_path) -> Iterator[Site]:
    with postgres.empty() as url, running_site(tmp_path, url) as site:
        yield site


@pytest.fixture
def controllers(site: Site) -> Site:
    """Two controllers, one of which leads."""
    site.start_controller()
    site.start_controller()
    first = site.deploy(1)
    site.wait(lambda: site.running() == set(first), "a leader")
    return site


def terms(site: Site) -> list[int]:
    """Return who led, one after the other, by process id."""
    acts = [line["pid"] for line in read_journal(site.journal)]
    return [pid for n, pid in enumerate(acts) if n == 0 or acts[n - 1] != pid]


def started_more_than_once(site: Site) -> list[str]:
    started = [line["id"] for line in read_journal(site.journal) if line["act"] == "start"]
    return [name for name in started if started.count(name) > 1]


def test_killed_leader_is_followed_within_the_lease_and_both_gateways_serve_on(controllers):
    site = controllers
    site.start_gateway()
    site.start_gateway()
    with fake_engine() as engine:
        site.serve(engine)
        seen: dict[str, list[int]] = {url: [] for url in site.gateways}
        is_over = threading.Event()

        def ask(url: str) -> None:
            while not is_over.is_set():
                seen[url].append(site.chat(url))

        clients = [threading.Thread(target=ask, args=(url,)) for url in site.gateways]
        for client in clients:
            client.start()
        before = set(site.deploy(10))
        site.wait(lambda: before <= site.running(), "what was deployed before")
        (external,) = site.store.replicas.live()
        assert external.expires_at > site.store.clock.now() + LEASE_S
        killed = site.leader()
        killed.kill()
        after = set(site.deploy(10))
        took = site.wait(lambda: after <= site.running(), "what was deployed after")
        time.sleep(LEASE_S * 2)  # longer than any lease that nobody renews
        is_over.set()
        for client in clients:
            client.join()
    assert took < LEASE_S + 1
    assert len(terms(site)) == 2
    assert site.leader().pid != killed.pid
    assert started_more_than_once(site) == []
    for answers in seen.values():
        assert len(answers) > 20
        assert set(answers) == {200}


def test_revoked_key_is_refused_by_both_gateways_within_a_second(site):
    site.start_gateway()
    site.start_gateway()
    site.start_controller()
    with fake_engine() as engine:
        site.serve(engine)
        for _ in range(5):
            record, key = site.store.keys.create(project_id=site.project_id, name="short")
            site.wait_answers(key, 200)
            site.store.keys.revoke(record.id)
            assert site.wait_answers(key, 401) < 1


def test_leader_that_stood_still_does_nothing_when_it_goes_on(controllers):
    site = controllers
    stopped = site.leader()
    stopped.send_signal(signal.SIGSTOP)
    later = set(site.deploy(5))
    site.wait(lambda: later <= site.running(), "the other controller")
    follower = site.leader()
    assert follower.pid != stopped.pid
    # While the first stands still, in the middle of a pass, its work is done by the other one.
    gone = later.pop()
    site.store.deployments.delete(gone)
    site.wait(lambda: gone not in site.running(), "the deletion")
    stopped.send_signal(signal.SIGCONT)
    more = set(site.deploy(5))
    site.wait(lambda: more <= site.running(), "what came later")
    time.sleep(LEASE_S)
    assert terms(site) == [stopped.pid, follower.pid]
    assert started_more_than_once(site) == []


def test_controllers_killed_at_any_moment_do_nothing_twice_and_forget_nothing(controllers):
    site = controllers
    chance = random.Random(7)
    wanted = set(site.running())
    for _ in range(4):
        wanted |= set(site.deploy(5))
        gone = {wanted.pop() for _ in range(2)}
        for name in gone:
            site.store.deployments.delete(name)
        time.sleep(chance.uniform(0, 0.3))
        victim = chance.choice(site.controllers)
        victim.kill()
        victim.wait()
        site.controllers.remove(victim)
        site.start_controller()
    site.wait(lambda: site.running() == wanted, "the cluster to be as written down")
    time.sleep(1)
    assert site.running() == wanted
    assert len(set(terms(site))) == len(terms(site)), "nobody led a second time"
    assert started_more_than_once(site) == []
    stops = [line["id"] for line in read_journal(site.journal) if line["act"] == "stop"]
    assert len(stops) == len(set(stops))


def test_controller_that_is_asked_to_stop_hands_over_at_once(controllers):
    site = controllers
    site.leader().send_signal(signal.SIGTERM)
    later = set(site.deploy(1))
    assert site.wait(lambda: later <= site.running(), "the other controller") < LEASE_S / 2


def test_store_that_restarts_is_found_again_by_gateways_and_controllers(own_postgres, tmp_path):
    with own_postgres.empty() as url, running_site(tmp_path, url) as site, fake_engine() as engine:
        site.start_controller()
        site.start_gateway()
        site.serve(engine)
        own_postgres.stop()
        time.sleep(LEASE_S)
        # What was known still holds.
        assert site.chat(site.gateways[0]) == 200
        own_postgres.start()
        later = set(site.deploy(1))
        site.wait(lambda: later <= site.running(), "the controller")
        site.wait(lambda: site.chat(site.gateways[0]) == 200, "the gateway")
        assert [process.poll() for process in site.processes] == [None, None]
