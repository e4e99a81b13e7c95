"""csrc/fuse.cpp and csrc/patchify.cpp under the address, undefined-behaviour and thread sanitizers."""

from __future__ import annotations

import pytest

from tests.ops.sanitized import CSRC, HERE, MARKS, compile_driver, run_driver

pytestmark = MARKS


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_no_access_beside_the_buffers_and_no_race(tmp_path, sanitizers):
    driver = tmp_path / "driver"
    sources = (CSRC / "fuse.cpp", CSRC / "patchify.cpp", HERE / "fuse_driver.cpp")
    compile_driver(driver, *sources, sanitizers=sanitizers)
    slices, refused, pictures = run_driver(driver)
    assert slices > 300
    assert refused > 50
    assert pictures > 300
