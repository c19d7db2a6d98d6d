import importlib
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdeq.errors import ConfigError, MissingExtraError
from hpcdeq.inference.plan import share_of
from hpcdeq.studies.scaling import expectations
from hpcdeq.studies.scaling.assumptions import Cluster, Work
from hpcdeq.studies.scaling.expectations import Range, archive_work, check, repeat, sweep
from hpcdeq.studies.scaling.results import Host, Result, UnitTimes
from hpcdeq.studies.scaling.simulation import Run, simulate
from tests.unit.inference.plans import a_plan


def _times(read: float, compute: float, write: float, *, pixels: int = 1, worker: int = 0) -> UnitTimes:
    return UnitTimes(
        worker=worker, pixels=pixels, read_seconds=read, compute_seconds=compute, write_seconds=write
    )


def _work(*pixels: float, **more) -> Work:
    return Work(pixels=np.asarray(pixels, np.float64), **more)


def _run(work: Work, times: UnitTimes, upsets=None, **cluster) -> Run:
    return simulate(Cluster(**({"nodes": 1} | cluster)), work, [times], seed=0, upsets=upsets)


@pytest.mark.parametrize(
    ("seconds", "finished"),
    [
        ((1, 3, 1), (5, 8, 11)),  # the next is read, and the last is written, while one is computed
        ((4, 1, 1), (6, 10, 14)),  # one is read at a time
        ((1, 1, 4), (6, 10, 14)),  # one is written at a time
    ],
)
def test_a_worker_reads_ahead_and_writes_behind_while_it_computes(seconds, finished):
    run = _run(_work(1, 1, 1), _times(*seconds))
    assert run.finished == pytest.approx(finished)
    assert run.ends == pytest.approx(finished[-1:])
    assert (run.seconds, run.node_seconds) == pytest.approx(finished[-1:] * 2)
    assert run.useful == pytest.approx(3 * seconds[1])
    assert (run.lost, run.failures, run.preemptions) == (0, 0, 0)


def test_no_more_is_read_ahead_than_is_asked_for():
    # The second is read until 11, and waits for the first to be computed at 20. Only then the third is read.
    assert _run(_work(10, 1, 5), _times(1, 1, 0)).finished == pytest.approx((20, 21, 30))
    # It is read from 10 to 15.
    assert _run(_work(10, 1, 5), _times(1, 1, 0), ahead=2).finished == pytest.approx((20, 21, 26))


def test_several_are_read_ahead_and_written_behind_where_that_is_asked_for():
    assert _run(_work(1, 1, 1), _times(4, 1, 1), ahead=2).finished == pytest.approx((6, 7, 10))
    assert _run(_work(1, 1, 1), _times(1, 1, 4), ahead=2).finished == pytest.approx((6, 7, 10))


def test_a_unit_takes_as_long_as_its_pixels():
    assert _run(_work(1, 2), _times(1, 10, 2, pixels=10)).finished == pytest.approx((1.3, 3.5))


def test_workers_that_share_a_core_take_turns():
    two = _work(1, 1)
    assert _run(two, _times(0, 3, 0), nodes=2, cores=2).ends == pytest.approx((3, 3))
    assert _run(two, _times(0, 3, 0), nodes=2, cores=1).ends == pytest.approx((6, 6))
    assert _run(two, _times(0, 3, 0), workers=2, cores=1).ends == pytest.approx((6, 6))
    # Half the speed until the shorter is done.
    shares = {"owners": np.array([0, 1])}
    assert _run(_work(1, 3, **shares), _times(0, 1, 0), nodes=2, cores=1).ends == pytest.approx((2, 4))
    # Three on two cores at two thirds, then two on two.
    shares = {"owners": np.array([0, 1, 2])}
    run = _run(_work(2, 3, 3, **shares), _times(0, 1, 0), nodes=3, cores=2)
    assert run.ends == pytest.approx((3, 4, 4))
    assert run.useful == pytest.approx(8)


def test_reading_does_not_take_turns_with_computing():
    shares = {"owners": np.array([0, 1])}
    run = _run(_work(1, 1, **shares), _times(2, 1, 0), nodes=2, cores=1)
    assert run.ends == pytest.approx((4, 4))


