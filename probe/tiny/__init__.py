"""The embedded model `tiny`, which `tools/tiny/train.py` makes.

`tiny.pt` is a CLIP model in the form of OpenAI's TorchScript archives. `merges.txt.gz` is its vocabulary. `tiny.json`
records how both were made.
"""

from pathlib import Path

ARCHIVE = Path(__file__).with_name("tiny.pt")
MERGES = Path(__file__).with_name("merges.txt.gz")
