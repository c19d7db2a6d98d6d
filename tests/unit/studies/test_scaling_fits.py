"""Models of scaling: what they recover, what they never do, and when they say that nothing can be said."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdeq.studies.scaling.fits import Case, HeldOut, PassModel, StepModel, fit, held_out
from hpcdeq.studies.scaling.laws import SerialFraction, serial_fraction
from hpcdeq.studies.scaling.microfits import Network, Storage, fit_network, fit_storage
from hpcdeq.studies.scaling.regression import Estimate, NoFit, two_costs
from hpcdeq.studies.scaling.results import Curve, Exchange, Host, Mode, Result, Transfer, Work, curves

LATENCY, BANDWIDTH = 2e-5, 1.5e9
FIXED, PER_BLOCK = 0.05, 0.2
GRADIENTS = (4_000_000, 1_000)
PER_MEGAPIXEL, PASS_FIXED = 3.0, 0.7
READ_ALONE, READ_SIGMA = 2e8, 0.1

exactly = pytest.approx


def ring(size: int, world: int, latency: float = LATENCY, bandwidth: float = BANDWIDTH) -> float:
    return 2 * (world - 1) * latency + 2 * (world - 1) / world * size / bandwidth


def all_reduces(world: int, latency: float = LATENCY, bandwidth: float = BANDWIDTH) -> tuple[Exchange, ...]:
    return tuple(
        Exchange(library="torch", bytes=size, seconds=ring(size, world, latency, bandwidth))
        for size in (1_000, 100_000, 10_000_000)
    )


def hosts(world: int, cores: int = 10**6, machines: int = 1) -> tuple[Host, ...]:
    each = world // machines
    return tuple(Host(name=f"host{n}", processes=each, threads=each, cores=cores) for n in range(machines))


def point(work: Work, world: int, scale: int, amount: float, part: float, seconds: float) -> Result:
    return Result(
        work=work,
        series="a series",
        nodes=world,
        tasks=1,
        base=1,
        base_load=8,
        weak_load=8 if scale == world else 0,
        load=8 * scale,
        scale=scale,
        bands=31,
        seconds=(seconds,) * 3,
        amount=amount,
        largest_part=part,
        shares={},
        hosts=hosts(world),
    )


def step(world: int, scale: int = 1, machines: int = 1) -> Result:
    """A point of training that is just what the model says."""
    part = math.ceil(8 * scale / world)
    seconds = FIXED + PER_BLOCK * part + sum(ring(size, world) for size in GRADIENTS)
    return replace(
        point("train", world, scale, 8 * scale, part, seconds),
        exchanges=all_reduces(world),
        exchanged=GRADIENTS if world > 1 else (),
        hosts=hosts(world, machines=machines),
    )


def reading(size: float, world: int) -> float:
    return size * (1 + READ_SIGMA * (world - 1)) / (world * READ_ALONE)


def bulk_pass(world: int, scale: int = 1) -> Result:
    """A point of bulk denoising that is just what the model says; 8 megapixels at scale 1."""
    amount = 8.0 * scale
    part = amount / world
    return replace(
        point("denoise", world, scale, amount, part, PASS_FIXED + PER_MEGAPIXEL * part),
        transfers=tuple(
            Transfer(what=what, bytes=10**9 * world, seconds=reading(10**9 * world, world))
            for what in ("read", "write")
        ),
        start_seconds=20.0,
    )


STEPS = (step(1), step(2), step(4), step(2, 2), step(4, 4))
PASSES = (bulk_pass(1), bulk_pass(2), bulk_pass(4), bulk_pass(2, 2))
of_both = pytest.mark.parametrize("points", [STEPS, PASSES], ids=["steps", "passes"])


def noisy(
    points: tuple[Result, ...], seed: int, repeats: int = 5, scatter: float = 0.02
) -> tuple[Result, ...]:
    rng = np.random.default_rng(seed)
    return tuple(
        replace(p, seconds=tuple(p.median * np.exp(scatter * rng.standard_normal(repeats)))) for p in points
    )


def crowd(p: Result, factor: int = 2) -> Result:
    """The point, with so many threads on each core."""
    return replace(p, hosts=tuple(replace(h, threads=factor * h.cores) for h in p.hosts))


def model_of(points: tuple[Result, ...]) -> StepModel | PassModel:
    model = fit(points)
    assert not isinstance(model, NoFit), model
    return model


def network_of(points: tuple[Result, ...]) -> Network:
    network = fit_network(points)
    assert isinstance(network, Network), network
    return network


def storage_of(points: tuple[Result, ...]) -> Storage:
    storage = fit_storage(points, "read")
    assert isinstance(storage, Storage), storage
    return storage


# Numbers and their intervals


def test_an_interval_holds_95_of_100_draws_and_the_number_itself() -> None:
    draws = np.arange(1001.0)
    draws[0] = 500
    assert Estimate.of(draws, True) == Estimate(500, 26, 975)
    draws[0] = 5000
    assert Estimate.of(draws, True) == Estimate(5000, 26, 5000)
    draws[0] = -5
    assert Estimate.of(draws, True) == Estimate(-5, -5, 975)
    assert Estimate.of(draws, False) == Estimate(-5)


# Two nonnegative costs


@given(
    st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=3, max_size=6),
    st.lists(st.floats(-5, 5), min_size=6, max_size=6),
)
def test_no_costs_on_a_fine_grid_fit_better(amounts: list[tuple[float, float]], target: list[float]) -> None:
    a, values = np.array(amounts), np.ones((1, len(amounts)))
    known = 1 - np.array(target[: len(amounts)])
    costs = two_costs(a, values, False, known)
    if costs is None:
        return
    best = costs.parameters[0]
    assert np.all(best >= 0)
    grid = np.stack(np.meshgrid(*[np.linspace(0, 3, 61)] * 2), -1).reshape(-1, 2)
    around = best * np.random.default_rng(0).uniform(0.9, 1.1, (500, 2))
    others = np.concatenate([grid, around]) @ a.T + known - 1
    least = np.sum((a @ best + known - 1) ** 2)
    assert least <= np.min(np.sum(others**2, axis=1)) * (1 + 1e-9) + 1e-12


# Microbenchmarks


def test_latency_and_bandwidth_are_recovered_exactly() -> None:
    link = network_of((step(2), step(4))).inside
    assert link is not None
    assert link.latency.value == exactly(LATENCY, rel=1e-9)
    assert link.bandwidth.value == exactly(BANDWIDTH, rel=1e-9)
    assert link.worlds == (2, 4)
    assert link.costs.worst < 1e-9
    assert link.seconds(5_000, 64).value == exactly(ring(5_000, 64), rel=1e-9)


def test_wires_inside_a_machine_and_between_machines_are_fitted_apart() -> None:
    across = replace(step(4, machines=2), exchanges=all_reduces(4, latency=9e-5, bandwidth=1e8))
    network = network_of((step(2), across))
    assert network.link(1).bandwidth.value == exactly(BANDWIDTH)
    assert network.link(2).bandwidth.value == exactly(1e8)
    assert network_of((step(2),)).link(2).bandwidth.value == exactly(BANDWIDTH)
    assert network_of((across,)).link(1).bandwidth.value == exactly(1e8)


def test_each_library_has_its_own_network() -> None:
    p = replace(
        step(2),
        exchanges=all_reduces(2)
        + tuple(replace(e, library="mpi", seconds=2 * e.seconds) for e in all_reduces(2)),
    )
    mpi = fit_network([p], "mpi")
    assert isinstance(mpi, Network)
    assert mpi.link(1).latency.value == exactly(2 * LATENCY)
    assert network_of((p,)).link(1).latency.value == exactly(LATENCY)


def test_one_all_reduce_that_came_late_hardly_moves_the_network() -> None:
    late = tuple(
        replace(e, seconds=20 * e.seconds if n == 1 else e.seconds) for n, e in enumerate(all_reduces(2))
    )
    link = network_of((replace(step(2), exchanges=late), step(4), step(8))).link(1)
    assert link.latency.value == exactly(LATENCY, rel=0.2)
    assert link.bandwidth.value == exactly(BANDWIDTH, rel=0.2)


def test_the_interval_of_a_noisy_network_holds_the_truth() -> None:
    hits = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        points = tuple(
            replace(
                p,
                exchanges=tuple(
                    replace(e, seconds=e.seconds * np.exp(0.1 * rng.standard_normal())) for e in p.exchanges
                ),
            )
            for p in (step(2), step(4), step(8))
        )
        latency = network_of(points).link(1).latency
        assert latency.low is not None
        assert latency.high is not None
        hits += latency.low <= LATENCY <= latency.high
    assert hits >= 90


@pytest.mark.parametrize(
    "points",
    [(), (step(1),), (replace(step(2), exchanges=all_reduces(2)[:1]),), (crowd(step(2)), crowd(step(4)))],
    ids=["none", "one process", "one size", "crowded"],
)
def test_too_few_all_reduces_are_a_reason(points: tuple[Result, ...]) -> None:
    network = fit_network(points)
    assert isinstance(network, NoFit)
    assert "at least two sizes" in network.reason


def test_saturation_is_recovered_exactly() -> None:
    storage = storage_of((bulk_pass(1), bulk_pass(2), bulk_pass(4)))
    assert storage.alone.value == exactly(READ_ALONE)
    assert storage.contention.value == exactly(READ_SIGMA)
    assert storage.limit.value == exactly(READ_ALONE / READ_SIGMA)
    assert storage.throughput(64).value == exactly(64 * READ_ALONE / (1 + READ_SIGMA * 63))


def test_processes_that_do_not_disturb_each_other_meet_no_limit() -> None:
    points = tuple(
        replace(bulk_pass(w), transfers=(Transfer(what="read", bytes=w * 1000, seconds=0.5 - 0.001 * w),))
        for w in (1, 2, 4)
    )
    storage = storage_of(points)
    assert storage.contention.value == 0
    assert storage.limit.value == math.inf
    assert storage.throughput(1024).value == exactly(1024 * 2000, rel=0.01)


@pytest.mark.parametrize(
    "points",
    [(), (bulk_pass(1),), (bulk_pass(1), bulk_pass(1, 2)), (bulk_pass(1), crowd(bulk_pass(2)))],
    ids=["none", "one", "one number of processes", "crowded"],
)
def test_too_few_transfers_are_a_reason(points: tuple[Result, ...]) -> None:
    storage = fit_storage(points, "write")
    assert isinstance(storage, NoFit)
    assert "(write)" in storage.reason


# Steps and passes


def test_a_step_is_recovered_exactly() -> None:
    model = model_of((step(1), step(2), step(4)))
    assert isinstance(model, StepModel)
    assert model.fixed.value == exactly(FIXED)
    assert model.per_block.value == exactly(PER_BLOCK)
    assert model.costs.worst < 1e-9
    for other in (step(8), step(2, 2), step(4, 4)):
        assert model.seconds(Case.of(other)).value == exactly(other.median)


def test_a_pass_is_recovered_exactly() -> None:
    model = model_of((bulk_pass(1), bulk_pass(2)))
    assert isinstance(model, PassModel)
    assert model.fixed.value == exactly(PASS_FIXED)
    assert model.per_megapixel.value == exactly(PER_MEGAPIXEL)
    for other in (bulk_pass(8), bulk_pass(4, 4)):
        assert model.seconds(Case.of(other)).value == exactly(other.median)


def test_a_pass_takes_no_less_than_the_storage() -> None:
    model = model_of(PASSES)
    case = Case(world=1000, amount=1e4, largest_part=1e-3)
    assert model.seconds(case).value == exactly(reading(1e4 * 1e6 * 31 * 4, 1000))
    fewer = fit([replace(point, bands=3) for point in PASSES])
    assert not isinstance(fewer, NoFit)
    assert fewer.seconds(case).value == exactly(reading(1e4 * 1e6 * 3 * 4, 1000))


def test_processes_that_share_a_core_share_it_fairly() -> None:
    model = model_of(STEPS)
    alone, shared = (
        model.seconds(Case(world=1, amount=8, largest_part=8, crowding=c)).value for c in (0.5, 3)
    )
    assert alone == exactly(FIXED + PER_BLOCK * 8)
    assert shared == exactly(FIXED + PER_BLOCK * 24)


@of_both
def test_crowded_points_are_never_fitted(points: tuple[Result, ...]) -> None:
    extra = crowd(replace(points[-1], seconds=(1e3,), exchanges=(), transfers=()))
    other = replace(
        extra,
        seconds=(1e-3,),
        exchanges=(
            Exchange(library="torch", bytes=1, seconds=9.0),
            Exchange(library="torch", bytes=99, seconds=1e-9),
        ),
        transfers=(Transfer(what="read", bytes=5, seconds=7.0),),
    )
    bare, first, second = (model_of(with_) for with_ in (points, (*points, extra), (*points, other)))
    case = Case(world=64, amount=1e5, largest_part=1e3, exchanged=GRADIENTS)
    assert np.array_equal(bare.draws(case), first.draws(case))
    assert np.array_equal(bare.draws(case), second.draws(case))


@of_both
def test_a_fit_is_the_same_every_time(points: tuple[Result, ...]) -> None:
    shaken = noisy(points, 3)
    case = Case(world=64, amount=100, largest_part=2, exchanged=GRADIENTS)
    assert np.array_equal(model_of(shaken).draws(case), model_of(tuple(reversed(shaken))).draws(case))


@of_both
def test_the_interval_of_a_noisy_model_holds_the_truth(points: tuple[Result, ...]) -> None:
    case = Case.of(points[-1])
    truth, hits = points[-1].median, 0
    for seed in range(100):
        seconds = model_of(noisy(points[:3], seed)).seconds(case)
        assert seconds.low is not None
        assert seconds.high is not None
        assert seconds.low <= seconds.value <= seconds.high
        hits += seconds.low <= truth <= seconds.high
    assert hits >= 90


@of_both
def test_without_repeats_there_is_no_interval(points: tuple[Result, ...]) -> None:
    once = tuple(replace(p, seconds=p.seconds[:1]) for p in points)
    seconds = model_of(once).seconds(Case.of(points[1]))
    assert seconds.value == exactly(points[1].median)
    assert (seconds.low, seconds.high) == (None, None)


@given(
    seed=st.integers(0, 1000),
    scatter=st.sampled_from((0.01, 0.5)),
    world=st.integers(1, 512),
    amount=st.floats(0, 1e5),
    part=st.floats(0, 1e4),
    crowding=st.floats(0.1, 8),
    more=st.floats(1, 8),
    work=st.sampled_from((STEPS, PASSES)),
)
def test_predictions_never_fall_with_load_or_crowding(
    seed: int,
    scatter: float,
    world: int,
    amount: float,
    part: float,
    crowding: float,
    more: float,
    work: tuple[Result, ...],
) -> None:
    model = model_of(noisy(work, seed, repeats=3, scatter=scatter))
    case = Case(world=world, amount=amount, largest_part=part, crowding=crowding, exchanged=GRADIENTS)
    seconds = model.draws(case)
    assert np.all(seconds >= 0)
    assert np.all(np.isfinite(seconds))
    for larger in (
        replace(case, largest_part=part * more),
        replace(case, amount=amount * more),
        replace(case, crowding=crowding * more),
        replace(case, exchanged=(*GRADIENTS, 100)),
    ):
        assert np.all(model.draws(larger) >= seconds)


@given(
    seed=st.integers(0, 1000), world=st.integers(1, 512), more=st.integers(1, 512), size=st.integers(0, 10**9)
)
def test_more_processes_never_exchange_faster_nor_read_slower(
    seed: int, world: int, more: int, size: int
) -> None:
    rng = np.random.default_rng(seed)
    link = network_of(
        tuple(
            replace(
                p, exchanges=tuple(replace(e, seconds=e.seconds * rng.uniform(0.5, 2)) for e in p.exchanges)
            )
            for p in (step(2), step(4))
        )
    ).link(1)
    assert np.all(link.draws(size, world + more) >= link.draws(size, world) * (1 - 1e-12))
    storage = storage_of(
        tuple(
            replace(
                p,
                transfers=tuple(replace(t, seconds=t.seconds * rng.uniform(0.95, 1.05)) for t in p.transfers),
            )
            for p in (bulk_pass(1), bulk_pass(2), bulk_pass(4))
        )
    )
    assert storage.throughput(world + more).value >= storage.throughput(world).value * (1 - 1e-12)


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ((), "no points"),
        ((crowd(step(1)), crowd(step(2))), "shared a core"),
        ((step(2), step(4, 2)), "measure a strong curve"),
        ((step(2),), "8 blocks|4 blocks"),
        ((step(1),), "all-reduces"),
        ((bulk_pass(1),), "8 megapixels"),
        ((bulk_pass(1), bulk_pass(2, 2)), "8 megapixels"),
    ],
    ids=["none", "crowded", "weak only", "one", "one process", "one pass", "weak passes only"],
)
def test_too_few_points_are_a_reason(points: tuple[Result, ...], words: str) -> None:
    model = fit(points)
    assert isinstance(model, NoFit)
    assert any(word in model.reason for word in words.split("|"))


# Held out


def checks_of(points: tuple[Result, ...]) -> list[HeldOut]:
    found = held_out(points)
    assert not isinstance(found, NoFit), found
    return found


def test_smaller_points_predict_larger_ones_and_strong_ones_the_weak() -> None:
    crowded = crowd(step(8))
    by_name = {each.fitted_to: each for each in checks_of((*STEPS, crowded))}
    assert set(by_name) == {
        "points of up to 2 processes",
        "points of up to 4 processes",
        "points of the strong curve",
    }
    two = by_name["points of up to 2 processes"]
    assert two.model.points == (step(1), step(2), step(2, 2))
    assert [c.point for c in two.checks] == [step(4), step(4, 4), crowded]
    assert [c.crowded for c in two.checks] == [False, False, True]
    assert [c.error for c in two.checks[:2]] == [exactly(0, abs=1e-9)] * 2
    assert two.checks[2].predicted.value == exactly(crowded.median + PER_BLOCK)
    assert [c.point for c in by_name["points of up to 4 processes"].checks] == [crowded]
    small = crowd(step(2))
    assert all(any(c.point is small for c in each.checks) for each in checks_of((*STEPS, small)))
    assert [c.point for c in by_name["points of the strong curve"].checks] == [
        step(2, 2),
        step(4, 4),
        crowded,
    ]


@of_both
def test_a_prediction_uses_nothing_that_was_measured_at_its_point(points: tuple[Result, ...]) -> None:
    shaken = noisy(points, 1)
    before = checks_of(shaken)[0]
    spoiled = {
        id(c.point): replace(c.point, seconds=(9e9,) * 3, exchanges=(), transfers=()) for c in before.checks
    }
    after = checks_of(tuple(spoiled.get(id(p), p) for p in shaken))[0]
    assert after.fitted_to == before.fitted_to
    assert [c.predicted for c in after.checks] == [c.predicted for c in before.checks]


@of_both
def test_points_that_are_all_needed_leave_none_to_check(points: tuple[Result, ...]) -> None:
    assert held_out(points[:2]) == NoFit("every point is needed for the fit; none is left to check it on")
    assert isinstance(held_out(points[:1]), NoFit)
    assert held_out(()) == NoFit("there are no points")
    assert held_out([crowd(points[0])]) == NoFit("there are no points without crowding")


# Amdahl and Gustafson


def amdahl(world: int, serial: float, base: int) -> float:
    return serial + (1 - serial) * base / world


def gustafson(world: int, serial: float, base: int) -> float:
    ratio = world / base
    return ratio / (ratio - serial * (ratio - 1))


def curve_of(
    mode: Mode, seconds: Callable[[int, float, int], float], serial: float, base: int = 1, sizes: int = 4
) -> Curve:
    worlds = [base * 2**n for n in range(sizes)]
    points = tuple(
        replace(
            point("train", w, w // base if mode == "weak" else 1, 8.0, 1.0, 3 * seconds(w, serial, base)),
            base=base,
            weak_load=8 if mode == "weak" else 0,
            amount=8.0 * w / base if mode == "weak" else 8.0,
        )
        for w in worlds
    )
    return next(c for c in curves(points) if c.mode == mode)


laws = pytest.mark.parametrize(("mode", "law"), [("strong", amdahl), ("weak", gustafson)])


def fraction_of(curve: Curve) -> SerialFraction:
    fraction = serial_fraction(curve)
    assert isinstance(fraction, SerialFraction), fraction
    return fraction


@laws
@pytest.mark.parametrize("serial", [0.0, 0.03, 0.4, 1.0])
@pytest.mark.parametrize("base", [1, 4])
def test_serial_fractions_are_recovered_exactly(
    mode: Mode, law: Callable[[int, float, int], float], serial: float, base: int
) -> None:
    curve = curve_of(mode, law, serial, base)
    found = fraction_of(curve)
    assert found.fraction.value == exactly(serial, abs=1e-9)
    assert found.base == base
    for p in curve.points:
        assert found.speedup(p.world) == exactly(curve.speedup(p))


@laws
@pytest.mark.parametrize("repeats", [3, 5])
@pytest.mark.parametrize("sizes", [2, 4])
def test_the_interval_of_a_serial_fraction_holds_the_truth(
    mode: Mode, law: Callable[[int, float, int], float], repeats: int, sizes: int
) -> None:
    curve = curve_of(mode, law, 0.1, sizes=sizes)
    hits = 0
    for seed in range(100):
        found = fraction_of(replace(curve, points=noisy(curve.points, seed, repeats))).fraction
        assert found.low is not None
        assert found.high is not None
        assert 0 <= found.low <= found.high <= 1
        hits += found.low <= 0.1 <= found.high
    assert hits >= 90


@laws
def test_more_scatter_is_a_wider_interval(mode: Mode, law: Callable[[int, float, int], float]) -> None:
    curve = curve_of(mode, law, 0.3)
    widths = []
    for scatter in (0.001, 0.01, 0.05):
        found = fraction_of(replace(curve, points=noisy(curve.points, 0, 5, scatter))).fraction
        assert found.low is not None
        assert found.high is not None
        widths.append(found.high - found.low)
    assert widths[0] * 5 < widths[1] < widths[2] / 2


@laws
def test_crowded_points_say_nothing_of_serial_fractions(
    mode: Mode, law: Callable[[int, float, int], float]
) -> None:
    curve = curve_of(mode, law, 0.1)
    spoiled = replace(
        curve, points=(*curve.points[:2], *(crowd(replace(p, seconds=(99.0,) * 3)) for p in curve.points[2:]))
    )
    found = fraction_of(spoiled)
    assert found.fraction.value == exactly(0.1)
    assert found.worlds == (1, 2)

    alone = serial_fraction(replace(curve, points=(curve.points[0], *(crowd(p) for p in curve.points[1:]))))
    assert isinstance(alone, NoFit)
    assert alone.reason.endswith("with one are at: 1")
    assert isinstance(serial_fraction(replace(curve, points=tuple(crowd(p) for p in curve.points))), NoFit)
