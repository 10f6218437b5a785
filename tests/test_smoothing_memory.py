"""Memory: the peak does not grow with the number of copies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import json
from pathlib import Path
import torch
from torch import nn
from lrpguard import Guard, Smoothing
from lrpguard.lrp.engine import saved_bytes

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])

torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Sequential(
    nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.ReLU(),
    nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10),
).eval()
image = torch.rand(1, 3, 64, 64)
budget = 20 * saved_bytes(model, image)
used = []
for n in (50, 50, 500):  # the first warms caches up
    guard = Guard(model, smoothing=Smoothing(n=n), memory_budget=budget)
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
    before = kilobytes("VmRSS")
    guard.evidence(image)
    used.append(kilobytes("VmHWM") - before)
print(json.dumps(used))
"""


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="no /proc to measure the peak with"
)
def test_peak_does_not_grow_with_n() -> None:
    # A fixed threshold gives every large tensor its own pages, which go back when it is
    # freed: the peak is then that of the live tensors, not of the allocator's habits.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", MEASURE],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    _, at_50, at_500 = json.loads(run.stdout)
    assert at_50 > 20_000, f"only {at_50} kB: too little to see growth in"
    assert at_500 <= 1.05 * at_50