def test_storage_slows_down_by_the_number_of_those_who_use_it():
    assert _run(_work(1, 1), _times(2, 0, 0), nodes=2).ends == pytest.approx((2, 2))
    assert _run(_work(1, 1), _times(2, 0, 0), nodes=2, sigma=0.5).ends == pytest.approx((3, 3))
    assert _run(_work(1, 1), _times(1, 0, 1), nodes=2, sigma=1.0).ends == pytest.approx((4, 4))
    # Both at two thirds until 3, when the first has read its 2; the second reads its last 2 alone.
    shares = {"owners": np.array([0, 1])}
    assert _run(_work(2, 4, **shares), _times(1, 0, 0), nodes=2, sigma=0.5).ends == pytest.approx((3, 5))


def test_a_given_bandwidth_takes_the_place_of_measured_seconds():
    run = _run(_work(1, 1, bytes_per_pixel=200.0), _times(9, 1, 9), storage=100.0)
    # Read until 2, computed until 3, written until 5; the other is read meanwhile.
    assert run.finished == pytest.approx((5, 7))


@pytest.mark.parametrize(
    ("upset", "finished", "lost"),
    [
        # Until 4.5 the first was computed and half written, of the second 0.5 s was computed, half of the third was read.
        ((4.5, "failure"), (21.5, 24.5, 27.5), 3.5),
        # Who is warned writes the first, until 5.
        ((4.5, "preemption"), (5, 12, 15), 0.5),
        # The first is written.
        ((5.5, "failure"), (5, 22.5, 25.5), 1.5),
        ((5.5, "preemption"), (5, 12.5, 15.5), 1.5),
        # Only the last is being written.
        ((10.5, "failure"), (5, 8, 27.5), 3.0),
        ((10.5, "preemption"), (5, 8, 11), 0.0),
        # All is done, or nothing begun.
        ((11.5, "failure"), (5, 8, 11), 0.0),
        ((0.5, "failure"), (17.5, 20.5, 23.5), 0.0),
        ((0.5, "preemption"), (7.5, 10.5, 13.5), 0.0),
    ],
)
def test_what_ends_a_job_costs_the_units_in_flight_and_only_those(upset, finished, lost):
    shares = {"owners": np.array([0, 0, 0, 1, 1, 1])}
    run = _run(
        _work(*[1] * 6, **shares),
        _times(1, 3, 1),
        {0: [upset]},
        nodes=2,
        repair_seconds=10,
        requeue_seconds=2,
    )
    assert run.finished[:3] == pytest.approx(finished)
    assert run.finished[3:] == pytest.approx((5, 8, 11))  # the other node
    assert run.lost == pytest.approx(lost)
    assert run.useful == pytest.approx(18)
    hit = upset[0] < 11
    assert (run.failures, run.preemptions) == (
        hit * (upset[1] == "failure"),
        hit * (upset[1] == "preemption"),
    )


def test_a_preempted_worker_also_writes_what_waits_for_the_writing_of_another():
    # At 3.5 the first is written until 6, and the second is computed since 3.
    run = _run(_work(1, 1, 1), _times(1, 1, 4), {0: [(3.5, "preemption")]})
    assert run.finished == pytest.approx((6, 7.5, 13.5))
    assert run.lost == 0


def test_a_failure_ends_all_workers_of_its_node_and_no_others():
    shares = {"owners": np.array([0, 1, 2, 3])}
    run = _run(_work(1, 1, 1, 1, **shares), _times(0, 10, 0), {1: [(4.0, "failure")]}, nodes=2, workers=2)
    assert run.ends == pytest.approx((10, 10, 14, 14))
    assert run.lost == pytest.approx(8)
    assert run.failures == 1


@pytest.mark.parametrize("seconds", [(2, 0, 0), (0, 2, 0), (0, 0, 2)])
def test_who_is_gone_slows_nobody_down(seconds):
    shares = {"owners": np.array([0, 1])}
    upsets = {0: [(2.0, "failure")]}
    run = _run(_work(1, 1, **shares), _times(*seconds), upsets, nodes=2, cores=1, sigma=1.0, repair_seconds=9)
    assert run.ends == pytest.approx((13, 3))  # half of it was done when the other one failed


def test_a_worker_that_is_done_does_not_begin_again_with_its_node():
    shares = {"owners": np.array([0, 1])}
    run = _run(_work(1, 5, **shares), _times(0, 1, 0), {0: [(2.0, "failure")]}, workers=2)
    assert run.ends == pytest.approx((1, 7))
    assert run.lost == pytest.approx(2)


