"""What happens to a picture between the drawing and the file: a camera's noise, a shop's stickers, JPEG.

Letters are drawn from a table, not from a font: a font's bytes would differ from machine to machine.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageChops, ImageDraw

# Three columns and five rows of each letter, from the top left, 15 bits.
GLYPHS = {
    "0": 0b111101101101111, "1": 0b010110010010111, "2": 0b111001111100111, "3": 0b111001111001111,
    "4": 0b101101111001001, "5": 0b111100111001111, "6": 0b111100111101111, "7": 0b111001010010010,
    "8": 0b111101111101111, "9": 0b111101111001111, ".": 0b000000000000010, "%": 0b101001010100101,
    "-": 0b000000111000000, "S": 0b111100111001111, "A": 0b111101111101101, "L": 0b100100100100111,
    "E": 0b111100110100111, "N": 0b110101101101101, "W": 0b101101101111101, "H": 0b101101111101101,
    "O": 0b111101101101111, "P": 0b111101111100100,
}  # fmt: skip
STICKERS = ((214, 32, 40), (250, 214, 40), (20, 20, 24), (250, 250, 250))


def lettering(text: str, pixel: int) -> Image.Image:
    """The text as a mask, 255 where there is ink; `pixel` is the side of a letter's dot."""
    mask = Image.new("L", (4 * len(text) - 1, 5))
    for place, letter in enumerate(text):
        for dot in range(15):
            if GLYPHS[letter] >> (14 - dot) & 1:
                mask.putpixel((4 * place + dot % 3, dot // 3), 255)
    return mask.resize((mask.width * pixel, mask.height * pixel), Image.NEAREST)


def overlaid(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A price or a discount on a sticker in a corner, or a pale watermark across the picture."""
    width, height = image.size
    pixel = max(1, height // 80)
    if rng.random() < 0.35:
        mark = lettering("SHOP" if rng.random() < 0.5 else "SALE", 2 * pixel).rotate(25, expand=True)
        corner = (int(rng.uniform(0, max(1, width - mark.width))), int(rng.uniform(0, max(1, height - mark.height))))
        image.paste((255, 255, 255), corner, mark.point(lambda value: value * 2 // 5))
        return image
    price = f"{rng.integers(5, 100)}.{rng.choice(['00', '50', '95', '99'])}"
    text = (price, f"-{rng.integers(1, 8)}0%", "NEW", "SALE")[rng.integers(4)]
    ground = STICKERS[rng.integers(len(STICKERS))]
    letters = lettering(text, pixel)
    pad = 2 * pixel
    right, low = rng.random(2) < 0.5
    x = width - letters.width - 3 * pad if right else pad
    y = height - letters.height - 3 * pad if low else pad
    brush = ImageDraw.Draw(image)
    brush.rounded_rectangle((x, y, x + letters.width + 2 * pad, y + letters.height + 2 * pad), pad, fill=ground)
    image.paste((255, 255, 255) if sum(ground) < 380 else (20, 20, 24), (x + pad, y + pad), letters)
    return image


def exposed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Brighter or darker, warmer or colder."""
    gains = rng.uniform(0.86, 1.1) * rng.uniform(0.95, 1.05, 3)
    levels = np.minimum(255, np.arange(256) * gains[:, None]).astype(int)
    return image.point(levels.reshape(-1).tolist())


def grainy(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """With the noise of a small sensor, the same in the three channels."""
    width, height = image.size
    strength = int(rng.integers(4, 12))
    grain = rng.integers(128 - strength, 128 + strength, (height, width), dtype=np.uint8)
    return ImageChops.hard_light(image, Image.fromarray(grain).convert("RGB"))


def jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
