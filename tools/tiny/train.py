"""Train the embedded model `tiny` from a seed and a folder of fonts.

    python tools/tiny/train.py --fonts /usr/share/fonts --out build/tiny

The command draws the scenes, learns the merges, trains the model, and writes `tiny.pt`, `merges.txt.gz` and
`tiny.json`. `tiny.json` contains the settings, the digest of the fonts and the losses. The published model was trained
on Debian 12 with the packages of `fonts.txt` (`xargs apt-get install --no-install-recommends < fonts.txt`).

The same fonts, seed and library versions give the same training set, and the same weights up to the rounding of the
machine's matrix products.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import math
import multiprocessing
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name the whole field uses for this module
from scenes import RESOLUTION, Painter, fonts_digest, usable_fonts
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from probe.models.preprocess import Preprocess
from probe.models.tokenizer import WORD_END, Tokenizer, merge_pair, split_words
from probe.models.towers import CLIP
from probe.specs import Architecture

logger = logging.getLogger(__name__)

CONTEXT_LENGTH = 32
MAX_LOGIT_SCALE = math.log(100)  # Radford et al. 2021, section 2.5
CHUNK = 1000  # scenes per random state, so that the training set does not depend on the number of processes


@dataclass(frozen=True)
class Settings:
    """Settings that determine the trained model, together with the fonts."""

    seed: int = 0
    scenes: int = 240_000
    merges: int = 500
    batch_size: int = 512
    steps: int = 2_800
    warmup_steps: int = 200
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    shift_pixels: int = 2


def architecture(vocab_size: int) -> Architecture:
    """Return the architecture of `tiny`: a ViT with 6 blocks and 16 patches of 8 pixels, a text tower with 2 blocks."""
    return Architecture(
        embed_dim=256,
        image_resolution=RESOLUTION,
        vision_layers=6,
        vision_width=192,
        vision_patch_size=8,
        context_length=CONTEXT_LENGTH,
        vocab_size=vocab_size,
        transformer_width=128,
        transformer_layers=2,
    )


def draw_scenes(fonts: Sequence[Path], settings: Settings, *, processes: int) -> tuple[np.ndarray, list[str]]:
    """Draw the training set: images uint8 (n, 3, r, r), and n captions. Any number of processes gives the same set."""
    if settings.scenes % CHUNK:
        raise ValueError(f"expected a multiple of {CHUNK} scenes, got {settings.scenes}")
    chunks = [(list(fonts), settings.seed, i) for i in range(settings.scenes // CHUNK)]
    images = np.empty((len(chunks) * CHUNK, 3, RESOLUTION, RESOLUTION), dtype=np.uint8)
    captions: list[str] = []
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for i, (pixels, texts) in enumerate(tqdm(pool.imap(_draw_chunk, chunks), total=len(chunks), disable=None)):
            images[i * CHUNK : (i + 1) * CHUNK] = pixels
            captions += texts
    return images, captions


def _draw_chunk(task: tuple[list[Path], int, int]) -> tuple[np.ndarray, list[str]]:
    fonts, seed, chunk = task
    painter = Painter(fonts, np.random.default_rng([seed, chunk]))
    scenes = [painter.scene() for _ in range(CHUNK)]
    pixels = np.stack([np.asarray(scene.image) for scene in scenes])  # (chunk, r, r, 3) uint8
    return pixels.transpose(0, 3, 1, 2), [scene.caption for scene in scenes]


def learn_merges(captions: Sequence[str], count: int) -> list[tuple[str, str]]:
    """Learn `count` BPE merges: join the most frequent pair of tokens; of equally frequent pairs, the first by name."""
    words = Counter(word for caption in captions for word in split_words(caption))
    split = {word: [*word[:-1], word[-1] + WORD_END] for word in words}
    merges: list[tuple[str, str]] = []
    for _ in range(count):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in split.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            break  # every word is one token already
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = {word: merge_pair(parts, best) for word, parts in split.items()}
    return merges


def write_merges(merges: Sequence[tuple[str, str]], path: Path) -> None:
    """Write merges in the form of OpenAI's file: gzip, a header, one merge per line. The bytes are reproducible."""
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))