def test_jobs_wait_in_the_queue_and_start_anew_each_time():
    waits = {"queue_seconds": 100, "start_seconds": 5, "repair_seconds": 50, "requeue_seconds": 20}
    # Of what comes while no job runs nothing is lost: at 50 in the queue, at 110 after 5 s of computing, at 130 in repair,
    # at 182 while it starts, so that it begins again at 252.
    upsets = [(50.0, "failure"), (110.0, "failure"), (130.0, "preemption"), (182.0, "failure")]
    run = _run(_work(1), _times(0, 8, 0), {0: upsets}, **waits)
    assert run.seconds == pytest.approx(252 + 5 + 8)
    assert run.lost == pytest.approx(5)
    assert (run.failures, run.preemptions) == (2, 0)
    assert run.node_seconds == pytest.approx(10 + 2 + 13)


def test_workers_of_which_there_are_more_than_units_end_at_once():
    run = _run(_work(1), _times(0, 8, 0), nodes=4, start_seconds=1)
    assert sorted(run.ends) == pytest.approx([1, 1, 1, 9])


def test_of_neighbours_that_are_simulated_as_one_all_are_kept_but_the_one_in_flight():
    # Four of 1 s. At 2.5 two are done, and at 3.25 none of the other two.
    upsets = {0: [(2.5, "failure"), (3.25, "failure")]}
    run = _run(_work(4, parts=4), _times(0, 1, 0), upsets)
    assert run.lost == pytest.approx(0.5 + 0.75)
    assert run.seconds == pytest.approx(3.25 + 2)
    assert run.useful == pytest.approx(4)
    alone = _run(_work(1, 1, 1, 1), _times(0, 1, 0), upsets)
    assert (alone.seconds, alone.lost) == pytest.approx((run.seconds, run.lost))


@st.composite
def _settings(draw):
    """Clusters, work, times, and upsets: whole numbers, so that much happens in the same moment."""
    nodes = draw(st.integers(1, 4))
    seconds = st.integers(0, 20).map(float)
    cluster = Cluster(
        nodes=nodes,
        workers=draw(st.integers(1, 3)),
        repair_seconds=draw(seconds),
        queue_seconds=draw(seconds),
        requeue_seconds=draw(seconds),
        start_seconds=draw(seconds),
        cores=draw(st.sampled_from([None, 1, 1.5, 4])),
        storage=draw(st.sampled_from([None, 5.0])),
        sigma=draw(st.sampled_from([0.0, 0.1, 1.0])),
        ahead=draw(st.integers(1, 3)),
    )
    pixels = draw(st.lists(st.integers(1, 4), min_size=1, max_size=40))
    work = _work(*pixels, bytes_per_pixel=draw(st.integers(0, 9)), parts=draw(st.sampled_from([1, 1, 3])))
    some = st.integers(0, 3)
    times = draw(st.lists(st.builds(_times, some, some, some), min_size=1, max_size=4))
    upset = st.tuples(st.integers(0, 200), st.sampled_from(["failure", "preemption"]))
    upsets = {node: sorted(draw(st.lists(upset, max_size=20))) for node in range(nodes)}
    return cluster, work, times, upsets


@given(_settings(), st.integers(0, 1000))
def test_every_unit_is_finished_once_whatever_happens(settings, seed):
    cluster, work, times, upsets = settings
    run = simulate(cluster, work, times, seed, upsets=upsets)
    assert simulate(cluster, work, times, seed, upsets=upsets) == run
    assert np.isfinite(run.finished).all()
    assert run.seconds == max(run.ends) >= max(run.finished)
    for worker, share in enumerate(work.shares(cluster.world)):
        if len(share):
            assert max(run.finished[unit] for unit in share) == run.ends[worker]
            assert run.ends[worker] >= cluster.start_seconds + cluster.queue_seconds
    per_pixel = [unit.compute_seconds for unit in times]
    assert min(per_pixel) * work.pixels.sum() <= run.useful <= max(per_pixel) * work.pixels.sum()
    if run.failures + run.preemptions == 0:
        assert run.lost == 0
    # Nodes are held at least as long as it takes to compute what is kept and what is lost.
    assert run.node_seconds * cluster.workers >= run.useful + run.lost - 1e-6


@given(_settings(), st.integers(0, 1000))
def test_all_time_in_which_nodes_are_held_for_computing_alone_is_kept_or_lost(settings, seed):
    cluster, work, times, upsets = settings
    only = {"workers": 1, "cores": None, "storage": None, "start_seconds": 0.0}
    alone = [_times(0, unit.compute_seconds, 0) for unit in times]
    run = simulate(replace(cluster, **only), work, alone, seed, upsets=upsets)
    assert run.node_seconds == pytest.approx(run.useful + run.lost)


