"""Each implementation of each row: checked, then timed; its work and its share of the roof stand in `extra_info`."""

from itertools import cycle

import pytest
import torch

from attnkern.bench import measure, timing

ROUNDS = 5


def test_row(row, contender, device, limits, benchmark):
    sets = measure.input_sets(row, device)
    try:
        function = contender.build()
        starts = measure.check(row, contender, function, sets[0]).starts
        calls = measure.calls(row, contender, function, starts, sets)
    except measure.WrongResult as error:
        pytest.fail(str(error))
    except Exception as error:
        pytest.skip(measure.first_line(error))

    def last():  # waiting once a round: it takes longer than a small kernel
        calls[-1]()
        if device == "cuda":
            torch.cuda.synchronize()

    rotation = cycle([*calls[:-1], last])
    benchmark.pedantic(lambda: next(rotation)(), rounds=ROUNDS, iterations=len(calls), warmup_rounds=1)
    readings = [timing.milliseconds(calls, device) / len(calls) for _ in range(ROUNDS)]
    work, ms = contender.count, timing.summary(readings)["median"]
    benchmark.extra_info |= {"ms": ms, "useful_macs": work.useful_macs, "issued_macs": work.issued_macs or None}
    benchmark.extra_info |= {"bytes": work.bytes, "macs_per_second": work.useful_macs / ms * 1e3}
    if (roof := measure.roof(work, row, limits)) is not None:
        benchmark.extra_info |= {"roof": roof.limit, "share_of_roof": roof.ms / ms}
