"""Heat, as the kernel tells of it."""

import pytest

from maas.edge.runtime.thermal import Heat, read_heat


def zone(root, number, temp, kind="cpu-thermal", trips=()):
    folder = root / f"thermal_zone{number}"
    folder.mkdir(parents=True)
    (folder / "type").write_text(f"{kind}\n")
    (folder / "temp").write_text(f"{temp}\n")
    for index, (trip, limit) in enumerate(trips):
        (folder / f"trip_point_{index}_type").write_text(f"{trip}\n")
        (folder / f"trip_point_{index}_temp").write_text(f"{limit}\n")
    return folder


def test_a_zone_is_too_hot_where_the_kernel_begins_to_slow_down(tmp_path):
    trips = [("active", 50_000), ("critical", 110_000), ("hot", 95_000), ("passive", 80_000)]
    zone(tmp_path, 0, 61_500, trips=trips)
    heat = read_heat(tmp_path)
    assert heat == Heat("cpu-thermal", 61.5, 80.0)
    assert heat.margin_k == pytest.approx(18.5)


def test_the_zone_that_counts_is_the_one_nearest_to_its_limit(tmp_path):
    zone(tmp_path, 0, 70_000, "cpu", [("passive", 95_000)])
    zone(tmp_path, 1, 44_000, "skin", [("passive", 48_000)])
    zone(tmp_path, 2, 50_000, "gpu")
    (tmp_path / "cooling_device0").mkdir()
    assert read_heat(tmp_path) == Heat("skin", 44.0, 48.0)


@pytest.mark.parametrize(
    ("kind", "trips", "limit_c"),
    [
        ("soc", (), 85.0),
        ("soc", (("critical", 105_000),), 85.0),
        ("soc", (("passive", 0),), 85.0),
        ("soc", (("passive", -274_000),), 85.0),
        ("soc", (("passive", 16_800),), 85.0),
        ("soc", (("passive", "odd"),), 85.0),
        ("x86_pkg_temp", (("passive", 0), ("passive", 0)), 95.0),
        ("x86_pkg_temp", (("passive", 90_000),), 90.0),
    ],
)
def test_a_zone_that_names_no_limit_has_a_usual_one(tmp_path, kind, trips, limit_c):
    zone(tmp_path, 0, 40_000, kind, trips)
    assert read_heat(tmp_path) == Heat(kind, 40.0, limit_c)


@pytest.mark.parametrize("temp", [0, -1, -274_000, 150_001, 2**31, "", "odd"])
def test_a_zone_that_says_nonsense_is_passed_over(tmp_path, temp):
    zone(tmp_path, 0, temp)
    assert read_heat(tmp_path) is None
    zone(tmp_path, 1, 30_000, "soc")
    assert read_heat(tmp_path) == Heat("soc", 30.0, 85.0)


def test_a_sensor_that_cannot_be_read_is_passed_over(tmp_path):
    zone(tmp_path, 0, 1)
    (tmp_path / "thermal_zone0" / "temp").unlink()
    (tmp_path / "thermal_zone0" / "temp").mkdir()
    assert read_heat(tmp_path) is None


def test_a_machine_that_tells_nothing_has_no_heat(tmp_path):
    assert read_heat(tmp_path) is None
    assert read_heat(tmp_path / "missing") is None