@given(st.lists(st.floats(1, 20), min_size=1, max_size=60), st.integers(1, 12))
def test_undisturbed_workers_take_as_long_as_the_longest_share(pixels, workers):
    work = _work(*pixels)
    run = _run(work, _times(0, 2, 0), nodes=workers)
    longest = max(2 * work.pixels[share].sum() for share in work.shares(workers))
    assert run.seconds == pytest.approx(longest)
    # No share is further from the mean than the largest unit.
    mean = 2 * work.pixels.sum() / workers
    assert mean - 1e-6 <= run.seconds <= mean + 2 * work.pixels.max() + 1e-6


@given(st.lists(st.floats(1, 20), min_size=1, max_size=30), st.integers(1, 6), st.floats(0.3, 8))
def test_workers_on_few_cores_take_as_long_as_the_cores_for_all_they_compute(pixels, workers, cores):
    run = _run(_work(*pixels), _times(0, 1, 0), nodes=workers, cores=cores)
    assert run.seconds >= sum(pixels) / cores - 1e-6
    alone = _run(_work(*pixels), _times(0, 1, 0), nodes=workers)
    assert alone.seconds - 1e-6 <= run.seconds <= max(1, workers / cores) * alone.seconds + 1e-6


def test_seeds_differ_and_the_same_seed_does_not():
    cluster = Cluster(nodes=4, mtbf_hours=0.05, cores=3, sigma=0.2)
    work, times = _work(*range(1, 40)), [_times(0.1, 1, 0.2), _times(0.2, 3, 0.1)]
    runs = [simulate(cluster, work, times, seed) for seed in (1, 2, 1)]
    assert runs[0] == runs[2] != runs[1]
    assert runs[0].useful != runs[1].useful  # the units' times are drawn too


def test_nodes_that_fail_more_often_are_not_done_earlier():
    work, times = _work(*[1] * 48), [_times(1, 60, 1)]
    mean = [
        np.mean(
            [
                simulate(Cluster(nodes=4, mtbf_hours=mtbf, start_seconds=10), work, times, seed).seconds
                for seed in range(60)
            ]
        )
        for mtbf in (None, 10, 1, 0.1, 0.05)
    ]
    assert mean == sorted(mean)
    assert mean[-1] > 1.3 * mean[0]


def test_failures_and_preemptions_come_as_often_as_their_rates_say():
    cluster = Cluster(
        nodes=8, mtbf_hours=0.2, preemptions_per_node_hour=10, repair_seconds=500, start_seconds=20
    )
    runs = [simulate(cluster, _work(*[1] * 80), [_times(2, 40, 2)], seed) for seed in range(200)]
    hours = sum(run.node_seconds for run in runs) / 3600
    for count, expected in (
        (sum(run.failures for run in runs), hours / 0.2),
        (sum(run.preemptions for run in runs), hours * 10),
    ):
        assert expected > 1000
        assert abs(count - expected) < 4 * math.sqrt(expected)


def test_a_unit_that_must_be_done_in_one_go_takes_as_long_as_theory_says():
    # Of failures at a rate r, work of d seconds that is begun anew after each is done after (exp(r d) - 1) / r on average.
    seconds, mtbf = 60.0, 50.0
    ends = [
        simulate(Cluster(nodes=1, mtbf_hours=mtbf / 3600), _work(1), [_times(0, seconds, 0)], seed).seconds
        for seed in range(2000)
    ]
    expected = mtbf * math.expm1(seconds / mtbf)
    assert abs(np.mean(ends) - expected) < 4 * np.std(ends) / math.sqrt(len(ends))


def test_the_range_of_seeds_is_their_quantiles():
    cluster, work, times = Cluster(nodes=2, mtbf_hours=0.1), _work(*[1] * 20), [_times(0, 30, 0)]
    seconds = [simulate(cluster, work, times, seed).seconds for seed in range(11)]
    assert repeat(cluster, work, times, range(11)).seconds == Range(
        median=sorted(seconds)[5],
        low=float(np.quantile(seconds, 0.05)),
        high=float(np.quantile(seconds, 0.95)),
    )


