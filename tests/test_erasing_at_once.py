"""Others change the same people while somebody is erased: nobody is lost, and nothing of the person is left."""

import threading
from contextlib import ExitStack, closing, contextmanager

import psycopg
import pytest
from django.db import connection

from cdp import privacy
from cdp.models import Erasure, Identifier, Profile, Standing
from cdp.processing import store
from cdp.processing.pipeline import Pipeline
from tests.platform import Core, message
from tests.running import wait_until
from tests.test_erasure import erase, finish, platform  # noqa: F401 - a fixture

KIOSK = "kiosk-of-the-lobby"


@contextmanager
def beside(work):
    """Do some work in a thread that waits for a lock; at the end of the block it comes to its end."""
    troubles = []

    def run():
        try:
            work()
        except BaseException as error:
            troubles.append(error)
        finally:
            connection.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    with psycopg.connect(**connection.get_connection_params() | {"cursor_factory": None}, autocommit=True) as watch:
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        wait_until(lambda: watch.execute(waits).fetchone()[0] or troubles)
    yield
    thread.join(60)
    assert not thread.is_alive()
    if troubles:
        raise troubles[0]


@pytest.fixture
def failures(monkeypatch):
    """Note what each try to look at people again failed by; None where it did not."""
    noted, look_at_all = [], Pipeline.look_at_all

    def noting(self, *arguments, **options):
        try:
            applied = look_at_all(self, *arguments, **options)
        except Exception as error:
            noted.append(type(error))
            raise
        noted.append(None)
        return applied

    monkeypatch.setattr(Pipeline, "look_at_all", noting)
    return noted


def contested(platform):  # noqa: F811
    """Make two people who hang together and were refused to be one, and return their profiles by id."""
    platform.send(message(userId="one", anonymousId="shared"), message(userId="two", anonymousId="shared"))
    platform.process()
    profiles = sorted(Profile.objects.filter(identifiers__value__in=["one", "two"]).values_list("pk", flat=True))
    assert set(Profile.objects.values_list("standing", flat=True)) == {Standing.CONTESTED}
    return profiles


def test_people_are_looked_at_with_those_who_were_joined_to_them_meanwhile(platform, failures):  # noqa: F811
    profiles = contested(platform)
    platform.send(message(userId="three"))
    platform.process()
    failures.clear()
    with closing(Core(platform.database_url, has_source=True)) as core, ExitStack() as looking:
        with core.writer.transaction():
            arrivals = core.arrivals(message(userId="three", anonymousId="shared"), source=platform.shop.pk)
            core.pipeline.apply(core.writer, arrivals)
            looking.enter_context(beside(lambda: privacy._look_at(profiles[0])))
    assert failures == [None]
    assert Identifier.objects.values("profile").distinct().count() == 3


def test_who_became_part_of_somebody_meanwhile_is_looked_at_there(platform, failures):  # noqa: F811
    contested(platform)
    platform.send(message(anonymousId="late"))
    platform.process()
    late = Identifier.objects.get(value="late").profile_id
    failures.clear()
    with closing(Core(platform.database_url, has_source=True)) as core, ExitStack() as looking:
        with core.writer.transaction():
            arrivals = core.arrivals(message(userId="three", anonymousId="late"), source=platform.shop.pk)
            core.pipeline.apply(core.writer, core.arrivals(message(userId="three"), source=platform.shop.pk))
            core.pipeline.apply(core.writer, arrivals)
            looking.enter_context(beside(lambda: privacy._look_at(late)))
    assert failures == [store.Raced, None]
    assert Identifier.objects.values("profile").distinct().count() == 3


def test_people_are_looked_at_again_after_a_deadlock(platform, failures):  # noqa: F811
    profiles = contested(platform)
    failures.clear()
    lock = "SELECT FROM customer_profiles WHERE id = %s FOR UPDATE"
    with psycopg.connect(platform.database_url) as other:
        # Who looks at them has the shorter patience, and is the one to give way.
        other.execute("SET deadlock_timeout = '60s'")
        other.execute(lock, [profiles[1]])
        with beside(lambda: privacy._look_at(profiles[0])):
            other.execute(lock, [profiles[0]])
            other.commit()
    assert failures == [psycopg.errors.DeadlockDetected, None]


def test_who_is_raced_all_the_time_waits_and_goes_on_later(platform, monkeypatch):  # noqa: F811
    def raced(self, *arguments, **options):
        raise store.Raced("Again.")

    profiles = contested(platform)
    monkeypatch.setattr(Pipeline, "look_at_all", raced)
    with pytest.raises(privacy.ErasureWaits, match="all the time"):
        privacy._look_at(profiles[0])


def test_a_batch_that_names_a_blocked_identifier_meanwhile_leaves_nothing_of_it(platform):  # noqa: F811
    """Batches do not lock who stands for nobody: an erasure waits for those at work, whose links it would not see."""
    for number in range(12):
        platform.send(message(userId=f"guest-{number:02}", anonymousId=KIOSK))
    platform.process()
    assert Identifier.objects.get(value=KIOSK).profile.standing == Standing.BLOCKED
    with closing(Core(platform.database_url, has_source=True)) as core:
        core.take(core.arrivals(message(userId="guest-00", anonymousId=KIOSK), source=platform.shop.pk))
        asked = erase(f"anonymous_id:{KIOSK}")

        def run():
            with pytest.raises(privacy.ErasureWaits):
                privacy.run(asked.pk, patience=0)

        with psycopg.connect(platform.database_url) as batch:
            # It began before the erasure was asked for: the identifier counts as somebody's.
            pipeline = Pipeline()
            pipeline._without_erased = lambda connection, arrivals: (arrivals, 0)
            late = message(userId="late-guest", anonymousId=KIOSK, properties={"at": KIOSK})
            pipeline.apply(batch, core.arrivals(late, source=platform.shop.pk))
            with beside(run):
                batch.commit()
        # What a processor remembers of it does not bring it back either.
        core.take(core.arrivals(message(userId="guest-01", anonymousId=KIOSK), source=platform.shop.pk))
    done = finish(platform, asked)
    assert done.status == Erasure.Status.DONE
    assert Identifier.objects.filter(value="late-guest").exists()
    stores = platform.stores()
    assert [name for name, data in stores.items() if KIOSK.encode() in data] == []
