"""What the test bed started does not outlive it."""

import os
import signal

import pytest

from cloudshift_lab.sim.bed import ending_in_order


def test_told_to_end_the_process_ends_through_its_cleanups_and_the_old_way_is_back_afterwards():
    before, cleaned = signal.getsignal(signal.SIGTERM), []
    with pytest.raises(SystemExit) as ended, ending_in_order():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            cleaned.append(True)
    assert (ended.value.code, cleaned) == (143, [True])
    assert signal.getsignal(signal.SIGTERM) == before
