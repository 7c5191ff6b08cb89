import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudshift_lab.core.errors import Corrupt
from cloudshift_lab.core.orders import AgentStatus, Order, OrderResult
from cloudshift_lab.core.placement import Clouds, Placement
from cloudshift_lab.core.plan import Decision, MigrationView, Plan
from cloudshift_lab.core.run import JobSpec, RunSpec, RunView
from cloudshift_lab.core.views import CostView, Series, Target
from cloudshift_lab.core.wire import from_json, to_json

KINDS = [AgentStatus, Order, Clouds, Placement, Decision, MigrationView, Plan, JobSpec, RunSpec,
         RunView, CostView, Series, Target]  # fmt: skip


numbers = st.integers(-(2**63), 2**63 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(max_size=20)
structs = st.one_of(
    st.builds(Order, order_id=texts, kind=st.sampled_from(["go", "drain"]), at=finite,
              step=st.none() | numbers, manifest_digest=st.none() | texts),
    st.builds(AgentStatus, run_id=texts, generation=numbers, state=st.just("running"),
              beat=numbers, at=finite, results=st.dictionaries(
                  texts, st.builds(OrderResult, state=st.just("done"), detail=texts,
                                   num_bytes=numbers), max_size=3), loss=st.none() | finite),
    st.builds(RunSpec, name=texts, script=texts, args=st.lists(texts).map(tuple),
              env=st.dictionaries(texts, texts, max_size=3)),
    st.builds(Decision, decision_id=texts, plan_digest=texts, verdict=st.just("approve"),
              by=texts, at=finite),
)  # fmt: skip


@settings(deadline=None)
@given(structs)
def test_values_survive_the_trip_exactly(value):
    assert from_json(to_json(value), type(value)) == value


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.integers(), max_size=8))
def test_the_order_of_keys_does_not_matter(value):
    backwards = dict(reversed(value.items()))
    assert to_json(value) == to_json(backwards)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=30)
@given(data=st.binary(max_size=60))
def test_other_bytes_are_corrupt_and_never_anything_else(kind, data):
    with pytest.raises(Corrupt):
        from_json(b"x" + data, kind)


def test_the_message_names_what_and_which_field():
    with pytest.raises(Corrupt, match=r"the log's record .*run_id") as caught:
        from_json(b'{"order_id":"o","kind":"go"}', AgentStatus, what="the log's record")
    assert "\n" not in caught.value.message
    with pytest.raises(Corrupt, match=r"\$\.kind"):
        from_json(b'{"order_id":"o","kind":"dance","at":1.0}', Order)


def test_fields_of_a_newer_version_are_ignored():
    order = from_json(b'{"order_id":"o","kind":"go","at":1.0,"colour":"red"}', Order)
    assert order == Order(order_id="o", kind="go", at=1.0)


def test_a_number_that_is_none_travels_as_null():
    series = Series(run_id="r", loss=(math.nan, 1.0))
    assert from_json(to_json(series), Series).loss == (None, 1.0)
