"""Who is who by REST: the graph, taking people apart, decisions and rules."""

import pytest

from cdp import identity_rules
from cdp.models import IdentityDecision, IdentityRules
from tests.factories import make_api_key, make_user
from tests.platform import message

UNMERGE = "/v1/profiles/user_id:user-ann/unmerge"
LAPTOP = {"namespace": "anonymous_id", "value": "laptop-456"}


@pytest.fixture
def ann(own_database, core):
    """Return the core with one person of two devices and two addresses, on Django's database."""
    core.apply(message("identify", userId="user-ann", anonymousId="phone-123", traits={"name": "Ann Archer"}))
    core.apply(message("identify", userId="user-ann", anonymousId="laptop-456", messageId="m-2"))
    core.apply(message("identify", userId="user-bob", anonymousId="phone-123", messageId="m-3"))
    return core


@pytest.fixture
def api(ann, client):
    """Return what calls the API with a key, or as whom the client is logged in."""

    def call(method, path, body=None, *, scopes=("all",), **query):
        headers = make_api_key(*scopes) if scopes else {}
        if method == "get":
            return client.get(path, query, headers=headers)
        return client.post(path, body or {}, content_type="application/json", headers=headers)

    return call


def refusal(answer):
    assert answer.headers["Content-Type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


def test_the_graph_has_its_evidence_and_what_was_refused(api, ann):
    body = api("get", "/v1/profiles/user_id:user-ann/identity-graph").json()
    assert body["profile_id"] == str(ann.profile("user_id:user-ann")["id"])
    nodes = {one["id"]: one for one in body["nodes"]}
    assert {(one["value"], one["inside"]) for one in nodes.values()} == {
        ("user-ann", True), ("phone-123", True), ("laptop-456", True), ("user-bob", False),
    }  # fmt: skip
    found = {frozenset(nodes[one[end]]["value"] for end in ("left", "right")): one for one in body["edges"]}
    joined = found[frozenset({"user-ann", "laptop-456"})]
    assert (joined["refused"], joined["message_id"], joined["source_class"], joined["rule_version"]) == (
        "", "m-2", "Server", 1,
    )  # fmt: skip
    assert found[frozenset({"user-bob", "phone-123"})]["refused"] == "limit_user_id"
    assert (len(found), body["more_identifiers"], body["more_edges"]) == (3, 0, False)


def test_a_dry_run_says_what_an_unmerge_then_does(api, ann):
    given = {"identifiers": [LAPTOP], "note": "Her brother's"}
    tried = api("post", UNMERGE, given | {"dry_run": True}).json()
    assert (tried["decision"], tried["dry_run"]) == (None, True)
    assert ann.profile("anonymous_id:laptop-456")["id"] == ann.profile("user_id:user-ann")["id"]
    done = api("post", UNMERGE, given).json()
    decision = IdentityDecision.objects.get(kind="unmerge")
    assert (done["decision"], decision.detail["note"]) == (decision.pk, "Her brother's")
    assert decision.author.startswith("key:")
    stays, new = done["profiles"]
    assert [one | {"id": ""} for one in tried["profiles"]] == [one | {"id": ""} for one in done["profiles"]]
    assert (stays["id"], stays["is_new"], stays["traits"]["name"]) == (
        str(ann.profile("user_id:user-ann")["id"]), False, "Ann Archer",
    )  # fmt: skip
    assert (new["id"], new["is_new"]) == (str(ann.profile("anonymous_id:laptop-456")["id"]), True)
    assert new["identifiers"] == [LAPTOP]


def test_lifting_joins_again_once(api, ann):
    decision = api("post", UNMERGE, {"identifiers": [LAPTOP]}).json()["decision"]
    lift = f"/v1/identity-decisions/{decision}/lift"
    tried = api("post", lift, {"dry_run": True}).json()
    assert [len(one["identifiers"]) for one in tried["profiles"]] == [3]
    assert ann.profile("anonymous_id:laptop-456")["id"] != ann.profile("user_id:user-ann")["id"]
    assert api("post", lift).json()["decision"] == decision
    assert ann.profile("anonymous_id:laptop-456")["id"] == ann.profile("user_id:user-ann")["id"]
    assert refusal(api("post", lift)) == (400, "not_apart")
    refused = IdentityDecision.objects.filter(kind="refusal").first()
    assert refusal(api("post", f"/v1/identity-decisions/{refused.pk}/lift")) == (404, "not_found")
    assert api("get", f"/v1/identity-decisions/{decision}").json()["lifted_by"].startswith("key:")


@pytest.mark.parametrize(
    ("identifiers", "answer"),
    [
        ([], (400, "not_apart")),
        ([{"namespace": "user_id", "value": "user-bob"}], (400, "not_apart")),
        ([{"namespace": "user_id"}], (400, "invalid")),
        ("user_id:user-ann", (400, "invalid")),
    ],
)
def test_what_cannot_be_taken_apart_is_a_problem(api, identifiers, answer):
    assert refusal(api("post", UNMERGE, {"identifiers": identifiers})) == answer
    assert refusal(api("post", "/v1/profiles/user_id:nobody/unmerge", {"identifiers": [LAPTOP]})) == (404, "not_found")


def test_decisions_are_filtered_and_reviewed(api, ann):
    refused = IdentityDecision.objects.get(reason="limit_user_id")

    def ids(**query):
        return [one["id"] for one in api("get", "/v1/identity-decisions", **query).json()["results"]]

    assert ids(reason="limit_user_id", reviewed="false", profile="user_id:user-bob") == [refused.pk]
    body = api("post", f"/v1/identity-decisions/{refused.pk}/review", scopes=["identity:write"]).json()
    assert body["reviewed_at"] is not None
    again = api("post", f"/v1/identity-decisions/{refused.pk}/review").json()
    assert (again["reviewed_at"], again["reviewed_by"]) == (body["reviewed_at"], body["reviewed_by"])
    assert (ids(reviewed="true"), ids(reason="limit_user_id", reviewed="false")) == ([refused.pk], [])
    assert api("get", f"/v1/identity-decisions/{refused.pk}").json() == again
    assert api("post", "/v1/identity-decisions/4711/review").status_code == 404


def test_rules_are_drafted_tried_and_published(api, ann):
    [first] = api("get", "/v1/identity-rules").json()["results"]
    assert (first["version"], first["status"], first["dry_run"]) == (1, "applied", None)
    strict = first["namespaces"] | {"anonymous_id": {"limit": 1}}
    tried = api("post", "/v1/identity-rules/dry-run", {"namespaces": strict}, scopes=["identity:write"]).json()
    assert tried["words"] == "would split 1, merge 0; largest cluster 3 → 2"
    assert [(one["becomes"], one["sizes"]) for one in tried["examples"]] == [(2, [2, 1])]
    assert IdentityRules.objects.count() == 1
    answer = api("post", "/v1/identity-rules", {"namespaces": strict, "note": "One device"}, scopes=["identity:write"])
    draft = answer.json()
    assert (answer.status_code, draft["status"], draft["note"]) == (201, "draft", "One device")
    assert {name: draft["dry_run"][name] for name in tried} == tried
    publish = f"/v1/identity-rules/{draft['version']}/publish"
    assert refusal(api("post", publish, scopes=["identity:write"])) == (403, "permission_denied")
    answer = api("post", publish, scopes=["identity_rules:write"])
    assert (answer.status_code, answer.json()["status"]) == (202, "applying")
    identity_rules.apply()
    body = api("get", f"/v1/identity-rules/{draft['version']}").json()
    assert (body["status"], body["progress"]["split"], body["dry_run"]["split"]) == ("applied", 1, 1)
    assert refusal(api("post", publish)) == (400, "not_a_draft")
    for missing in (99, 2**40):
        assert api("get", f"/v1/identity-rules/{missing}").status_code == 404


def test_rules_that_cannot_be_are_a_problem(api):
    for path in ("/v1/identity-rules", "/v1/identity-rules/dry-run"):
        assert refusal(api("post", path, {"namespaces": {"email": {"limit": 1}}})) == (400, "unfit_rules")
        assert refusal(api("post", path, {})) == (400, "invalid")


def test_people_see_and_do_what_their_role_lets_them(api, ann, client):
    client.force_login(make_user("viewer"))
    graph = api("get", "/v1/profiles/user_id:user-ann/identity-graph", scopes=())
    decisions = api("get", "/v1/identity-decisions", scopes=())
    for answer in (graph, decisions):
        assert answer.status_code == 200
        for secret in ("user-ann", "phone-123", "laptop-456", "user-bob"):
            assert secret not in answer.text
    assert api("post", UNMERGE, {"identifiers": [LAPTOP]}, scopes=()).status_code == 403
    client.force_login(make_user("operator"))
    draft = api("post", "/v1/identity-rules", {"namespaces": identity_rules.current().namespaces}, scopes=())
    assert draft.status_code == 201
    publish = f"/v1/identity-rules/{draft.json()['version']}/publish"
    assert api("post", publish, scopes=()).status_code == 403
    assert api("post", UNMERGE, {"identifiers": [LAPTOP]}, scopes=()).status_code == 200
    client.force_login(make_user("admin"))
    assert api("post", publish, scopes=()).status_code == 202
