"""Two processes that train together hold the same codes and counters, those of one process with both batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .pure_models import pure_model, train

PROGRAM = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from pure_models import IDS, loss_of, pure_model
from onebit.nn import create_pure1bit_optimizer
dist.init_process_group("gloo")
rank = dist.get_rank()
model = pure_model()
optimizer, _ = create_pure1bit_optimizer(model, lr=2e-2, gradient_accumulation_steps=int(sys.argv[3]))
parallel = torch.nn.parallel.DistributedDataParallel(model)
for step in range(3):
    for part in IDS[step].chunk(2)[rank].chunk(int(sys.argv[3])):
        loss_of(parallel, part).backward()
    optimizer.step()
    optimizer.zero_grad()
    torch.save(model.state_dict(), f"{sys.argv[2]}/{rank}_{step}.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2])
def test_two_processes(tmp_path: Path, parts: int) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    here = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(tmp_path / "program.py"), str(here), str(tmp_path), str(parts)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    states = [[torch.load(tmp_path / f"{rank}_{step}.pt", weights_only=True) for rank in range(2)] for step in range(3)]
    for first, second in states:
        assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []

    alone = pure_model()
    train(alone, 1, gradient_accumulation_steps=1)
    together = states[0][0]
    for name, value in alone.state_dict().items():
        if name.endswith("counters"):
            # Sums in another order, and in int8 where there are parts, round a few deposits the other way: an update
            # of size 1 is up to 25 counts here, of which 1 to 2 % are a fourth or half of a count.
            apart = (value.int() - together[name].int()).abs()
            assert (apart == 0).float().mean() > (0.99 if parts == 1 else 0.6), name
            assert (apart <= 1).float().mean() > 0.95, name
        elif name.endswith("log_scale"):
            torch.testing.assert_close(value, together[name], rtol=0, atol=1e-4)
