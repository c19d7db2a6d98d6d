"""Parts of the work with names."""

from __future__ import annotations

import threading
import time

import pytest

from hpcdeq.timing import is_measured, measuring, note, part


def test_a_part_does_not_count_those_inside_it() -> None:
    with measuring() as clock:
        with part("outer"):
            time.sleep(0.02)
            with part("inner"):
                time.sleep(0.05)
        with part("inner"):
            time.sleep(0.01)
    assert clock.total("outer") == pytest.approx(0.02, abs=0.015)
    assert clock.total("inner") == pytest.approx(0.06, abs=0.03)
    assert [seconds > 0.03 for seconds in clock.seconds("inner")] == [True, False]
    assert clock.total("none") == 0


@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_a_part_in_another_thread_is_inside_only_where_one_works_at_a_time(one_at_a_time: bool) -> None:
    def work() -> None:
        with part("inner"):
            time.sleep(0.05)

    with measuring(one_at_a_time=one_at_a_time) as clock, part("outer"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert clock.total("inner") >= 0.05
    assert (clock.total("outer") < 0.04) == one_at_a_time


def test_a_device_is_waited_for_at_both_ends() -> None:
    calls = []
    with measuring(lambda: calls.append(1)), part("a"):
        assert len(calls) == 1
    assert len(calls) == 2


def test_a_part_ends_with_an_error_too() -> None:
    with measuring() as clock:
        with pytest.raises(ValueError, match="no"), part("a"):
            raise ValueError("no")
        note("b")
    assert len(clock.seconds("a")) == 1
    assert clock.total("b") < 0.01


def test_nothing_is_kept_while_nobody_measures() -> None:
    assert not is_measured()
    with part("a"):
        pass
    with measuring() as clock:
        assert is_measured()
    assert clock.ended == {}