@pytest.mark.parametrize("size", [(3000, 2000), (1300, 1300), (500, 100)])
def test_the_units_of_an_archive_are_those_of_the_plan(size):
    height, width = size
    of_each = {"bands": 31, "shard_shape": (260, 260), "block": 60, "overlap": 20, "unit_mib": 256}
    plans = [a_plan(name, height=height, width=width, **of_each) for name in "abc"]
    units = [unit for plan in plans for unit in plan.units()]
    work = archive_work(3, height, width, unit=1300, block=60, overlap=20, bytes_per_pixel=124)
    assert work.pixels.tolist() == [unit.reach.height * unit.reach.width for unit in units]
    assert work.costs.tolist() == [unit.cost for unit in units]
    for workers in (1, 2, 3, 5, 40):
        shares = work.shares(workers)
        assert [[units[i] for i in share] for share in shares] == [
            share_of(plans, worker, workers) for worker in range(workers)
        ]


def test_smaller_units_are_more_work():
    pixels = [
        archive_work(2, 1300, 1300, unit=unit, block=60, overlap=20, bytes_per_pixel=124).pixels
        for unit in (1300, 650, 260)
    ]
    assert [len(each) for each in pixels] == [2, 8, 50]
    assert pixels[0].sum() == 2 * 1300**2 < pixels[1].sum() < pixels[2].sum()


def _point(world: int, units: list[UnitTimes], seconds: tuple[float, ...], **more) -> Result:
    plain = {
        "work": "denoise",
        "series": "fast",
        "nodes": world,
        "tasks": 1,
        "base": 1,
        "base_load": 1,
        "load": 1,
        "scale": 1,
        "bands": 31,
        "amount": 1.0,
        "largest_part": 1.0 / world,
        "shares": {"computing": 1.0},
        "hosts": (Host(name="n", processes=world, threads=world, cores=2),),
    }
    return Result(**(plain | {"seconds": seconds, "units": tuple(units)} | more))


def _crowded_points(cores: int, threads: int) -> list[Result]:
    """Twelve units of 1 s by four processes at most, measured twice."""
    points = []
    for world in (1, 2, 3, 4):
        host = Host(name="n", processes=world, threads=world * threads, cores=cores)
        slower = max(1.0, host.crowding)
        units = [_times(0.0, 5 * slower, 0.0, pixels=5, worker=n % world) for n in range(12) for _ in "ab"]
        seconds = 60 / world * slower
        points.append(_point(world, units, (seconds, seconds), hosts=(host,)))
    return points


@pytest.mark.parametrize(("cores", "threads"), [(2, 1), (1, 1), (8, 1), (1, 2), (4, 2)])
def test_larger_points_on_a_machine_with_few_cores_are_predicted(cores, threads):
    points = _crowded_points(cores, threads)
    predictions = check(points)
    assert [prediction.point.world for prediction in predictions] == [3, 4]
    for prediction in predictions:
        assert prediction.predicted.median == pytest.approx(prediction.measured)
        assert prediction.error == pytest.approx(0)


def test_a_prediction_does_not_look_at_the_times_of_the_point_it_predicts():
    points = _crowded_points(2, 1)
    wrong = _point(
        4,
        [_times(9, 99, 9, pixels=5, worker=n % 4) for n in range(12) for _ in "ab"],
        (60.0, 60.0),
        hosts=points[3].hosts,
    )
    (prediction,) = check([*points[:2], wrong])
    assert prediction.predicted.median == pytest.approx(30)
    assert prediction.error == pytest.approx(-0.5)


@pytest.mark.parametrize("worlds", [(1, 2, 4), (2, 4, 8), (2, 3, 16)])
def test_storage_that_saturates_is_predicted_from_two_sizes(worlds):
    # Each is slower by a half for every other that reads at the same time; there is nothing else to do.
    points = []
    for world in worlds:
        slower = 1 + 0.5 * (world - 1)
        units = [_times(slower, 0, 0, worker=n % world) for n in range(48)]
        hosts = tuple(Host(name=f"n{n}", processes=1, threads=1, cores=2) for n in range(world))
        points.append(_point(world, units, (slower * 48 / world,), hosts=hosts))
    (prediction,) = check(points)
    assert prediction.predicted.median == pytest.approx(prediction.measured)


def test_what_a_pass_takes_beside_its_units_is_predicted_too():
    other = {"computing": 1.0, "other": 4.0}
    points = [
        _point(world, [_times(0, 1, 0, worker=n % world) for n in range(12)], (12 / world + 4,), shares=other)
        for world in (1, 2)
    ]
    larger = _point(4, [_times(0, 1, 0, worker=n % 4) for n in range(12)], (10.0,), shares=other)
    (prediction,) = check([*points, larger])
    assert prediction.predicted.median == pytest.approx(6 + 4)  # four on two cores


