"""Mini CLIP: a CLIP of four million parameters that has seen only Mini LRVS-F. Mini starts as the real recipe does.

Scenes are paired with captions that list what is worn, product pictures with their own. Nothing tells it where a
garment is.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from tqdm import tqdm
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, Trainer, TrainingArguments

from lrvsf.data.images import decode_image
from lrvsf.data.parquet import opened, read_rows
from lrvsf.durable import follow_umask
from lrvsf.mini.attributes import CATEGORIES
from lrvsf.mini.train_clip import MiniClipArguments
from lrvsf.report import write_report
from lrvsf.training.schedule import ClampTemperature
from processing_condvit import IMAGE_MEAN, IMAGE_STD, pad_and_resize

TEXT_TOKENS = 80  # a scene's caption has at most about 60 words
BATCH = 128  # images of which each must find its own caption


def make_tokenizer(captions: list[str]) -> PreTrainedTokenizerFast:
    """One token a word of these captions; hyphens and commas stand alone. CLIP pools at the end token.

    No caption holds the categories' names, but a model may be asked by them: their words get tokens too, untrained.
    """
    texts = [*captions, *map(str.lower, CATEGORIES)]  # as one unknown word, they would all mean the same
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)})
    # Special tokens first: their numbers do not depend on the captions.
    vocabulary = {word: index for index, word in enumerate(["[pad]", "[unknown]", "[start]", "[end]", *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[unknown]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[^\w\s]"), "isolated")]
    )
    core.post_processor = processors.TemplateProcessing(
        single="[start] $A [end]", special_tokens=[("[start]", vocabulary["[start]"]), ("[end]", vocabulary["[end]"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[pad]",
        unk_token="[unknown]",
        bos_token="[start]",
        eos_token="[end]",
        model_max_length=TEXT_TOKENS,
        model_input_names=["input_ids", "attention_mask"],
    )


def make_model(args: MiniClipArguments, tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """Random weights. GELU and eager attention, because on short sequences a CPU runs them fastest."""
    vision = {
        "image_size": args.image_size,
        "patch_size": args.patch_size,
        "hidden_size": args.width,
        "intermediate_size": 4 * args.width,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.width // 64,
        "hidden_act": "gelu",
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,  # not tuned: few words, in short captions
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": TEXT_TOKENS,
        "hidden_act": "gelu",
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=args.projection_dim)
    return CLIPModel._from_config(config, attn_implementation="eager")


class CaptionedImages(torch.utils.data.Dataset):
    """Every picture of the product shards with its first caption, decoded once: 28 kB each at 96 pixels."""

    def __init__(self, shards: list[Path], size: int):
        self.captions: list[str] = []
        self.pixels: list[np.ndarray] = []

        def load(image: dict) -> np.ndarray:
            return np.asarray(pad_and_resize(decode_image(image["image"]["bytes"]), size))

        with ThreadPoolExecutor() as pool:  # Pillow decodes without Python's lock
            for shard in tqdm(shards, desc="decoding", unit="shard"):
                with opened(shard, "Draw Mini LRVS-F again.") as file:
                    images = [image for row in read_rows(file, ["images"], 256) for image in row["images"]]
                self.captions += [image["captions"][0] for image in images]
                self.pixels += pool.map(load, images)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict:
        return {"pixels": self.pixels[index], "caption": self.captions[index]}


class Collator:
    """Rows of CaptionedImages -> CLIPModel's inputs; half of the images are mirrored."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.tokenizer = tokenizer

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        pixels = torch.from_numpy(np.stack([row["pixels"] for row in rows])).permute(0, 3, 1, 2)
        mirrored = torch.rand(len(rows)) < 0.5  # uint8 (B, 3, S, S) until here: a quarter of the bytes to turn round
        pixels[mirrored] = pixels[mirrored].flip(-1)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
        text = self.tokenizer([row["caption"] for row in rows], padding=True, return_tensors="pt")
        return {"pixel_values": (pixels / 255 - mean) / std, **text, "return_loss": True}


@torch.no_grad()
def caption_accuracy(model: CLIPModel, collate: Collator, data: CaptionedImages, batches: int = 8) -> float:
    """Share of images whose own caption scores highest in a batch; two of three are scenes."""
    model.eval()
    batches = min(batches, len(data) // BATCH)  # whole ones, so that chance is 1 in BATCH everywhere
    rows = np.random.default_rng(0).permutation(len(data))[: batches * BATCH].reshape(batches, BATCH)
    right = []
    for batch in rows:
        out = model(**collate([data[i] for i in batch]))
        right.append((out.logits_per_image.argmax(1) == torch.arange(len(batch))).float().mean().item())
    return float(np.mean(right))


def train(args: MiniClipArguments, training: TrainingArguments, shards: list[Path]) -> dict[str, Any]:
    """Trains Mini CLIP and writes it, with its tokenizer and training.json, to `training.output_dir`.

    Returns:
        The report of what was trained.
    """
    output = Path(training.output_dir)
    data = CaptionedImages(shards, args.image_size)
    tokenizer = make_tokenizer(data.captions)
    torch.manual_seed(training.seed)
    model, collate = make_model(args, tokenizer), Collator(tokenizer)
    trainer = Trainer(model, training, data_collator=collate, train_dataset=data, callbacks=[ClampTemperature()])
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    accuracy = caption_accuracy(model.to("cpu"), collate, data) if len(data) >= BATCH else None
    # float16: this is a start, and half the bytes travel in the repository.
    model.half().save_pretrained(output)
    follow_umask(output)
    tokenizer.save_pretrained(output)
    write_report(
        output / "training.json",
        {"caption_accuracy": accuracy, "steps": trainer.state.global_step, "log": trainer.state.log_history},
    )
    report = {"folder": str(output), "parameters": model.num_parameters(), "training images": len(data)}
    return report | ({} if accuracy is None else {f"right caption among {BATCH}, in %": 100 * accuracy})
