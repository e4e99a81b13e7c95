"""csrc/pack_*.cpp under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

from tests.ops.sanitized import CSRC, HERE, MARKS, compile_driver, run_driver

pytestmark = MARKS


def test_planning_touches_only_its_own_memory(tmp_path):
    driver = tmp_path / "driver"
    compile_driver(driver, *sorted(CSRC.glob("pack_*.cpp")), HERE / "pack_plan_driver.cpp")
    done, refused = run_driver(driver)
    assert done > 700
    assert refused > 300
    assert done + refused == 2000
