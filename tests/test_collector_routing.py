"""Events go to the partition of the anchor that processing will find, so that order holds where it is promised."""

import json
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdp.collector.messages import Request, Sender, parcels, read_batch, read_item
from cdp.log.base import partition_of
from cdp.processing.decode import Message, decode

odd = st.sampled_from([None, "", "a1", "u1", "U1", "ann@example.com", "Undefined", 0, 5, 1.5, True, [], {"a": 1}])
externals = st.none() | st.lists(
    st.fixed_dictionaries({"id": odd, "type": st.sampled_from(["crm", "user_id", "email", "", 5])}), max_size=2
)
contexts = odd | st.fixed_dictionaries(
    {}, optional={"externalIds": externals, "traits": odd | st.fixed_dictionaries({"email": odd})}
)
messages = st.fixed_dictionaries(
    {"type": st.sampled_from(["track", "identify", "page", "group", "alias"]), "event": st.just("e")},
    optional=dict.fromkeys(("userId", "anonymousId", "groupId", "previousId"), odd)
    | {"context": contexts, "traits": st.none() | st.fixed_dictionaries({"email": odd}), "messageId": odd},
)


@given(sent=messages, batch_context=contexts)
def test_the_partition_is_that_of_the_anchor(sent, batch_context):
    body = json.dumps({"batch": [sent], "context": batch_context}).encode()
    batch = read_batch(body)
    request = Request("", 1, "")
    request.context = batch.context
    [(partition, delivery)] = parcels([(read_item(batch.items[0]), Sender(1, False))], request, 1024)
    found = decode(delivery.events[0], delivery)
    if isinstance(found, Message):
        assert partition == partition_of(str(found.anchor), 1024)


@pytest.mark.anyio
async def test_events_of_nobody_are_spread_by_their_message_ids(collector):
    items = [{"type": "track", "event": "e", "messageId": str(uuid4())} for _ in range(50)]
    await collector.post("/v1/batch", {"batch": items})
    for one in collector.logged():
        assert one.partition == partition_of(one.message["messageId"], 8)
