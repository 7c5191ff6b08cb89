import pytest

from cloudshift_lab.core import errors
from cloudshift_lab.core.errors import CloudshiftError, error_from_wire


def tree(cls=CloudshiftError):
    """The classes of this module; a room may have an error of its own that crosses no wire."""
    ours = [child for child in cls.__subclasses__() if child.__module__ == errors.__name__]
    return [cls, *(leaf for child in ours for leaf in tree(child))]


@pytest.mark.parametrize("cls", tree(), ids=lambda cls: cls.__name__)
def test_every_error_survives_the_wire_with_its_class_message_and_action(cls):
    found = error_from_wire(cls.__name__, "the bucket is away; try again")
    assert type(found) is cls
    assert (found.message, str(found)) == ("the bucket is away; try again",) * 2
    assert found.action in ("fix", "retry", "stop", "ask")


def test_an_error_of_a_newer_version_is_still_an_error():
    found = error_from_wire("Overheated", "too hot; wait")
    assert type(found) is CloudshiftError
    assert found.message == "too hot; wait"


def test_a_wrong_call_can_be_caught_as_a_value_error():
    assert issubclass(errors.UsageError, ValueError)


def test_what_fences_stops_and_what_is_stale_asks():
    assert errors.Fenced.action == "stop"
    assert errors.StaleDecision.action == "ask"
    assert issubclass(errors.Fenced, errors.Conflict)


def test_facts_are_kept_beside_the_message():
    assert CloudshiftError("no; try", key="a", num_bytes=3).facts == {"key": "a", "num_bytes": 3}


def test_the_drawn_tree_names_every_error():
    for cls in tree():
        assert cls.__name__ in errors.__doc__
