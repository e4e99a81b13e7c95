"""What is checked before gigatoken is used, and that it may be used in forked and spawned workers."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.data.tokenizers.backend import Backend, FlatIds, GigatokenUnusable
from megatron_vlm.data.tokenizers.check_texts import check_texts
from megatron_vlm.data.tokenizers.gigatoken_engine import open_checked

from .conftest import SAMPLE

BUNDLED = SAMPLE / "tokenizer"
TEXTS = ["a red square <image>", "", "naïve ☃\r\n", "two"]


def test_the_texts_are_many_odd_and_always_the_same() -> None:
    texts = list(check_texts())
    assert texts == list(check_texts())
    assert 300 < len(texts) < 800
    assert sum(len(text.encode()) for text in texts) < 40_000
    assert {"", "\0", "a" * 5000, "\ufffd", "\u200d"} <= set(texts)
    assert any("<|endoftext|>" in text for text in texts)


class Wrong:
    """A backend that agrees with gigatoken but for one text."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.size, self.special_ids = backend.size, backend.special_ids
        self.encode, self.encode_batch, self.decode = backend.encode, backend.encode_batch, backend.decode
        self.open_gigatoken = backend.open_gigatoken

    def encode_flat(self, texts: Sequence[str], parallel: bool) -> FlatIds:
        flat, offsets = self._backend.encode_flat(texts, parallel)
        flat = flat.copy()
        flat[offsets[texts.index("\ufffd")]] += 1
        return flat, offsets


def test_one_other_id_is_found_and_its_text_named() -> None:
    backend = Tokenizer.load(BUNDLED)._backend
    assert open_checked(backend).encode_flat(["a"], parallel=False)[0].tolist() == backend.encode("a")
    with pytest.raises(GigatokenUnusable, match="other ids for '\ufffd'"):
        open_checked(Wrong(backend))


def test_without_gigatoken_it_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    monkeypatch.setitem(sys.modules, "gigatoken.gigatoken_rs", None)
    tokenizer = Tokenizer.load(BUNDLED)
    with pytest.warns(RuntimeWarning, match="encoding slowly.*not installed, pip install gigatoken"):
        assert tokenizer.flat_backend == "tokenizer.json"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tokenizer.encode_flat(["two"])[0].tolist() == tokenizer.encode("two")
        assert pickle.loads(pickle.dumps(tokenizer)).flat_backend == "tokenizer.json", "a worker does not say it again"


def test_the_ids_are_of_their_own_texts_however_they_are_batched() -> None:
    tokenizer = Tokenizer.load(BUNDLED, backend="gigatoken")
    flat, offsets = tokenizer.encode_flat(TEXTS)
    assert (flat.dtype, offsets.dtype) == (np.dtype(np.uint32), np.dtype(np.int64))
    assert [flat[a:b].tolist() for a, b in zip(offsets[:-1], offsets[1:], strict=True)] == tokenizer.encode_batch(TEXTS)
    assert [part.tolist() for part in tokenizer.encode_flat([])] == [[], [0]]
    assert [part.tolist() for part in tokenizer.encode_flat(["", ""])] == [[], [0, 0, 0]]


def _flat(tokenizer: Tokenizer, answers: Any) -> None:
    answers.put((tokenizer.flat_backend, tokenizer.encode_flat(TEXTS)[0].tolist()))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("backend", ["gigatoken", "tokenizers"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_workers_give_the_same_after_the_parent_has_encoded(method: str, backend: str) -> None:
    tokenizer = Tokenizer.load(BUNDLED, backend=backend)  # type: ignore[arg-type]
    expected = tokenizer.encode_flat(TEXTS)[0].tolist()
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    worker = context.Process(target=_flat, args=(tokenizer, answers))  # type: ignore[attr-defined]
    worker.start()
    assert answers.get(timeout=60) == (tokenizer.flat_backend, expected)
    worker.join(60)
    assert worker.exitcode == 0


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's list of threads")
@pytest.mark.parametrize("backend", ["gigatoken", "tokenizers"])
def test_no_thread_is_started_unless_asked_for(backend: str) -> None:
    script = f"""
import os, awkward
from megatron_vlm.data.tokenizer import Tokenizer
tokenizer = Tokenizer.load({str(BUNDLED)!r}, backend={backend!r})
before = len(os.listdir("/proc/self/task"))
tokenizer.encode_flat(["one", "two"] * 100)
print(len(os.listdir("/proc/self/task")) - before)
tokenizer.encode_flat(["one", "two"] * 100, parallel=True)
print(len(os.listdir("/proc/self/task")) - before)
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    alone, together = map(int, done.stdout.split())
    assert alone == 0
    assert together > 0
