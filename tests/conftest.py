"""What all rooms' tests share."""

import pytest

pytest.register_assert_rewrite("cloudshift_lab.sim.contracts")
