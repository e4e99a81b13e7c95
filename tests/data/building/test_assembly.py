"""What is looked for among the duplicates of all parts."""

from __future__ import annotations

import numpy as np

from megatron_vlm.data.building.assembly import MORE_RECORDS_THAN_A_UNIT, _of_part


def test_a_part_is_looked_for_among_its_own_duplicates_alone() -> None:
    generator = np.random.default_rng(0)
    records = generator.integers(0, 50, 400) + generator.integers(0, 12, 400) * MORE_RECORDS_THAN_A_UNIT
    last = 7 * MORE_RECORDS_THAN_A_UNIT - 1  # at the border of a part
    drop = np.unique([*records[records // MORE_RECORDS_THAN_A_UNIT != 5], last, last + 1])
    for number in range(14):
        own = np.arange(60) + number * MORE_RECORDS_THAN_A_UNIT
        own = np.append(own, (number + 1) * MORE_RECORDS_THAN_A_UNIT - 1)
        part = _of_part(drop, number)
        assert (np.isin(own, part) == np.isin(own, drop)).all()
        assert (part // MORE_RECORDS_THAN_A_UNIT == number).all()
