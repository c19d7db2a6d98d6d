"""Which points a study has, on which curves they lie, and what is told of the machines under them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdeq.cluster.machine import Seat, seat
from hpcdeq.errors import ConfigError
from hpcdeq.studies.scaling.points import Effort, Size, denoise_points, modes_of, sizes_of, train_points
from hpcdeq.studies.scaling.results import Host, Result, arranged, curves
from hpcdeq.studies.scaling.study import hosts_of

SETTINGS = ["data.train=scenes.zarr", "data.batch=4"]
BOTH = modes_of("strong,weak")


def a_result(**changes: object) -> Result:
    values: dict[str, object] = {
        "work": "train",
        "series": "s",
        "nodes": 1,
        "tasks": 1,
        "load": 4,
        "bands": 31,
        "seconds": (1.0, 2.0, 3.0),
        "amount": 4.0,
        "largest_part": 4.0,
        "shares": {},
        "hosts": (Host(name="a", processes=1, threads=1, cores=2),),
    }
    return Result(**{**values, **changes})  # type: ignore[arg-type]


def test_sizes_are_read_in_the_order_of_their_processes() -> None:
    assert sizes_of("2x4, 1x1,1x4") == [Size(1, 1), Size(1, 4), Size(2, 4)]


@pytest.mark.parametrize("text", ["", "2", "0x1", "1x0", "1x1,1x1", "1x-1", "1X2"])
def test_what_is_no_size_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="--sizes"):
        sizes_of(text)


def test_strong_points_share_a_load_and_weak_ones_grow_with_the_processes() -> None:
    points = train_points(
        [], SETTINGS, ["ddp", "zero1"], ["model.block=20,30"], sizes_of("1x1,1x2,2x2"), BOTH, Effort()
    )
    one = [p for p in points if p.series == "defaults, ZeRO-1, model.block=30"]
    assert len(points) == 4 * len(one)
    configs = [p.what["config"] for p in one]
    assert [(p.nodes, p.tasks, p.load) for p in one] == [
        (1, 1, 4),
        (1, 2, 4),
        (1, 2, 8),
        (2, 2, 4),
        (2, 2, 16),
    ]
    assert [config["data"]["batch"] for config in configs] == [p.load for p in one]
    assert {config["model"]["block"] for config in configs} == {30}
    assert {config["training"]["engine"]["stage"] for config in configs} == {1}


def test_a_point_has_one_folder_however_carefully_and_with_whatever_others_it_is_asked_for() -> None:
    def names(*words: str, sizes: str = "1x1,1x2", **effort: int) -> set[str]:
        points = train_points([], [*SETTINGS, *words], ["ddp"], [], sizes_of(sizes), BOTH, Effort(**effort))
        return {point.name for point in points}

    assert names() == names()
    assert names() == names(repeats=9, steps=2)
    assert names() < names(sizes="1x1,1x2,2x2"), "a study may be extended"
    assert not names() & names("model.block=30")
    assert not names() & names("seed=1")
    point = train_points([], SETTINGS, ["ddp"], [], sizes_of("1x1"), BOTH, Effort())[0]
    assert point.name != replace(point, where={"cluster": "local"}).name, "elsewhere it is another one"


def test_values_with_commas_inside_are_one() -> None:
    vary = ["model.solver={kind: picard, iterations: 5},{kind: picard, iterations: 9}"]
    points = train_points([], SETTINGS, ["ddp"], vary, sizes_of("1x1"), ("strong",), Effort())
    assert [p.what["config"]["model"]["solver"]["iterations"] for p in points] == [5, 9]


@pytest.mark.parametrize(
    ("words", "engines", "vary", "sizes", "told"),
    [
        (SETTINGS, ["ddp"], [], "1x1,1x8", "fewer blocks than the 8 processes"),
        (SETTINGS, ["ddp", "zero9"], [], "1x1", "no engine zero9"),
        (SETTINGS, ["ddp"], ["model.block"], "1x1", "--vary"),
        (SETTINGS, ["ddp"], ["model.blok=1,2"], "1x1", "blok"),
        (SETTINGS, ["ddp"], [], "1x2,1x3", "multiples of the smallest"),
    ],
)
def test_what_cannot_be_measured_is_said_first(
    words: list[str], engines: list[str], vary: list[str], sizes: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        train_points([], words, engines, vary, sizes_of(sizes), BOTH, Effort())


def test_bulk_points_take_all_scenes_or_as_many_for_each_process() -> None:
    scenes = [f"s{i}" for i in range(7)]
    points = denoise_points({}, "m", scenes, sizes_of("1x1,1x2,1x3"), BOTH, Effort(), 2)
    assert [(p.tasks, p.load) for p in points] == [(1, 7), (2, 7), (3, 7), (1, 2), (2, 4), (3, 6)]
    assert [len(p.what["scenes"]) for p in points] == [p.load for p in points]


def test_too_few_scenes_are_named() -> None:
    with pytest.raises(ConfigError, match="needs 4 scenes, got 3"):
        denoise_points({}, "m", ["a", "b", "c"], sizes_of("1x1,1x2"), ("weak",), Effort(), 2)
    with pytest.raises(ConfigError, match=r"no scenes to denoise in a\.zarr"):
        denoise_points({"archive": "a.zarr"}, "m", [], sizes_of("1x1"), ("strong",), Effort(), 1)


def test_a_curve_compares_with_its_smallest_size() -> None:
    one = a_result(seconds=(8.0, 9.0, 7.0))
    strong = a_result(tasks=2, seconds=(5.0,))
    weak = a_result(tasks=2, load=8, amount=8.0, seconds=(10.0,))
    found = {curve.mode: curve for curve in curves(arranged([weak, strong, one]))}
    assert [p.median for p in found["strong"].points] == [8.0, 5.0]
    assert [p.median for p in found["weak"].points] == [8.0, 10.0]
    assert found["strong"].speedup(found["strong"].points[1]) == 8 / 5
    assert found["strong"].efficiency(found["strong"].points[1]) == 0.8
    assert found["weak"].efficiency(found["weak"].points[1]) == 0.8


def test_a_point_is_on_both_curves_where_a_strong_and_a_weak_one_meet() -> None:
    half = a_result(load=2, amount=2.0)
    found = {curve.mode: curve for curve in curves(arranged([a_result(), half, a_result(tasks=2)]))}
    assert [(p.world, p.load) for p in found["strong"].points] == [(1, 4), (2, 4)]
    assert [(p.world, p.load) for p in found["weak"].points] == [(1, 2), (2, 4)]


def test_a_load_that_is_compared_with_nothing_is_on_no_curve() -> None:
    points = arranged([a_result(), a_result(tasks=2), a_result(tasks=2, load=7), a_result(tasks=3, load=8)])
    (curve,) = curves(points)
    assert [point.load for point in curve.points] == [4, 4]


@pytest.mark.parametrize(
    "other",
    [
        {"settings": {"model.block": 40}},
        {"stamp": {"gpu": "H200"}},
        {"stamp": {"torch": "3.0"}},
        {"hosts": (Host(name="a", processes=1, threads=2, cores=2),)},
    ],
)
def test_points_that_are_not_alike_are_never_one_curve(other: dict[str, object]) -> None:
    """As when a login node's processes and the cluster's GPUs are measured into one folder."""
    found = arranged([a_result(), a_result(tasks=2), a_result(tasks=2, load=8, **other)])
    names = {point.load: point.series for point in found}
    assert len({point.series for point in found}) == 2
    assert names[8] != names[4]
    assert {curve.mode for curve in curves(found)} == {"strong"}


def test_a_single_size_is_no_curve() -> None:
    assert curves(arranged([a_result(), a_result(series="other", tasks=2)])) == []


@given(st.integers(1, 5), st.integers(1, 4))
def test_a_study_is_read_as_it_was_written(nodes: int, tasks: int) -> None:
    result = a_result(nodes=nodes, tasks=tasks)
    assert Result.from_json(result.as_json()) == result


def test_nodes_of_one_kernel_are_one_machine_and_share_its_cores() -> None:
    def on(kernel: str, node: str, *cores: str) -> Seat:
        return Seat(kernel=kernel, node=node, cores=frozenset(cores), threads=1, gpu=None)

    together = [
        on("k", "n1", "0", "1"),
        on("k", "n2", "0", "1"),
        on("k", "n3", "0", "1"),
        on("other", "n4", "0"),
    ]
    first, second = hosts_of(together)
    assert (first.name, first.processes, first.threads, first.cores) == ("n1, n2, n3", 3, 3, 2)
    assert first.crowding == 1.5
    assert second.crowding == 1.0
    assert a_result(hosts=(first, second)).crowded
    assert not a_result(hosts=(second,)).crowded


def test_a_process_knows_its_cores() -> None:
    mine = seat()
    assert mine.cores
    assert mine.threads >= 1
    assert mine.gpu is None
    assert Path("/proc/sys/kernel/random/boot_id").read_text().strip() == mine.kernel
