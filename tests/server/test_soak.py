"""How the soak judges: it must be able to fail."""

from __future__ import annotations

from ..comfyhost.soak import verdict

MEGABYTE = 1 << 20


def test_memory_that_stays_after_the_warm_up_passes() -> None:
    rising = [100 * MEGABYTE + number * MEGABYTE for number in range(50)]
    steady = [150 * MEGABYTE + (number % 3) * MEGABYTE for number in range(150)]
    assert verdict(rising + steady, [])[1] == []


def test_memory_that_creeps_is_told() -> None:
    growth, wrong = verdict([1000 * MEGABYTE + number * MEGABYTE // 4 for number in range(200)], [])
    assert growth > 0.02 and "memory grew by" in wrong[0]


def test_other_pictures_are_told() -> None:
    assert verdict([MEGABYTE] * 200, ["edit gives other pictures"])[1] == ["edit gives other pictures"]
