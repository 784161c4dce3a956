"""A model spread over two processes prunes as one in a single process does: the same tokens, the same answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import ROOT
from zoo import tiny

import vtc


@pytest.mark.share(3)
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.parametrize(("how", "family"), [("tensor", "llava"), ("tensor", "qwen2_5_vl"), ("fsdp", "llava")])
def test_spread_over_two_processes(how: str, family: str, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    tiny(family).save_pretrained(tmp_path / family)
    share = "all" if pytestconfig.option.full else str(pytestconfig.option.run)
    script = ROOT / "tests/integrations/every_method_spread.py"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run(
        [sys.executable, *launch, how, family, str(tmp_path / family), share],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found.values()) == {"same"}
    assert len(found) > (len(vtc.list_pruners()) - 3 if share == "all" else 4)
