"""Each right that is shipped is used, and none is missing: by what the API server noted of all other tests here."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from devcluster import audit
from devcluster.audit import Asked
from devcluster.controlplane import ControlPlane
from tests.cluster.manifests import PREFIX
from tests.cluster.rights import RELEASE_GATES, Right, shipped
from tests.cluster.watching import ACCOUNT, NAMESPACE

pytestmark = pytest.mark.cluster

NOW = datetime.now(UTC)
WIDE = {"*", "escalate", "bind", "impersonate", "delete", "deletecollection"}


@pytest.fixture(scope="module")
def asked(audited: list[ControlPlane]) -> list[Asked]:
    """What our accounts have asked, but for what was refused because a test had taken the roles away."""
    return [
        each
        for plane in audited
        for each in audit.read(plane.audit_log)
        if each.allowed or not any(since <= each.at <= until for since, until in plane.without_roles)
    ]


def left_out(session: pytest.Session) -> list[str]:
    """Say what of the tests in this directory is not run."""
    here = Path(__file__).parent
    option = session.config.option
    parts = [part for part in session.config.args if "::" in part]
    parts += [option.keyword, option.markexpr, *(option.deselect or ())]
    missing = {path.name for path in here.glob("test_*.py")} - {item.path.name for item in session.items}
    return [*filter(None, parts), *sorted(missing)]


def test_nothing_was_refused(asked: list[Asked]) -> None:
    if not asked:
        pytest.skip("no test that was run has asked an API server as one of our accounts")
    assert {each._replace(at=NOW) for each in asked if not each.allowed} == set()


def test_every_right_was_used(asked: list[Asked], request: pytest.FixtureRequest) -> None:
    if missing := left_out(request.session):
        pytest.skip(f"whether every right is used takes all cluster tests; not all are run: {', '.join(missing)}")
    different = {each._replace(at=NOW) for each in asked if each.allowed}
    used = {right.kind for right in shipped() if any(map(right.covers, different))}
    # Whether somebody has this one is asked by the admission policy, inside of the API server.
    unused = {str(right) for right in shipped() if right.kind not in used and right.group != PREFIX.rstrip("/")}
    assert unused == set()


def test_no_right_is_wide() -> None:
    for right in shipped():
        assert not {right.verb, right.group, right.resource} & WIDE, right
        if right.resource.startswith("secrets"):
            assert not right.everywhere, right
            # Creating cannot be confined to a name.
            assert right.names or right.verb == "create", right


def test_what_is_noted_is_told_apart() -> None:
    user = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"
    listing = Asked(user, "list", "", "pods", "", allowed=True, at=NOW)
    own = Right("at-least-semaphore-pod-hook", True, "list", "", "pods")
    assert own.covers(listing)
    assert not own._replace(account=RELEASE_GATES).covers(listing)
    assert not own.covers(listing._replace(resource="pods/exec"))
    assert not own.covers(listing._replace(user="system:serviceaccount:default:nobody"))
    named = Right("at-least-semaphore-pod-hook", False, "get", "coordination.k8s.io", "leases", frozenset({"one"}))
    one = Asked(user, "get", "coordination.k8s.io", "leases", "one", allowed=True, at=NOW)
    assert named.covers(one)
    assert not named.covers(one._replace(name="two"))
