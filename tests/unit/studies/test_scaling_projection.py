"""Projections and recommendations: exact where the model is, bounded where it ends, and never without what they assume."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdeq.studies.scaling.projection import (
    Choice,
    Choices,
    Projection,
    choices,
    nodes_for_best_cost,
    nodes_for_deadline,
    project,
)
from hpcdeq.studies.scaling.regression import Estimate, NoFit
from hpcdeq.studies.scaling.results import Result
from tests.unit.studies.test_scaling_fits import (
    FIXED,
    GRADIENTS,
    PASS_FIXED,
    PASSES,
    PER_BLOCK,
    PER_MEGAPIXEL,
    STEPS,
    bulk_pass,
    crowd,
    exactly,
    noisy,
    of_both,
    reading,
    ring,
    step,
)

SCENE = 1.69
START = 20.0


def projections(points: tuple[Result, ...]) -> list[Projection]:
    found = project(points)
    assert not isinstance(found, NoFit), found
    return found


def choices_of(points: tuple[Result, ...], amount: int) -> Choices:
    found = choices(points, amount)
    assert isinstance(found, Choices), found
    return found


def step_seconds(world: int, part: int) -> float:
    return FIXED + PER_BLOCK * part + sum(ring(size, world) for size in GRADIENTS)


def archive_seconds(world: int, scenes: int) -> float:
    computing = PASS_FIXED + PER_MEGAPIXEL * SCENE * math.ceil(scenes / world)
    return START + max(computing, reading(scenes * SCENE * 1e6 * 31 * 4, world))


def test_a_strong_curve_is_projected_to_one_block_a_process_and_no_further() -> None:
    strong, _ = projections(STEPS)
    assert (strong.mode, strong.of, strong.measured_to) == ("strong", "a step of 8 blocks", 4)
    assert [p.world for p in strong.points] == [1, 2, 4, 8]
    for p in strong.points:
        seconds = step_seconds(p.world, 8 // p.world)
        assert p.seconds.value == exactly(seconds)
        assert p.speedup.value == exactly(step_seconds(1, 8) / seconds)
        assert p.efficiency.value == exactly(step_seconds(1, 8) / seconds / p.world)


def test_a_batch_that_is_no_power_of_two_ends_at_its_own_size() -> None:
    points = tuple(
        replace(p, base_load=11, amount=11.0, largest_part=math.ceil(11 / p.world)) for p in STEPS[:3]
    )
    strong, weak = projections(points)
    assert [p.world for p in strong.points] == [1, 2, 4, 8, 11]
    assert weak.points[-1].world == 1024


def test_a_batch_of_more_than_1024_blocks_ends_at_1024_processes() -> None:
    points = tuple(
        replace(p, base=2, base_load=5000, amount=5000.0, largest_part=math.ceil(5000 / p.world))
        for p in STEPS[1:3]
    )
    strong, weak = projections(points)
    assert [p.world for p in strong.points] == [p.world for p in weak.points] == [2**n for n in range(1, 11)]


def test_a_weak_curve_keeps_the_blocks_of_a_process() -> None:
    _, weak = projections(STEPS)
    assert weak.of == "a step of 8 blocks a process"
    assert [p.world for p in weak.points] == [2**n for n in range(11)]
    for p in weak.points:
        seconds = step_seconds(p.world, 8)
        assert p.seconds.value == exactly(seconds)
        assert p.efficiency.value == exactly(step_seconds(1, 8) / seconds)
        assert p.speedup.value == exactly(p.world * p.efficiency.value)


def test_an_archive_is_projected_with_its_start_and_its_storage() -> None:
    (archive,) = projections(PASSES)
    assert archive.of == "a pass over 100,000 scenes of 1.69 megapixels"
    assert [p.world for p in archive.points] == [2**n for n in range(11)]
    for p in archive.points:
        assert p.seconds.value == exactly(archive_seconds(p.world, 100_000))
    assert archive.points[-1].speedup.value < 1024
    # The storage gives 2 GB/s at most, to which 1,024 processes come near.
    assert any("read at up to 2 GB/s" in sentence for sentence in archive.assumptions)
    first = next(
        w
        for w in range(1, 1025)
        if archive_seconds(w, 100_000) > START + PASS_FIXED + PER_MEGAPIXEL * SCENE * math.ceil(1e5 / w)
    )
    named = next(p.world for p in archive.points if p.world >= first)
    assert f"From {named:,} processes on, a pass takes what the storage takes." in archive.assumptions


def test_processes_of_a_node_are_those_of_the_largest_point_of_the_fit() -> None:
    def packed(p: Result, tasks: int) -> Result:
        return replace(p, nodes=p.world // tasks, tasks=tasks)

    points = (step(1), packed(step(2), 2), packed(step(4), 4), crowd(packed(step(8), 8)))
    strong, _ = projections(points)
    assert [(p.world, p.nodes) for p in strong.points] == [(1, 1), (2, 1), (4, 1), (8, 2)]
    found = choices_of(points, 10)
    assert [(c.nodes, c.processes) for c in found.each] == [(1, 4), (2, 8)]
    few = tuple(replace(p, base_load=3) for p in points)
    assert [(c.nodes, c.processes) for c in choices_of(few, 10).each] == [(1, 3)]


def test_all_reduces_that_were_not_measured_between_machines_are_an_assumption() -> None:
    sentence = "All-reduces between machines were not measured; they are taken to be as fast as inside one."
    for projection in projections(STEPS):
        assert sentence in projection.assumptions
    across = (step(1), step(2, machines=2), step(4, machines=2))
    for projection in projections(across):
        assert sentence not in projection.assumptions


def test_storage_that_was_not_measured_is_an_assumption() -> None:
    (archive,) = projections(tuple(replace(p, transfers=()) for p in PASSES))
    assert sum("is never what a pass waits for" in sentence for sentence in archive.assumptions) == 2
    assert archive.points[-1].seconds.value == exactly(START + PASS_FIXED + PER_MEGAPIXEL * SCENE * 98)


@of_both
def test_every_projection_has_an_interval_from_the_repeats_and_says_what_it_assumes(
    points: tuple[Result, ...],
) -> None:
    for projection in projections(noisy(points, 0)):
        for p in projection.points:
            for number in (p.seconds, p.speedup, p.efficiency):
                assert number.low is not None
                assert number.high is not None
                assert 0 < number.low <= number.value <= number.high
        first = projection.points[0]
        assert (first.speedup, first.efficiency) == (Estimate(1, 1, 1), Estimate(1, 1, 1))
        assert any(f"used for up to {projection.points[-1].world:,}." in s for s in projection.assumptions)
        assert all(s.endswith(".") for s in projection.assumptions)
    once = tuple(replace(p, seconds=p.seconds[:1]) for p in points)
    for projection in projections(once):
        assert projection.points[-1].seconds.low is None
        assert "There is no interval, because not every point was repeated." in projection.assumptions


@of_both
def test_a_projection_says_how_far_off_its_model_was_where_that_is_known(points: tuple[Result, ...]) -> None:
    # The last point, left out, takes a quarter more than predicted from the others; how crowded ones do is not asked.
    slow = replace(points[-1], seconds=tuple(1.25 * s for s in points[-1].seconds))
    spoiled = crowd(replace(points[-1], seconds=(99.0,) * 3))
    strong = tuple(p for p in points if p.scale == 1)
    (missed,) = {p.assumptions[1] for p in projections((*strong, slow, spoiled))}
    assert (
        missed
        == "Predicted from other points, those with a core or a GPU a process were missed by 20.0% at most."
    )
    for p in projections((*points[:2], spoiled)):
        assert p.assumptions[1].startswith("The model was not checked")


@of_both
def test_what_cannot_be_fitted_is_neither_projected_nor_recommended(points: tuple[Result, ...]) -> None:
    for too_few in ((), points[:1], tuple(crowd(p) for p in points)):
        assert isinstance(project(too_few), NoFit)
        assert isinstance(choices(too_few, 100), NoFit)


@given(seed=st.integers(0, 1000), scatter=st.sampled_from((0.01, 0.3)))
def test_more_processes_never_make_a_weak_step_shorter(seed: int, scatter: float) -> None:
    _, weak = projections(noisy(STEPS, seed, scatter=scatter))
    seconds = [p.seconds.value for p in weak.points]
    assert all(later >= earlier for earlier, later in pairwise(seconds))
    assert all(p.efficiency.value <= 1 for p in weak.points)


@given(seed=st.integers(0, 1000))
def test_more_processes_never_make_an_archive_take_longer(seed: int) -> None:
    (archive,) = projections(noisy(PASSES, seed, scatter=0.1))
    seconds = [p.seconds.value for p in archive.points]
    assert all(later <= earlier for earlier, later in pairwise(seconds))
    assert all(p.efficiency.value <= 1 + 1e-12 for p in archive.points)


def test_what_is_not_fitted_is_taken_from_the_largest_points() -> None:
    doubled = tuple(2 * size for size in GRADIENTS)
    points = tuple(replace(p, exchanged=doubled) if p.world == 4 else p for p in STEPS)
    points = tuple(replace(p, start_seconds=100.0 * p.scale + p.world) for p in points)
    _, weak = projections(points)
    seconds = weak.points[-1].seconds.value - weak.points[0].seconds.value
    assert seconds == exactly(sum(ring(size, 1024) for size in doubled))
    assert any("104 s before its work" in sentence for sentence in choices_of(points, 10).assumptions)


# Recommendation


def test_a_job_costs_its_start_and_its_work_on_every_node() -> None:
    bulk = choices_of(PASSES, 5_000)
    assert [c.nodes for c in bulk.each] == list(range(1, 1025))
    for n in (1, 7, 1024):
        assert bulk.each[n - 1].seconds.value == exactly(archive_seconds(n, 5_000))
        assert bulk.each[n - 1].node_hours.value == exactly(n * archive_seconds(n, 5_000) / 3600)
    train = choices_of(tuple(replace(p, start_seconds=30.0) for p in STEPS), 1_000)
    assert train.of == "1,000 steps of 8 blocks"
    for n, choice in enumerate(train.each, start=1):
        assert choice.seconds.value == exactly(30 + 1_000 * step_seconds(n, math.ceil(8 / n)))
    assert len(train.each) == 8


def listed(seconds: list[float]) -> Choices:
    return Choices(
        of="some work",
        each=tuple(
            Choice(nodes=n, processes=n, seconds=Estimate(s), node_hours=Estimate(n * s / 3600))
            for n, s in enumerate(seconds, start=1)
        ),
        assumptions=(),
    )


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=30), st.floats(1, 1e6))
def test_recommendations_are_those_of_brute_force(seconds: list[float], deadline: float) -> None:
    found = listed(seconds)
    costs = {n: n * s / 3600 for n, s in enumerate(seconds, start=1)}
    assert nodes_for_best_cost(found).nodes == max(n for n in costs if costs[n] <= 1.1 * min(costs.values()))
    in_time = [n for n, s in enumerate(seconds, start=1) if s <= deadline]
    chosen = nodes_for_deadline(found, deadline)
    if in_time:
        assert isinstance(chosen, Choice)
        assert chosen.nodes == min(in_time)
    else:
        assert isinstance(chosen, NoFit)
        assert f"the fastest is {int(np.argmin(seconds)) + 1:,}, with {min(seconds):,.0f} s" in chosen.reason


@pytest.mark.parametrize(("points", "amount"), [(STEPS, 500), (PASSES, 3_000)], ids=["steps", "scenes"])
def test_recommendations_from_points_are_those_of_the_formulas(
    points: tuple[Result, ...], amount: int
) -> None:
    def seconds(n: int) -> float:
        return amount * step_seconds(n, math.ceil(8 / n)) if points is STEPS else archive_seconds(n, amount)

    counts = range(1, 9) if points is STEPS else range(1, 1025)
    found = choices_of(points, amount)
    least = min(n * seconds(n) for n in counts)
    assert nodes_for_best_cost(found).nodes == max(n for n in counts if n * seconds(n) <= 1.1 * least)
    for part in (0.9, 0.5, 0.31):
        deadline = part * seconds(1)
        chosen = nodes_for_deadline(found, deadline)
        assert isinstance(chosen, Choice)
        assert chosen.nodes == min(n for n in counts if seconds(n) <= deadline)
    never = nodes_for_deadline(found, 1e-3)
    assert isinstance(never, NoFit)
    assert f"any number of nodes up to {counts[-1]:,}" in never.reason


def test_a_storage_that_is_full_is_not_worth_more_nodes() -> None:
    alone = choices_of(tuple(replace(bulk_pass(w), transfers=()) for w in (1, 2)), 100_000)
    slow = choices_of(
        tuple(
            replace(p, transfers=tuple(replace(t, seconds=10 * t.seconds) for t in p.transfers))
            for p in PASSES
        ),
        100_000,
    )
    assert nodes_for_best_cost(slow).nodes < nodes_for_best_cost(alone).nodes / 10
