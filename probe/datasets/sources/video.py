"""Videos -> their middle frames, as in the CLIP paper. Needs the extra `video`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from probe.errors import DatasetError, ExtraMissingError

SUFFIXES = frozenset({".avi", ".mkv", ".mov", ".mp4", ".webm"})


def read_middle_frame(folder: Path, names: Sequence[str], i: int) -> Image.Image:
    """Read the middle frame of the video `names[i]` of a folder: frame n // 2 of n, from 0, in the order of display.

    Raises:
        DatasetError: the file is not a video, or has no frame.
    """
    av = import_av()
    path = folder / names[i]
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            # Frames are counted, because the number in the header of many files is wrong.
            n = sum(1 for packet in container.demux(stream) if packet.size)
        with av.open(str(path)) as container:
            frame = None
            for k, frame in enumerate(container.decode(video=0)):  # noqa: B007 - the last frame is used
                if k == n // 2:
                    break
    except (av.FFmpegError, IndexError, OSError) as err:
        raise DatasetError(f"{path} cannot be read as a video ({err}); replace or remove it") from err
    if frame is None:
        raise DatasetError(f"{path} has no frames; replace or remove it")
    image: Image.Image = frame.to_image()
    return image


def import_av() -> Any:
    """Import and return PyAV.

    Raises:
        ExtraMissingError: PyAV is not installed.
    """
    try:
        import av
        import av.logging
    except ImportError as err:
        raise ExtraMissingError("videos are read with PyAV, which is not installed; pip install av") from err
    return av
