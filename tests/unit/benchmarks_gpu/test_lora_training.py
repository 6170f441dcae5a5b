"""The training benchmark runs unattended where there is no GPU, on a tiny shape."""

import json

from benchmarks.gpu.lora_training import TINY, main


def test_dry_run_prints_speed_and_share_of_the_measured_limit(capsys):
    main(["--shape", "tiny", "--examples", "2", "--length", "16", "--steps", "2", "--json"])
    speed = json.loads(capsys.readouterr().out)
    assert speed["tokens_per_s"] > 0
    work = 4 * TINY.matmul_parameters * speed["tokens_per_s"]
    assert speed["mfu"] == work / speed["matmul_flops_s"]
    # Random weights: as likely as any of the 256 tokens.
    assert 5.0 < speed["loss"] < 6.5
