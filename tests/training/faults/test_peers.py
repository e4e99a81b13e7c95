"""Which rank the others wait for, from what each told last."""

from __future__ import annotations

import json

from megatron_vlm.training.faults.peers import Peer, Verdict, find_fault, silent_text

NOW, TIMEOUT = 1000.0, 10.0


def peer(rank: int, count: int, age: float, heard: float = 0.5, allowed: float = TIMEOUT, host: str = "a") -> Peer:
    """`age` seconds in its phase now, last heard `heard` seconds ago."""
    place = {"step": count // 3, "phase": "data", "count": count, "age": age - heard}
    return Peer(rank, NOW - heard, allowed, host, 100 + rank, 1.0, **place)


def guilty(*peers: Peer) -> list[int] | None:
    verdict = find_fault(peers, NOW, TIMEOUT)
    return None if verdict is None else [one.rank for one in verdict.accused]


def test_ranks_that_go_on_are_left_alone() -> None:
    assert guilty(peer(0, 6, 1.0), peer(1, 7, 0.6), peer(2, 6, 9.0)) is None


def test_a_silent_rank_is_accused_by_the_lowest_other_on_its_host() -> None:
    verdict = find_fault([peer(0, 6, 12), peer(1, 6, 12, 11, host="b"), peer(2, 6, 12, host="b")], NOW, TIMEOUT)
    assert verdict is not None
    assert [(one.rank, one.pid, one.by) for one in verdict.accused] == [(1, 101, 2)]
    assert "rank 1 (host b, pid 101) gave no sign of life for 11.0 s" in verdict.text
    assert Verdict.from_map(json.loads(json.dumps(verdict.to_map()))) == verdict


def test_of_ranks_that_talk_the_one_behind_is_accused_and_not_the_one_that_waits_longest() -> None:
    assert guilty(peer(0, 7, 30), peer(1, 6, 11), peer(2, 7, 25)) == [1]


def test_a_rank_whose_last_word_is_old_is_not_behind_ranks_that_go_on() -> None:
    assert guilty(peer(0, 9, 0.1), peer(1, 6, 500, heard=1.0)) is None


def test_a_rank_in_a_long_phase_is_waited_for() -> None:
    assert guilty(peer(0, 7, 500), peer(1, 6, 500, allowed=1800)) is None


def test_the_last_to_come_has_its_own_time() -> None:
    assert guilty(peer(0, 7, 500), peer(1, 7, 1)) is None
    assert guilty(peer(0, 7, 500), peer(1, 7, 11)) == [], "all stand, and nobody is accused"


def test_who_has_left_is_not_judged() -> None:
    gone = peer(1, 3, 100, heard=90)
    gone.left = True
    assert guilty(peer(0, 7, 1), gone) is None


def test_a_rank_that_never_reported_has_the_time_of_a_start() -> None:
    assert guilty(peer(0, 0, 20, allowed=60), Peer(1, NOW - 20, 60.0)) is None
    verdict = find_fault([peer(0, 0, 20, allowed=60), Peer(1, NOW - 61, 60.0)], NOW, TIMEOUT)
    assert verdict is not None
    assert verdict.text == "rank 1 never reported to rank 0"


def test_the_leader_too_has_the_time_of_a_start_before_its_first_word() -> None:
    unheard, heard = Peer(0, NOW - 20, 60.0), peer(0, 0, 20, heard=20, allowed=60)
    assert not unheard.silent(NOW, TIMEOUT)
    assert heard.silent(NOW, TIMEOUT)
    assert silent_text(unheard, NOW, 3) == "rank 0 never reported to rank 3"
