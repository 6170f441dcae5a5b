"""The battery, as the kernel tells of it."""

import pytest

from maas.edge.runtime.battery import Battery, read_battery


def supply(root, name, **files):
    folder = root / name
    folder.mkdir(parents=True)
    for key, value in files.items():
        (folder / key).write_text(f"{value}\n")


@pytest.mark.parametrize(
    ("status", "is_charging"),
    [("Charging", True), ("Full", True), ("Not charging", True), ("Discharging", False),
     ("Unknown", None)],
)  # fmt: skip
def test_the_battery_is_read_from_the_kernel(tmp_path, status, is_charging):
    supply(tmp_path, "hid", type="Battery", capacity=3, status="Discharging", scope="Device")
    supply(tmp_path, "BAT0", type="Battery", capacity=41, status=status)
    assert read_battery(tmp_path) == Battery(41.0, is_charging)


@pytest.mark.parametrize(("online", "is_charging"), [(1, True), (0, False), ("", False)])
def test_where_the_battery_does_not_know_the_plug_does(tmp_path, online, is_charging):
    supply(tmp_path, "AC", type="Mains", online=online)
    supply(tmp_path, "BAT0", type="Battery", capacity=41, status="Unknown")
    assert read_battery(tmp_path) == Battery(41.0, is_charging)


def test_what_a_battery_says_goes_before_the_plug(tmp_path):
    supply(tmp_path, "AC", type="Mains", online=1)
    supply(tmp_path, "BAT0", type="Battery", capacity=41, status="Discharging")
    assert read_battery(tmp_path) == Battery(41.0, False)


def test_a_machine_without_a_battery_has_none(tmp_path):
    supply(tmp_path, "AC", type="Mains", online=1)
    supply(tmp_path, "BAT0", type="Battery", capacity="odd", status="Full")
    assert read_battery(tmp_path) is None
