import collections
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudshift_lab.checkpoint.leaves import decode_leaves, encode_leaves
from cloudshift_lab.core.errors import Corrupt, UsageError

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text
    | st.binary(max_size=20)
)  # fmt: skip
keys = text | st.integers() | st.booleans() | st.none() | st.tuples(st.integers(), text)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(text.map(lambda t: f"${t}"), inner, max_size=2)
    ),
    max_leaves=20,
)


@given(trees)
def test_every_tree_of_plain_values_keeps_its_types_and_order(tree):
    assert repr(decode_leaves(encode_leaves(tree))) == repr(tree)


def test_nan_comes_back_as_nan():
    found = decode_leaves(encode_leaves([math.nan]))
    assert isinstance(found, list) and math.isnan(found[0])


def test_what_is_stored_is_json():
    stored = msgspec.json.decode(encode_leaves({"a": (1, b"x"), "b": {0: math.inf}, "c": 2**60}))
    assert stored == {
        "a": {"$t": [1, {"$b": "eA=="}]},
        "b": {"$d": [[0, {"$f": "inf"}]]},
        "c": {"$i": str(2**60)},
    }


@pytest.mark.parametrize(
    "tree, path",
    [
        ({"opt": [1, {"x": {1, 2}}]}, r"leaves\.opt\[1\]\.x is a set"),
        ({0: object()}, r"leaves\[0\] is a object"),
        ((1, bytearray(b"x")), r"leaves\[1\] is a bytearray"),
        (collections.namedtuple("Point", "x")(1), "leaves is a Point"),
    ],
)
def test_anything_else_is_refused_with_its_path(tree, path):
    with pytest.raises(UsageError, match=path):
        encode_leaves(tree)


def test_a_tree_that_contains_itself_is_refused():
    loop = []
    loop.append(loop)
    with pytest.raises(UsageError, match="nested deeper"):
        encode_leaves(loop)


def test_a_string_that_is_not_unicode_is_refused():
    with pytest.raises(UsageError, match="not Unicode"):
        encode_leaves({"name": "\ud800"})


@pytest.mark.parametrize(
    "data",
    [
        b'{"$x": "1"}', b'{"$b": "not base64!"}', b'{"$f": "1.0"}', b'{"$i": "x"}', b'{"$t": 5}',
        b'{"$d": [[1]]}', b'{"$d": [[[1], 2]]}', b'{"a": 1, "$b": "eA=="}',
        b'{"$b": "eA==", "a": 1}',
        b"[" * 5000 + b"]" * 5000,
        b"[" * 300 + b"]" * 300, b'{"$b": 5}', b'{"$i": "' + b"9" * 5000 + b'"}', b"nonsense",
    ],
)  # fmt: skip
def test_malformed_leaves_are_corrupt(data):
    with pytest.raises(Corrupt):
        decode_leaves(data)