def test_weak_points_have_the_units_they_were_given():
    points = [
        _point(
            world,
            [_times(0, 1, 0, worker=worker) for worker in range(world) for _ in range(6)],
            (6.0 * max(1, world / 2),),
            scale=world,
        )
        for world in (1, 2, 3)
    ]
    (prediction,) = check(points)
    assert prediction.predicted.median == pytest.approx(9)


def test_points_of_other_work_and_of_too_few_sizes_are_not_predicted():
    points = _crowded_points(2, 1)
    assert check(points[:2]) == []
    trained = [_point(p.world, [], p.seconds, work="train") for p in points]
    assert check([*points[:2], *trained]) == []
    other = _point(8, list(points[0].units), (1.0,), series="full")
    assert [prediction.point.world for prediction in check([*points, other])] == [3, 4]


_ARCHIVE = {
    "scenes": 40,
    "height": 520,
    "width": 520,
    "block": 60,
    "overlap": 20,
    "bytes_per_pixel": 124,
    "seeds": range(2),
}


def test_a_sweep_has_a_row_for_every_number_of_nodes_and_size_of_units():
    times = [_times(0.1, 10, 0.1, pixels=520**2)]
    rows = sweep(Cluster(nodes=1, start_seconds=5), times, **_ARCHIVE, nodes=(1, 4, 16), units=(520, 260))
    assert [(row.unit, row.nodes, row.units) for row in rows] == [
        (unit, nodes, units) for unit, units in ((520, 40), (260, 160)) for nodes in (1, 4, 16)
    ]
    seconds = [row.forecast.seconds.median for row in rows]
    assert seconds[0] == pytest.approx(5 + 40 * 10 + 0.2)
    assert seconds[0] > seconds[1] > seconds[2]
    assert seconds[3] > seconds[0]  # tiles on borders are computed twice


def test_an_archive_of_very_many_units_is_simulated_coarsely_with_about_the_same_result(monkeypatch):
    times = [_times(0.1, 10, 0.1, pixels=520**2)]
    cluster = Cluster(nodes=1, mtbf_hours=0.05, start_seconds=5)
    chosen = _ARCHIVE | {"nodes": (4,), "units": (65,), "seeds": range(5)}
    (fine,) = sweep(cluster, times, **chosen)
    monkeypatch.setattr(expectations, "_MOST_UNITS", 700)
    (coarse,) = sweep(cluster, times, **chosen)
    assert fine.units == coarse.units == 40 * 64
    assert coarse.forecast.useful.median == pytest.approx(fine.forecast.useful.median)
    assert coarse.forecast.seconds.median == pytest.approx(fine.forecast.seconds.median, rel=0.03)
    assert coarse.forecast.lost.median == pytest.approx(fine.forecast.lost.median, rel=0.5)


def test_a_unit_that_can_never_be_finished_is_an_error():
    with pytest.raises(ConfigError, match=r"ended 1000 times.*one takes 36000 s.*smaller units"):
        _run(_work(1), _times(0, 36000, 0), mtbf_hours=0.1)


def test_many_failures_are_no_error_while_units_are_finished():
    # Each time one is read, and half of the next.
    upsets = {0: [(1.5 * n, "failure") for n in range(1, 3000)]}
    run = _run(_work(*[1] * 1500), _times(1, 0, 0), upsets)
    assert run.failures == 1499
    assert run.seconds == pytest.approx(1499 * 1.5 + 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"nodes": 0}, "nodes must be at least 1, got 0"),
        ({"mtbf_hours": 0.0}, "mtbf_hours must be above 0, or None, got 0.0"),
        ({"cores": math.nan}, "cores must be above 0, or None, got nan"),
        ({"start_seconds": -1.0}, "start_seconds must not be negative, got -1.0"),
        ({"sigma": -0.1}, "sigma must not be negative, got -0.1"),
    ],
)
def test_assumptions_that_cannot_be_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        Cluster(**({"nodes": 1} | changes))


def test_nothing_is_simulated_without_units_or_measurements():
    with pytest.raises(ConfigError, match="1 units, 0 measured ones"):
        simulate(Cluster(nodes=1), _work(1), [], 0)
    with pytest.raises(ConfigError, match="0 units, 1 measured ones"):
        _run(_work(), _times(0, 1, 0))


def test_without_simpy_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "simpy", None)
    monkeypatch.delitem(sys.modules, "hpcdeq.studies.scaling.simulation")
    with pytest.raises(MissingExtraError, match=r"hpcdeq\[scale\]"):
        importlib.import_module("hpcdeq.studies.scaling.simulation")
