"""Addresses of the REST API. The tracking calls beside them are the collector's, which stands in front."""

from django.urls import path
from drf_spectacular.views import SpectacularJSONAPIView, SpectacularSwaggerView

from cdp.api import (
    accounts,
    api_keys,
    dead_letters,
    definitions,
    erasures,
    imports,
    merge_policies,
    privacy,
    profiles,
    sources,
    trace,
)

# An identifier's value may hold anything, slashes too: the longer addresses come first.
urlpatterns = [
    path("profiles", profiles.Profiles.as_view()),
    path("profiles/<path:reference>/events", profiles.Timeline.as_view()),
    path("profiles/<path:reference>/identifiers", profiles.Identifiers.as_view()),
    path("profiles/<path:reference>/accounts", accounts.OfProfile.as_view()),
    path("profiles/<path:reference>/export", privacy.Export.as_view()),
    path("profiles/<path:reference>", profiles.Profile.as_view()),
    path("accounts", accounts.Accounts.as_view()),
    path("accounts/<path:reference>/members", accounts.Members.as_view()),
    path("accounts/<path:reference>/events", accounts.Calls.as_view()),
    path("accounts/<path:reference>", accounts.Account.as_view()),
    path("erasures", erasures.Erasures.as_view()),
    path("erasures/<uuid:erasure_id>", erasures.ErasureDetail.as_view()),
    path("suppressed-identifiers", erasures.Suppressed.as_view()),
    path("audit-entries", privacy.AuditEntries.as_view()),
    path("identity-decisions", definitions.Decisions.as_view()),
    path("traits", definitions.Traits.as_view()),
    path("merge-policies", merge_policies.MergePolicies.as_view()),
    path("merge-policies/<int:policy_id>", merge_policies.MergePolicyDetail.as_view()),
    path("sources", sources.Sources.as_view()),
    path("sources/<int:source_id>", sources.SourceDetail.as_view()),
    path("sources/<int:source_id>/rotate-key", sources.RotateKey.as_view()),
    path("imports", imports.Imports.as_view()),
    path("imports/<int:import_id>", imports.ImportDetail.as_view()),
    path("api-keys", api_keys.ApiKeys.as_view()),
    path("api-keys/<int:key_id>/revoke", api_keys.RevokeApiKey.as_view()),
    path("dead-letters", dead_letters.DeadLetters.as_view()),
    path("dead-letters/summary", dead_letters.Summary.as_view()),
    path("dead-letters/replay", dead_letters.Replay.as_view()),
    path("dead-letters/<int:letter_id>", dead_letters.DeadLetterDetail.as_view()),
    path("trace/<path:message_id>", trace.Trace.as_view()),
    path("openapi.json", SpectacularJSONAPIView.as_view(), name="openapi"),
    path("docs", SpectacularSwaggerView.as_view(url_name="openapi"), name="docs"),
]
