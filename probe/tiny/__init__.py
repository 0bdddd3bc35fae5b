"""The embedded model `tiny`: its files, and the generator and training script that made them.

`tiny.pt` is a CLIP model in the form of OpenAI's TorchScript archives, `merges.txt.gz` its vocabulary, `tiny.json` how
they were made. `python -m probe.tiny.train` makes all three again.
"""

from pathlib import Path

ARCHIVE = Path(__file__).with_name("tiny.pt")
MERGES = Path(__file__).with_name("merges.txt.gz")
