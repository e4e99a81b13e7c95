"""Updates are counted apart from steps, and stages remember how many came before them."""

from __future__ import annotations

import json

from megatron_vlm.training.updates import UpdateCount


def test_a_stage_keeps_the_count_of_its_first_entry() -> None:
    count = UpdateCount()
    count.enter_stage(0)
    count.made = 5
    count.enter_stage(2)  # stage 1 has no step
    count.made = 9
    count.enter_stage(2)
    assert [count.before_stage(stage) for stage in range(4)] == [0, 5, 5, 9]
    again = UpdateCount()
    again.load(json.loads(json.dumps(count.state())))
    assert [again.before_stage(stage) for stage in range(4)] == [0, 5, 5, 9]
    assert again.made == 9
