"""What each kind of condition costs: numbers in the checkpoint, and one query's time relative to one without condition.

    python benchmarks/bench_conditions.py [--tower B/32] [--rounds 20]

Towers and CLIP's text tower have their real shapes and random weights: time does not depend on the weights. The rounds
alternate, so that what else the machine does meets all kinds alike; medians are compared.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import torch
from transformers import CLIPTextConfig

sys.path.insert(0, str(Path(__file__).parent.parent))

from configuration_condvit import CondViTConfig
from modeling_condvit import CondViTModel

TOWERS = {
    "B/32": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 32},
    "B/16": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 16},
}
WORDS = 12  # tokens of a caption, such as "a red leather handbag with a gold buckle"


def model_of(tower: str, condition: str) -> CondViTModel:
    shape = TOWERS[tower] | {"intermediate_size": 3072, "projection_dim": 512, "condition": condition}
    if condition == "text":
        text = CLIPTextConfig(hidden_size=512, intermediate_size=2048, num_attention_heads=8, projection_dim=512)
        about = {"config": text.to_dict(), "pooling": "eos", "dense": [], "normalize": False}
        shape |= {"text_dim": 512, "text_encoder": about, "text_encoder_in_checkpoint": True}
    return CondViTModel(CondViTConfig(**shape)).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tower", choices=TOWERS, default="B/32")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    pixels, index = torch.rand(1, 3, 224, 224), torch.tensor([0])
    words = {
        "input_ids": torch.randint(1, 49_000, (1, WORDS)),
        "attention_mask": torch.ones(1, WORDS, dtype=torch.long),
    }
    none, category, text = (model_of(args.tower, condition) for condition in ("none", "category", "text"))
    questions = {
        "no condition": (none, {}),
        "category": (category, {"category_indices": index}),
        "category's text, kept": (text, {"category_indices": index}),
        "text": (text, words),
    }
    seconds: dict[str, list[float]] = {name: [] for name in questions}
    with torch.inference_mode():
        for turn in range(args.rounds + 2):  # the first two warm up
            for name, (model, condition) in questions.items():
                start = time.perf_counter()
                model(pixels, **condition)
                if turn > 1:
                    seconds[name].append(time.perf_counter() - start)
    least = median(seconds["no condition"])
    print(f"{args.tower}, one query of 224 pixels, {WORDS} tokens of text, {torch.get_num_threads()} threads")
    print(f"{'condition':24}{'numbers':>14}{'time':>8}")
    for name, (model, _) in questions.items():
        numbers = sum(parameter.numel() for parameter in model.parameters())
        print(f"{name:24}{numbers:14,}{median(seconds[name]) / least:8.2f}")


if __name__ == "__main__":
    main()
