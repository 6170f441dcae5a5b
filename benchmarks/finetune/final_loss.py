"""The loss that both sides are held to: ``python -m benchmarks.finetune.final_loss``.

Mean over all assistant tokens of all chats, base and adapter through PEFT in float32, one chat
at a time: neither side's own code.
"""

import argparse
import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


@torch.no_grad()
def final_loss(model_dir: str, adapter: str, examples: Path) -> float:
    """Return the loss in nats a token."""
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter).eval()
    total, count = 0.0, 0
    with examples.open(encoding="utf-8") as lines:
        for line in lines:
            example = json.loads(line)
            ids = torch.tensor([example["input_ids"]])
            is_target = torch.tensor(example["assistant_masks"], dtype=torch.bool)[1:]
            logits = model(input_ids=ids).logits[0, :-1][is_target]
            wanted = ids[0, 1:][is_target]
            total += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
            count += len(wanted)
    return total / count


def main() -> None:
    """Print the loss of an adapter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_dir")
    parser.add_argument("adapter")
    parser.add_argument("examples", type=Path)
    args = parser.parse_args()
    print(f"LOSS {final_loss(args.model_dir, args.adapter, args.examples)}")


if __name__ == "__main__":
    main()
