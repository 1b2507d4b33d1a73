"""Tell of people with a stock SDK until stdin ends: telling.py PACKAGE HOST WRITE_KEY NAME.

Then flush, and print what was told: events and the latest number by user, and the errors that the SDK gave up at.
"""

import importlib
import json
import sys
import threading
import time
from collections import Counter

PEOPLE = 40
TEXT = "x" * 4_000
# So slow that the log fills up in steps that are seen, not all at once.
PAUSE_SECONDS = 0.002
# The SDKs drop what does not fit into their queue, batches that they take back among it.
QUEUE_SIZE = 4_000

PACKAGE, HOST, WRITE_KEY, NAME = sys.argv[1:]
given_up, events, latest = [], Counter(), {}
client = importlib.import_module(f"{PACKAGE}.client").Client(
    WRITE_KEY, host=HOST, on_error=lambda error, items: given_up.append(str(error)), max_queue_size=QUEUE_SIZE
)
listening = threading.Thread(target=sys.stdin.read, daemon=True)
listening.start()
number = 0
while listening.is_alive():
    if client.queue.qsize() > QUEUE_SIZE // 2:
        time.sleep(PAUSE_SECONDS)
        continue
    user = f"{NAME}-{number % PEOPLE}"
    taken = [
        client.track(user_id=user, event="Read", properties={"number": number, "text": TEXT})[0],
        client.identify(user_id=user, traits={"latest": number, "name": user})[0],
    ]
    assert taken == [True, True]
    events[user] += 2
    latest[user] = number
    number += 1
    time.sleep(PAUSE_SECONDS)
client.shutdown()
print(json.dumps({"events": events, "latest": latest, "given_up": given_up}))
