"""Updates are counted apart from steps, and for each optimiser group by what it has seen."""

from __future__ import annotations

import json

from megatron_vlm.training.updates import UpdateCount


def test_groups_that_are_left_out_do_not_age() -> None:
    count = UpdateCount(4, {"language:11": 4, "vision:01": 0})
    count.count()
    count.count(left_out=("vision", "projector"))
    assert (count.made, count.ages) == (6, {"language:11": 6, "vision:01": 1})
    assert [count.age(label) for label in ("vision:01", "projector:01")] == [1, 0]


def test_what_a_checkpoint_keeps_comes_back() -> None:
    count = UpdateCount(9, {"language:11": 9, "vision:01": 2})
    again = UpdateCount()
    again.load(json.loads(json.dumps(count.state())))
    assert (again.made, again.ages) == (9, count.ages)


def test_a_state_without_ages_is_of_moments_as_old_as_the_run() -> None:
    count = UpdateCount(0, {"language:11": 0})
    count.load({"made": 7, "at_stage": {"0": 0}})
    assert (count.made, count.ages) == (7, {"language:11": 7})