def contrastive_loss(model: CLIP, images: Tensor, texts: Tensor) -> Tensor:
    """Return the symmetric cross-entropy of CLIP. Equal captions share the target."""
    logits, _ = model(images, texts)  # (n, n)
    same = (texts[:, None] == texts[None, :]).all(dim=-1).float()
    target = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits.float(), target) + F.cross_entropy(logits.float().t(), target)) / 2


def train(
    images: np.ndarray, tokens: Tensor, shape: Architecture, settings: Settings, *, log_every: int = 100
) -> tuple[CLIP, list[float]]:
    """Train from random weights; return the model in fp32, and the mean loss of every `log_every` steps."""
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng([settings.seed, 1])
    model = CLIP(shape).train()
    optimizer = torch.optim.AdamW(
        _parameter_groups(model, settings), lr=settings.learning_rate, betas=(0.9, 0.98), eps=1e-6
    )
    losses: list[float] = []
    recent: list[float] = []
    preprocess = Preprocess(shape.image_resolution)
    bar = tqdm(range(settings.steps), disable=None)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, settings)
        chosen = rng.integers(len(images), size=settings.batch_size)
        batch = _shift(torch.from_numpy(images[chosen]), settings.shift_pixels, rng)
        # Separate matrix products, because the backward pass of fused attention is slow on a CPU.
        with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            loss = contrastive_loss(model, preprocess.normalize(batch), tokens[torch.from_numpy(chosen)])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        recent.append(loss.item())
        if len(recent) == log_every:
            losses.append(round(sum(recent) / log_every, 4))
            recent.clear()
            logger.info("step %d: loss %.3f", step + 1, losses[-1])
    return model.eval(), losses


def _parameter_groups(model: CLIP, settings: Settings) -> list[dict[str, object]]:
    """Return the parameters in two groups: matrices have weight decay; gains, biases and the temperature do not.

    Source: Radford et al. 2021, section 2.5.
    """
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    return [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def _learning_rate(step: int, settings: Settings) -> float:
    """Return the learning rate of a step: a linear warm-up, then a cosine to zero."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / (settings.steps - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def _shift(images: Tensor, pixels: int, rng: np.random.Generator) -> Tensor:
    """Shift a batch by at most `pixels` in each direction, and repeat the border."""
    padded = F.pad(images.float(), (pixels,) * 4, mode="replicate").to(torch.uint8)
    x, y = (int(v) for v in rng.integers(0, 2 * pixels + 1, size=2))
    side = images.shape[-1]
    return padded[:, :, y : y + side, x : x + side]


def main() -> None:
    """Draw the scenes, learn the merges, train the model, and write the files."""
    parser = argparse.ArgumentParser(description="train the embedded model `tiny`")
    parser.add_argument("--fonts", type=Path, default=Path("/usr/share/fonts"), help="folder of .ttf and .otf files")
    parser.add_argument("--out", type=Path, default=Path("build/tiny"), help="folder of the three files")
    parser.add_argument("--processes", type=int, default=2, help="number of processes that draw scenes")
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    args = vars(parser.parse_args())
    fonts_dir, out, processes = args.pop("fonts"), args.pop("out"), args.pop("processes")
    settings = Settings(**args)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    from probe.models.openai import save_archive

    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    fonts = usable_fonts(fonts_dir)
    images, captions = draw_scenes(fonts, settings, processes=processes)
    logger.info("%d scenes, %d captions, %d fonts", len(images), len(set(captions)), len(fonts))
    merges = learn_merges(captions, settings.merges)
    write_merges(merges, out / "merges.txt.gz")
    tokenizer = Tokenizer(merges)
    tokens = torch.tensor(tokenizer.tokenize(captions, CONTEXT_LENGTH))
    shape = architecture(tokenizer.vocab_size)
    model, losses = train(images, tokens, shape, settings)
    save_archive(model, out / "tiny.pt")
    card = {
        "settings": asdict(settings),
        "architecture": asdict(shape),
        "fonts": {"files": len(fonts), "sha256": fonts_digest(fonts)},
        "distinct_captions": len(set(captions)),
        "losses_per_100_steps": losses,
        "torch": torch.__version__,
        "minutes": round((time.perf_counter() - started) / 60, 1),
    }
    (out / "tiny.json").write_text(json.dumps(card, indent=2) + "\n")


if __name__ == "__main__":
    main()
