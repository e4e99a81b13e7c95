"""Signals are remembered, the first of them, and the old handlers come back."""

from __future__ import annotations

import os
import signal

import pytest

from megatron_vlm.training.signals import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_remembered(number: signal.Signals) -> None:
    stop = StopRequest()
    try:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received == number
    finally:
        stop.restore()


def test_the_first_signal_counts_and_the_old_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    stop = StopRequest()
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGUSR1
    finally:
        stop.restore()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == before
