"""The intercepted paths, and the endpoint, prefix and key of each."""

import pytest

from sanitizer.sanitize import endpoints
from sanitizer.sanitize.endpoints import Endpoints
from sanitizer.sanitize.gates import FIELDS, GATES, Cut, Gate
from sanitizer.sanitize.jsonedit import Json


@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        pytest.param("/key/update", "", id="without a prefix"),
        pytest.param("/p/key/update", "/p", id="under a prefix"),
        pytest.param("/q.r/key/update", "/q.r", id="under another prefix"),
        pytest.param("/key/update/", None, id="trailing slash"),
        pytest.param("//key/update", None, id="two slashes"),
        pytest.param("/Key/Update", None, id="another case"),
        pytest.param("/key/update\n", None, id="a newline at the end"),
        pytest.param("/key/updates", None, id="a longer path"),
        pytest.param("/x/key/update", None, id="under an unknown prefix"),
        pytest.param("/qxr/key/update", None, id="a path that matches a prefix only as a pattern"),
        pytest.param("/p/p/key/update", None, id="under a prefix twice"),
        pytest.param("/key/generate", None, id="another endpoint"),
        pytest.param("", None, id="empty"),
    ],
)
def test_find(path: str, prefix: str | None) -> None:
    """Exactly the endpoints' paths are intercepted, bare and under each prefix."""
    endpoint = Endpoints(FIELDS, ("", "/p", "/q.r")).find(path)
    assert (endpoint and (endpoint.name, endpoint.prefix, endpoint.key)) == (
        None if prefix is None else ("/key/update", prefix, None)
    )


@pytest.mark.parametrize(
    ("path", "found"),
    [
        pytest.param("/key/regenerate", ("/key/regenerate", "", None), id="key in the body"),
        pytest.param("/p/key/regenerate", ("/key/regenerate", "/p", None), id="key in the body, under a prefix"),
        pytest.param("/key/sk-1/regenerate", ("/key/{key}/regenerate", "", "sk-1"), id="key in the path"),
        pytest.param(
            "/p/key/sk-1/regenerate", ("/key/{key}/regenerate", "/p", "sk-1"), id="key in the path, under a prefix"
        ),
        pytest.param(
            "/key/a b%2Fä/regenerate", ("/key/{key}/regenerate", "", "a b%2Fä"), id="key in the path, not decoded again"
        ),
        pytest.param(
            "/key/regenerate/regenerate", ("/key/{key}/regenerate", "", "regenerate"), id="a key named regenerate"
        ),
        pytest.param("/key/a/b/regenerate", None, id="a key with a slash"),
        pytest.param("/key//regenerate", None, id="no key"),
        pytest.param("/key/sk-1/regenerate/", None, id="trailing slash"),
        pytest.param("/key/sk-1/Regenerate", None, id="another case"),
        pytest.param("/key/sk-1/reset_spend", None, id="another endpoint"),
        pytest.param("/x/key/sk-1/regenerate", None, id="under an unknown prefix"),
    ],
)
def test_find_regenerate(path: str, found: tuple[str, str, str | None] | None) -> None:
    """Two paths regenerate a key, and one of them contains the key."""
    endpoint = Endpoints(FIELDS, ("", "/p")).find(path)
    assert (endpoint and (endpoint.name, endpoint.prefix, endpoint.key)) == found


@pytest.mark.parametrize(
    ("fields", "update", "regenerate"),
    [
        pytest.param((), None, None, id="no field"),
        pytest.param(("budget_limits",), ["budget_limits"], None, id="a field of updates only"),
        pytest.param(("permissions",), ["permissions"], ["permissions"], id="a field of both endpoints"),
        pytest.param(("allowed_routes",), ["allowed_routes"] * 2, ["allowed_routes"] * 2, id="a field with two gates"),
    ],
)
def test_fields_narrow(fields: tuple[str, ...], update: list[str] | None, regenerate: list[str] | None) -> None:
    """Only the given fields have gates, and an endpoint without gates is not intercepted."""
    found = Endpoints(fields, ("",))
    for path, names in (("/key/update", update), ("/key/regenerate", regenerate), ("/key/k/regenerate", regenerate)):
        endpoint = found.find(path)
        assert (endpoint and [gate.field for gate in endpoint.gates]) == names


def test_a_row_in_the_table_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate on a new field or endpoint needs only one more row in the table."""

    def never(sent: dict[str, Json], row: dict[str, Json]) -> bool:
        return False

    rows = tuple(
        Gate(endpoint, "x", never, Cut.BEFORE_FORWARDING, ("x",)) for endpoint in ("/key/update", "/user/{key}/y")
    )
    monkeypatch.setattr(endpoints, "GATES", GATES + rows)
    found = Endpoints({"allowed_routes", "x"}, ("", "/p"))

    update = found.find("/key/update")
    assert update is not None
    assert [gate.field for gate in update.gates] == ["allowed_routes", "allowed_routes", "x"]
    other = found.find("/p/user/1/y")
    assert other is not None
    assert (other.name, other.prefix, other.key) == ("/user/{key}/y", "/p", "1")
