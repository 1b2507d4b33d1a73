"""Ready-to-paste calls to a source."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit


class Snippet(NamedTuple):
    """A call in one language."""

    name: str
    text: str


_CURL = """\
curl -u {key}: {host}/v1/track \\
  -H 'Content-Type: application/json' \\
  -d '{{"userId": "user-1", "event": "Signed Up", "properties": {{"plan": "gold"}}}}'
"""
_BROWSER = """\
// npm install @segment/analytics-next
import {{ AnalyticsBrowser }} from '@segment/analytics-next'

const analytics = AnalyticsBrowser.load(
  {{ writeKey: '{key}', cdnURL: '{host}' }},
  {{ integrations: {{ 'Segment.io': {{ apiHost: '{netloc}/v1', protocol: '{scheme}' }} }} }},
)
analytics.identify('user-1', {{ email: 'ann@example.com' }})
analytics.track('Signed Up', {{ plan: 'gold' }})
"""
_PYTHON = """\
# pip install segment-analytics-python
import segment.analytics as analytics

analytics.write_key = "{key}"
analytics.host = "{host}"
analytics.identify("user-1", {{"email": "ann@example.com"}})
analytics.track("user-1", "Signed Up", {{"plan": "gold"}})
analytics.flush()
"""
_NODE = """\
// npm install @segment/analytics-node
import {{ Analytics }} from '@segment/analytics-node'

const analytics = new Analytics({{ writeKey: '{key}', host: '{host}' }})
analytics.identify({{ userId: 'user-1', traits: {{ email: 'ann@example.com' }} }})
analytics.track({{ userId: 'user-1', event: 'Signed Up', properties: {{ plan: 'gold' }} }})
await analytics.closeAndFlush()
"""


def snippets(address: str, key: str) -> list[Snippet]:
    """Return a call in each language to the platform at `address`, with a source's write key."""
    host = address.rstrip("/")
    parts = urlsplit(host)
    languages = {"curl": _CURL, "Browser": _BROWSER, "Python": _PYTHON, "Node": _NODE}
    return [
        Snippet(name, text.format(key=key, host=host, netloc=parts.netloc, scheme=parts.scheme))
        for name, text in languages.items()
    ]
