"""LoRA training next to TRL's: ``python -m benchmarks.finetune MODEL_DIR --peer-python PYTHON``.

Sides train by turns, each in a process of its own: the same chats, order, batches, rank and
learning rate. Prints real tokens a second, ratios, and the final loss of each, evaluated alike.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.finetune.chats import write_chats
from benchmarks.finetune.report import Side, table
from benchmarks.finetune.sides import Result, Task
from maas.finetune.data.rendering import Renderer
from maas.finetune.train.packing import batches

OURS = "maas"
TIMEOUT_S = 3600


def write_examples(task: Task) -> None:
    """Write the tokens of every step, in the order in which our trainer takes them."""
    renderer = Renderer(Path(task.model_dir))
    chats = [json.loads(line) for line in Path(task.chats).read_text(encoding="utf-8").splitlines()]
    examples = [example for chat in chats for example in renderer.render(chat["messages"])]
    with Path(task.examples).open("w", encoding="utf-8") as out:
        for epoch in range(task.n_epochs):
            order = batches(len(examples), task.batch_size, seed=task.seed, epoch=epoch)
            for index in (i for step in order for i in step):
                mask = [int(is_target) for is_target in examples[index].is_target]
                row = {"input_ids": examples[index].input_ids, "assistant_masks": mask}
                out.write(json.dumps(row) + "\n")


def _said(command: list[str], start: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(start)]
    if done.returncode != 0 or not lines:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return lines[-1].removeprefix(start).strip()


def run_side(name: str, task: Task, python: str) -> Result:
    """Train once on one side."""
    module = "benchmarks.finetune.ours" if name == OURS else "benchmarks.finetune.peer_trl"
    file = Path(task.out).with_suffix(".json")
    file.write_text(json.dumps(task.plain()), encoding="utf-8")
    return Result(**json.loads(_said([python, "-m", module, str(file)], "RESULT ")))


def compare(task: Task, sides: dict[str, str], num_rounds: int) -> list[Side]:
    """Train by turns; return each side's median speed and final loss."""
    results: dict[str, list[Result]] = {name: [] for name in sides}
    for number in range(num_rounds):
        for name, python in sides.items():
            out = f"{task.out}/{name}-{number}"
            wanted = replace(task, out=out, variant=name.removeprefix("trl-"))
            results[name].append(run_side(name, wanted, python))
            print(f"round {number + 1}: {name} {results[name][-1].tokens_per_s:.1f} tok/s")
    found: list[Side] = []
    for name, rounds in results.items():
        command = [sys.executable, "-m", "benchmarks.finetune.final_loss"]
        loss = _said([*command, task.model_dir, rounds[-1].adapter, task.examples], "LOSS ")
        speed = statistics.median(result.tokens_per_s for result in rounds)
        cpu = statistics.median(result.num_tokens / result.cpu_s for result in rounds)
        found.append(Side(name, speed, cpu, float(loss)))
    return found


def main() -> None:
    """Run the comparison and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_dir", type=Path, help="prepared weights (safetensors)")
    parser.add_argument("--peer-python", help="python that has trl; none: ours alone")
    parser.add_argument("--variants", nargs="*", default=["stock", "tuned"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num-chats", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        task = Task(
            model_dir=str(args.model_dir),
            chats=f"{folder}/chats.jsonl",
            examples=f"{folder}/examples.jsonl",
            out=folder,
            batch_size=args.batch_size,
            n_epochs=args.epochs,
            learning_rate=args.learning_rate,
            max_length=1024,
            num_threads=args.threads,
        )
        write_chats(Path(task.chats), num_chats=args.num_chats, seed=1)
        write_examples(task)
        sides = {OURS: sys.executable}
        if args.peer_python:
            sides |= {f"trl-{variant}": args.peer_python for variant in args.variants}
        print(table(compare(task, sides, args.rounds), OURS))


if __name__ == "__main__":
    main()
