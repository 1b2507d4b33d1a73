"""Tell the story with a stock Python SDK: python_story.py PACKAGE HOST WRITE_KEY; prints the errors it was told of."""

import importlib
import json
import sys

PACKAGE, HOST, WRITE_KEY = sys.argv[1:]
refused = []
client = importlib.import_module(f"{PACKAGE}.client").Client(
    WRITE_KEY, host=HOST, on_error=lambda error, items: refused.append(str(error)), max_queue_size=10_000
)
client.page(anonymous_id="a1", name="Home", properties={"path": "/"})
client.identify(user_id="u1", anonymous_id="a1", traits={"email": "ann@example.com", "plan": "pro", "age": 37})
client.track(user_id="u1", event="Order Completed", properties={"total": 12.5, "currency": "EUR"})
client.screen(user_id="u1", name="Start", properties={"dark": True})
client.group(user_id="u1", group_id="acme", traits={"name": "Acme"})
client.alias(previous_id="old", user_id="u1")
for number in range(250):
    client.track(user_id="u1", event="Item Viewed", properties={"number": number})
client.shutdown()
print(json.dumps(refused))
