"""csrc/assemble.cpp and csrc/indexed_source.cpp under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import subprocess

from tests.ops.sanitized import CSRC, HERE, MARKS, compile_driver, run_driver

pytestmark = MARKS


def test_no_access_beside_the_buffers(tmp_path):
    driver = tmp_path / "driver"
    compile_driver(driver, CSRC / "assemble.cpp", CSRC / "indexed_source.cpp", HERE / "assemble_driver.cpp")
    done, refused = run_driver(driver)
    assert done > 600
    assert refused > 600
    assert done + refused == 4000


def test_the_sanitizer_would_have_told(tmp_path):
    """The same flags catch a write one element past the end, so that silence above means something."""
    source = tmp_path / "wrong.cpp"
    source.write_text(
        "#include <cstdint>\n#include <memory>\n"
        "int main(int argc, char**) {\n"
        "  std::unique_ptr<std::int64_t[]> a(new std::int64_t[4]);\n"
        "  volatile std::int64_t* p = a.get();\n"
        "  p[3 + argc] = 1;\n"
        "}\n"
    )
    compile_driver(tmp_path / "wrong", source)
    result = subprocess.run([tmp_path / "wrong"], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    # which of the two sanitizers speaks first depends on the compiler
    assert "heap-buffer-overflow" in result.stderr or "insufficient space" in result.stderr
