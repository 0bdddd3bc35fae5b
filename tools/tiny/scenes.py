"""Training data of `tiny`: images of 32 pixels with captions, drawn from a seed.

There are six kinds of scenes: characters in many fonts, filled shapes, bodies with parts, counts, two objects in a
relation, and textures. No scene comes from a dataset that the suite evaluates on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

T = TypeVar("T")

RESOLUTION = 32
CANVAS = 96  # pixels; scenes are drawn at this size and reduced, which gives soft edges

DIGITS = "0123456789"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
COLOURS = {
    "black": (12, 12, 12),
    "white": (245, 245, 245),
    "grey": (128, 128, 128),
    "red": (210, 40, 40),
    "green": (50, 160, 60),
    "blue": (50, 80, 210),
    "yellow": (235, 215, 50),
    "orange": (240, 140, 30),
    "purple": (140, 60, 170),
    "pink": (245, 150, 190),
    "brown": (130, 85, 45),
    "cyan": (60, 200, 210),
}
POLYGONS = {"triangle": 3, "pentagon": 5, "hexagon": 6, "octagon": 8}
SHAPES = (
    *POLYGONS,
    *("circle", "ellipse", "square", "rectangle", "diamond", "star", "cross", "ring", "crescent", "heart", "arrow"),
    *("trapezoid", "semicircle", "drop"),
)
FILLS = (
    *("plain", "plain", "plain", "shaded", "outlined"),
    *("horizontally striped", "vertically striped", "diagonally striped", "checkered", "dotted", "speckled"),
)
TEXTURES = (
    *("horizontal stripes", "vertical stripes", "diagonal stripes", "checks", "dots", "speckles", "waves", "bricks"),
    *("a grid", "rings", "a gradient from left to right", "a gradient from top to bottom", "rays"),
)
PARTS = ("arms", "legs", "handle", "foot", "neck", "slit", "belt")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLACES = {
    (-1, -1): "at the top left",
    (0, -1): "at the top",
    (1, -1): "at the top right",
    (-1, 0): "on the left",
    (0, 0): "in the middle",
    (1, 0): "on the right",
    (-1, 1): "at the bottom left",
    (0, 1): "at the bottom",
    (1, 1): "at the bottom right",
}


@dataclass(frozen=True)
class Scene:
    """One training example: an RGB image with sides of `RESOLUTION` pixels, and its caption."""

    image: Image.Image
    caption: str


class Painter:
    """Generator of scenes. The same random state and the same font files give the same scenes."""

    def __init__(self, fonts: Sequence[Path], rng: np.random.Generator) -> None:
        self.fonts = list(fonts)
        self.rng = rng
        self._loaded: dict[tuple[int, int], ImageFont.FreeTypeFont] = {}

    def scene(self) -> Scene:
        """Draw one scene of a random kind."""
        kinds = (self._character, self._body, self._shape, self._count, self._relation, self._texture)
        kind = kinds[self.rng.choice(len(kinds), p=(0.42, 0.22, 0.12, 0.08, 0.08, 0.08))]
        image, caption = kind()
        return Scene(self._degrade(image), caption)

    # Six kinds of scenes; each method returns an image with sides of CANVAS pixels and a caption.

    def _character(self) -> tuple[Image.Image, str]:
        index = int(self.rng.integers(len(self.fonts)))
        text, name = self._text()
        limit = CANVAS * self.rng.uniform(0.5, 1.05)
        font = self._font(index, 72)
        left, top, right, bottom = font.getbbox(text)
        mask = Image.new("L", (max(1, int(right - left)), max(1, int(bottom - top))))
        stroke = int(self.rng.integers(0, 5)) if self._chance(0.3) else 0
        ImageDraw.Draw(mask).text((-left, -top), text, fill=255, font=font, stroke_width=stroke)
        scale = limit / max(mask.size)
        stretch = self.rng.uniform(0.8, 1.25)
        size = (max(4, int(mask.width * scale * stretch)), max(4, int(mask.height * scale)))
        mask, place = self._place(mask.resize(size, Image.Resampling.BILINEAR))
        mask = self._warp(mask)
        fg, bg = self._colours()
        image = self._compose(mask, Image.new("RGB", mask.size, self._rgb(fg)), self._rgb(bg))
        return image, self._phrase(f"{_style(self.fonts[index])}{fg} {name}", place, bg)

    def _body(self) -> tuple[Image.Image, str]:
        mask = Image.new("L", (CANVAS, CANVAS))
        pen = ImageDraw.Draw(mask)
        proportion = self._pick(("tall", "wide", "even"))
        half_w, half_h = {"tall": (14.0, 34.0), "wide": (34.0, 16.0), "even": (24.0, 26.0)}[proportion]
        half_w, half_h = half_w * self.rng.uniform(0.8, 1.2), half_h * self.rng.uniform(0.8, 1.15)
        cx, cy = CANVAS / 2, CANVAS / 2
        taper = self._pick(("straight", "flared", "tapered", "rounded"))
        top_w = half_w * {"flared": 0.55, "tapered": 1.3}.get(taper, 1.0)
        bottom_w = half_w * {"flared": 1.3, "tapered": 0.55}.get(taper, 1.0)
        top, bottom = cy - half_h, cy + half_h
        if taper == "rounded":
            pen.rounded_rectangle((cx - half_w, top, cx + half_w, bottom), radius=min(half_w, half_h) * 0.8, fill=255)
        else:
            pen.polygon([(cx - top_w, top), (cx + top_w, top), (cx + bottom_w, bottom), (cx - bottom_w, bottom)], 255)
        shuffled = self.rng.permutation(len(PARTS))[: self.rng.integers(0, 4)]
        chosen = [PARTS[i] for i in sorted(shuffled)]  # parts that cut follow parts that add
        parts = [self._add_part(pen, part, (cx, top, bottom, top_w, bottom_w)) for part in chosen]
        mask = self._warp(mask, strength=4)
        fg, bg = self._colours()
        fill = self._pick(FILLS)
        image = self._compose(mask, self._filling(fill, fg, mask), self._rgb(bg))
        described = " and ".join(parts) if parts else "no parts"
        return image, self._phrase(f"{_adjective(fill)}{fg} {proportion} {taper} body with {described}", "", bg)

    def _add_part(self, pen: ImageDraw.ImageDraw, part: str, body: tuple[float, float, float, float, float]) -> str:
        cx, top, bottom, top_w, bottom_w = body
        long = self._chance(0.5)
        length = self.rng.uniform(24, 40) if long else self.rng.uniform(8, 16)
        adjective = "long" if long else "short"
        if part == "arms":
            thick, drop = self.rng.uniform(6, 13), length * self.rng.uniform(0.4, 1.2)
            for side in (-1, 1):
                shoulder = (cx + side * (top_w - 3), top + 2)
                hand = (cx + side * (top_w + length * 0.7), top + drop)
                pen.line([shoulder, hand], fill=255, width=int(thick))
            return f"two {adjective} arms"
        if part == "legs":
            thick = bottom_w * self.rng.uniform(0.5, 0.85)
            for side in (-1, 1):
                x0, x1 = sorted((cx + side * bottom_w, cx + side * (bottom_w - thick)))
                pen.rectangle((x0, bottom - 2, x1, bottom + length), fill=255)
            return f"two {adjective} legs"
        if part == "handle":
            reach = top_w * self.rng.uniform(0.4, 0.9)
            box = (cx - reach, top - length * 0.8, cx + reach, top + length * 0.8)
            pen.arc(box, 180, 360, fill=255, width=int(self.rng.uniform(3, 7)))
            return f"a {adjective} handle"
        if part == "neck":
            reach = top_w * self.rng.uniform(0.25, 0.5)
            if self._chance(0.5):
                pen.polygon([(cx - reach, top - 1), (cx + reach, top - 1), (cx, top + length * 0.6)], fill=0)
                return "a pointed neck"
            pen.ellipse((cx - reach, top - reach * 0.7, cx + reach, top + reach * 0.7), fill=0)
            return "a round neck"
        if part == "foot":
            side = self._pick((-1, 1))
            x0, x1 = sorted((cx, cx + side * (bottom_w + length)))
            height = self.rng.uniform(6, 14)
            pen.rounded_rectangle((x0, bottom - height, x1, bottom), radius=height / 2, fill=255)
            return f"a {adjective} foot to the {'right' if side > 0 else 'left'}"
        if part == "slit":
            width = self.rng.uniform(1, 4)
            pen.rectangle((cx - width, bottom - length, cx + width, bottom + 1), fill=0)
            return f"a {adjective} slit"
        y = (top + bottom) / 2 + self.rng.uniform(-6, 6)
        pen.rectangle((cx - bottom_w - top_w, y - 2, cx + bottom_w + top_w, y + 2), fill=0)
        return "a belt"

    def _shape(self) -> tuple[Image.Image, str]:
        name, fill = self._pick(SHAPES), self._pick(FILLS)
        size = self._pick(("small", "large"))
        side = self.rng.uniform(26, 44) if size == "small" else self.rng.uniform(56, 88)
        mask, place = self._place(self._silhouette(name, int(side)))
        mask = self._warp(mask, strength=3)
        fg, bg = self._colours()
        image = self._compose(mask, self._filling(fill, fg, mask), self._rgb(bg))
        return image, self._phrase(f"{size} {_adjective(fill)}{fg} {name}", place, bg)

    def _count(self) -> tuple[Image.Image, str]:
        count = int(self.rng.integers(1, 10))
        name = self._pick(SHAPES)
        fg, bg = self._colours()
        image = Image.new("RGB", (CANVAS, CANVAS), self._rgb(bg))
        for cell in self.rng.permutation(9)[:count]:
            x, y = (int(cell) % 3) * 32, (int(cell) // 3) * 32
            mask = self._silhouette(name, int(self.rng.uniform(18, 29)))
            corner = (x + int(self.rng.integers(0, 32 - mask.width + 1)), y + int(self.rng.integers(0, 4)))
            image.paste(self._rgb(fg), corner, mask)
        return image, self._phrase(f"{NUMBERS[count]} {fg} {name}{'' if count == 1 else 's'}", "", bg)

    def _relation(self) -> tuple[Image.Image, str]:
        first, second = self._thing(), self._thing()
        bg = self._pick([c for c in COLOURS if c not in (first[1], second[1])])
        image = Image.new("RGB", (CANVAS, CANVAS), self._rgb(bg))
        relation = self._pick(("left of", "right of", "above", "below"))
        near, far = int(self.rng.integers(2, 8)), int(self.rng.integers(50, 56))
        across = [int(v) for v in self.rng.integers(8, 44, size=2)]
        along = (near, far) if relation in ("left of", "above") else (far, near)
        for (mask, colour, _), a, b in zip((first, second), along, across, strict=True):
            corner = (a, b) if relation in ("left of", "right of") else (b, a)
            image.paste(self._rgb(colour), corner, mask)
        return image, self._phrase(f"{first[1]} {first[2]} {relation} a {second[1]} {second[2]}", "", bg)

    def _thing(self) -> tuple[Image.Image, str, str]:
        colour = self._pick(tuple(COLOURS))
        if self._chance(0.4):
            text = self._pick(DIGITS + LETTERS)
            mask = Image.new("L", (40, 40))
            font = self._font(int(self.rng.integers(len(self.fonts))), 36)
            ImageDraw.Draw(mask).text((20, 20), text, fill=255, font=font, anchor="mm")
            return mask, colour, _character_name(text)
        name = self._pick(SHAPES)
        return self._silhouette(name, 38), colour, name

    def _texture(self) -> tuple[Image.Image, str]:
        name = self._pick(TEXTURES)
        fg, bg = self._colours()
        mask = self._pattern(name)
        image = self._compose(mask, Image.new("RGB", mask.size, self._rgb(fg)), self._rgb(bg))
        return image, f"{name} in {fg} and {bg}"

    # Elements of scenes.

    def _text(self) -> tuple[str, str]:
        if self._chance(0.08):
            number = str(self.rng.integers(10, 100))
            return number, f"number {number}"
        text = self._pick(DIGITS) if self._chance(0.55) else self._pick(LETTERS)
        return text, _character_name(text)

    def _font(self, index: int, size: int) -> ImageFont.FreeTypeFont:
        if (index, size) not in self._loaded:
            self._loaded[index, size] = ImageFont.truetype(str(self.fonts[index]), size)
        return self._loaded[index, size]

    def _silhouette(self, name: str, side: int) -> Image.Image:
        mask = Image.new("L", (side, side))
        pen = ImageDraw.Draw(mask)
        s = side - 1
        if name in POLYGONS:
            pen.polygon(_ring_points(POLYGONS[name], s, 1.0, 1.0), fill=255)
        elif name == "star":
            pen.polygon(_ring_points(5, s, 1.0, 0.42), fill=255)
        elif name == "circle":
            pen.ellipse((0, 0, s, s), fill=255)
        elif name == "ellipse":
            pen.ellipse((0, s * 0.25, s, s * 0.75), fill=255)
        elif name == "square":
            pen.rectangle((s * 0.08, s * 0.08, s * 0.92, s * 0.92), fill=255)
        elif name == "rectangle":
            pen.rectangle((0, s * 0.28, s, s * 0.72), fill=255)
        elif name == "diamond":
            pen.polygon([(s / 2, 0), (s * 0.85, s / 2), (s / 2, s), (s * 0.15, s / 2)], fill=255)
        elif name == "cross":
            pen.rectangle((s * 0.36, 0, s * 0.64, s), fill=255)
            pen.rectangle((0, s * 0.36, s, s * 0.64), fill=255)
        elif name == "ring":
            pen.ellipse((0, 0, s, s), fill=255)
            pen.ellipse((s * 0.26, s * 0.26, s * 0.74, s * 0.74), fill=0)
        elif name == "crescent":
            pen.ellipse((0, 0, s, s), fill=255)
            pen.ellipse((s * 0.3, -s * 0.05, s * 1.2, s * 0.85), fill=0)
        elif name == "heart":
            pen.ellipse((0, 0, s * 0.54, s * 0.56), fill=255)
            pen.ellipse((s * 0.46, 0, s, s * 0.56), fill=255)
            pen.polygon([(s * 0.04, s * 0.42), (s * 0.96, s * 0.42), (s / 2, s)], fill=255)
        elif name == "arrow":
            pen.polygon([(s, s / 2), (s * 0.5, s * 0.1), (s * 0.5, s * 0.9)], fill=255)
            pen.rectangle((0, s * 0.36, s * 0.55, s * 0.64), fill=255)
        elif name == "trapezoid":
            pen.polygon([(s * 0.28, s * 0.2), (s * 0.72, s * 0.2), (s, s * 0.8), (0, s * 0.8)], fill=255)
        elif name == "semicircle":
            pen.pieslice((0, s * 0.2, s, s * 1.2), 180, 360, fill=255)
        else:
            assert name == "drop"
            pen.ellipse((s * 0.2, s * 0.4, s * 0.8, s), fill=255)
            pen.polygon([(s / 2, 0), (s * 0.23, s * 0.6), (s * 0.77, s * 0.6)], fill=255)
        return mask

    def _filling(self, fill: str, colour: str, mask: Image.Image) -> Image.Image:
        base = Image.new("RGB", mask.size, self._rgb(colour))
        pattern = {
            "shaded": self._pick(("a gradient from left to right", "a gradient from top to bottom")),
            "horizontally striped": "horizontal stripes",
            "vertically striped": "vertical stripes",
            "diagonally striped": "diagonal stripes",
            "checkered": "checks",
            "dotted": "dots",
            "speckled": "speckles",
        }.get(fill)
        if fill == "plain":
            return base
        other = tuple(int(c * 0.45) if sum(self._rgb(colour)) > 300 else min(255, c + 110) for c in self._rgb(colour))
        if pattern is None:  # outlined: the inside is darker or lighter than the rim
            inside = mask.filter(ImageFilter.MinFilter(9))
            return Image.composite(Image.new("RGB", mask.size, other), base, inside)
        return Image.composite(base, Image.new("RGB", mask.size, other), self._pattern(pattern))

    def _pattern(self, name: str) -> Image.Image:
        y, x = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float64)
        period, phase = self.rng.uniform(10, 28), self.rng.uniform(0, 2 * math.pi)
        angle = 2 * math.pi / period
        radius = np.hypot(x - CANVAS / 2, y - CANVAS / 2)
        if name == "speckles":
            coarse = self.rng.random((CANVAS // 6, CANVAS // 6)) > 0.5
            values = np.kron(coarse, np.ones((6, 6)))
        elif name == "bricks":
            shift = (np.floor(y / period) % 2) * period
            values = ((y % period > 3) & ((x + shift) % (2 * period) > 3)).astype(np.float64)
        else:
            values = {
                "horizontal stripes": lambda: np.sin(y * angle + phase) > 0,
                "vertical stripes": lambda: np.sin(x * angle + phase) > 0,
                "diagonal stripes": lambda: np.sin((x + y) * angle * 0.7 + phase) > 0,
                "checks": lambda: np.sin(x * angle + phase) * np.sin(y * angle + phase) > 0,
                "dots": lambda: np.sin(x * angle + phase) + np.sin(y * angle + phase) > 0.8,
                "waves": lambda: np.sin(y * angle + 2 * np.sin(x * angle * 0.5) + phase) > 0,
                "a grid": lambda: np.maximum(np.sin(x * angle + phase), np.sin(y * angle + phase)) > 0.75,
                "rings": lambda: np.sin(radius * angle + phase) > 0,
                "rays": lambda: np.sin(np.arctan2(y - CANVAS / 2, x - CANVAS / 2) * round(period / 2) + phase) > 0,
                "a gradient from left to right": lambda: x / CANVAS,
                "a gradient from top to bottom": lambda: y / CANVAS,
            }[name]()
        return Image.fromarray((values * 255).astype(np.uint8))

    def _place(self, mask: Image.Image) -> tuple[Image.Image, str]:
        """Rotate a mask a little and place it on the canvas; return the mask and the words for its place."""
        mask = mask.rotate(self.rng.normal(0, 7), expand=True, resample=Image.Resampling.BILINEAR)
        free = np.array([CANVAS - mask.width, CANVAS - mask.height])
        at = self.rng.uniform(0.25, 0.75, size=2) if self._chance(0.6) else self.rng.uniform(0, 1, size=2)
        corner = [int(v) for v in free * at]
        canvas = Image.new("L", (CANVAS, CANVAS))
        canvas.paste(mask, (corner[0], corner[1]))
        offset = (at - 0.5) * np.maximum(free, 0) / CANVAS  # of the centre, as a fraction of the side of the canvas
        column, row = (0 if abs(v) < 0.12 else int(math.copysign(1, v)) for v in offset)
        return canvas, PLACES[column, row]

    def _warp(self, mask: Image.Image, strength: float = 6) -> Image.Image:
        """Deform a mask like a drawing by hand, by displacing the corners of a 4 x 4 mesh."""
        if self._chance(0.35):
            return mask
        grid = np.linspace(0, CANVAS, 5)
        bend = self.rng.normal(0, strength / 2, size=(5, 5, 2))
        points = np.stack(np.meshgrid(grid, grid), axis=-1) + bend  # (row, column, xy)
        mesh = []
        for r in range(4):
            for c in range(4):
                box = (int(grid[c]), int(grid[r]), int(grid[c + 1]), int(grid[r + 1]))
                corners = (points[r, c], points[r + 1, c], points[r + 1, c + 1], points[r, c + 1])
                mesh.append((box, tuple(float(v) for corner in corners for v in corner)))
        return mask.transform(mask.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)

    def _compose(self, mask: Image.Image, filling: Image.Image, bg: tuple[int, int, int]) -> Image.Image:
        return Image.composite(filling, Image.new("RGB", mask.size, bg), mask)

    def _degrade(self, image: Image.Image) -> Image.Image:
        """Reduce an image to `RESOLUTION`, often through fewer pixels and sometimes with noise, as in small images."""
        if self._chance(0.5):
            side = int(self.rng.integers(8, 29))
            image = image.resize((side, side), Image.Resampling.BOX)
            image = image.resize((RESOLUTION, RESOLUTION), Image.Resampling.BICUBIC)
        else:
            image = image.resize((RESOLUTION, RESOLUTION), Image.Resampling.BOX)
        if self._chance(0.3):
            noise = self.rng.normal(0, self.rng.uniform(2, 18), size=(RESOLUTION, RESOLUTION, 1))
            noisy = np.asarray(image, dtype=np.float64) + noise
            image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        return image

    def _colours(self) -> tuple[str, str]:
        """Return the colours of foreground and background. Half of the scenes are grey, with light on dark."""
        if self._chance(0.5):
            return self._pick(("white", "white", "grey")), "black"
        fg, bg = self.rng.choice(len(COLOURS), size=2, replace=False)
        return list(COLOURS)[fg], list(COLOURS)[bg]

    def _rgb(self, name: str) -> tuple[int, int, int]:
        if name in ("white", "black", "grey"):
            base = np.full(3, COLOURS[name][0]) + self.rng.normal(0, 25 if name == "grey" else 12)
        else:
            base = np.array(COLOURS[name]) + self.rng.normal(0, 14, size=3)
        r, g, b = (int(v) for v in base.clip(0, 255))
        return r, g, b

    def _phrase(self, thing: str, place: str, bg: str) -> str:
        thing = " ".join(thing.split())
        article = "" if thing.split()[0] in NUMBERS else ("an " if thing[0] in "aeiou" else "a ")
        where = f" {place}" if place else ""
        return self._pick(
            (
                f"{article}{thing}{where} on {bg}",
                f"{article}{thing} on a {bg} background{where}",
                f"on {bg}, {article}{thing}{where}",
                f"a picture of {article}{thing}{where}, {bg} behind",
            )
        )

    def _chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def _pick(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]


def usable_fonts(folder: Path) -> list[Path]:
    """Return the font files in a folder that draw all letters and digits, and draw them differently; sorted."""
    paths = sorted((p for p in folder.rglob("*") if p.suffix in (".ttf", ".otf")), key=lambda p: (p.name, p.as_posix()))
    return [path for path in paths if _is_latin(path)]


def fonts_digest(fonts: Sequence[Path]) -> str:
    """Return the SHA-256 of the names and bytes of the font files, in their order."""
    sha = hashlib.sha256()
    for path in fonts:
        sha.update(path.name.encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()


def _is_latin(path: Path) -> bool:
    try:
        font = ImageFont.truetype(str(path), 24)
        drawn = {bytes(font.getmask(character)) for character in DIGITS + LETTERS}
    except OSError:
        return False
    # Unicase fonts draw 26 of 62 characters twice.
    return bytes(font.getmask("\uffff")) not in drawn and len(drawn) > 50


def _ring_points(corners: int, side: float, outer: float, inner: float) -> list[tuple[float, float]]:
    steps = corners * 2
    radii = (outer * side / 2, inner * side / 2)
    angles = [math.pi * 2 * i / steps - math.pi / 2 for i in range(steps)]
    points = [
        (side / 2 + radii[i % 2] * math.cos(a), side / 2 + radii[i % 2] * math.sin(a)) for i, a in enumerate(angles)
    ]
    return points if inner != outer else points[::2]


def _character_name(text: str) -> str:
    if text in DIGITS:
        return f"digit {text}"
    return f"capital letter {text}" if text.isupper() else f"small letter {text}"


def _style(path: Path) -> str:
    name = path.stem.lower()
    words = [word for word in ("bold", "italic", "mono", "serif", "condensed") if word in name]
    return "".join(f"{word} " for word in words if not (word == "serif" and "sans" in name))


def _adjective(fill: str) -> str:
    return "" if fill == "plain" else f"{fill} "
