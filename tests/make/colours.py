"""A small dataset of one's own: a folder of reddish and greenish images, and the row that describes it."""

from __future__ import annotations

from pathlib import Path

from make.images import write_image

ROW = """
name = "colours"
num_classes = 2
val_fraction = 0.34
subsets = [{ name = "train", size = 12 }, { name = "test", size = 8 }]

[[sources]]
form = "folder"
location = "images"
subsets = { train = { folder = "train" }, test = { folder = "test" } }
"""


def write_colours(folder: Path) -> str:
    """Write the images and the row, and return the path of the row, which is a name of the dataset."""
    for split, n in (("train", 6), ("test", 4)):
        for name, colour in (("red", (200, 30, 30)), ("green", (30, 200, 30))):
            for i in range(n):
                write_image(folder / "images" / split / name / f"{i}.png", colour)
    path = folder / "colours.toml"
    path.write_text(ROW.replace('"images"', f'"{folder / "images"}"'), encoding="utf-8")
    return str(path)
