"""csrc/resize.cpp under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

from tests.ops.sanitized import CSRC, HERE, MARKS, compile_driver, run_driver

pytestmark = MARKS


def test_no_access_beside_the_buffers(tmp_path):
    driver = tmp_path / "driver"
    compile_driver(driver, CSRC / "resize.cpp", HERE / "resize_driver.cpp")
    pictures, beside = run_driver(driver)
    assert pictures == 1500
    assert beside > 10_000
