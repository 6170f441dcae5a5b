"""The comparison's data are the same for every side, and its table says what differs."""

from benchmarks.finetune.chats import write_chats
from benchmarks.finetune.report import Side, table


def test_chats_of_a_seed_are_always_the_same_and_of_many_lengths(tmp_path):
    for name in ("a", "b"):
        write_chats(tmp_path / name, num_chats=40, seed=1)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()
    lengths = [len(line) for line in (tmp_path / "a").read_text().splitlines()]
    assert max(lengths) > 4 * min(lengths)


def test_table_gives_ratio_and_names_a_loss_that_differs():
    sides = [Side("maas", 300, 150, 1.0), Side("trl-stock", 100, 50, 1.005)]
    text = table([*sides, Side("trl-tuned", 200, 100, 1.02)], "maas")
    assert "3.00x (goal 2.5x) | 1.0050 | -0.50% |" in text
    assert "1.50x | 1.0200 | -1.96% MISSED |" in text
