"""The catalogue of models: name, address and SHA-256 of the weights, architecture, cost.

Sources: openai/CLIP `clip/clip.py` for addresses and digests; Radford et al. 2021, tables 19 and 20, for sizes.
`profile.py` counted the costs; they are stored here so that a listing of the models does not import torch.
"""

from __future__ import annotations

from probe.specs import Architecture, ModelSpec, Profile

OPENAI_URL = "https://openaipublic.azureedge.net/clip/models"
OPENAI_LICENSE = "MIT"


def _architecture(
    layers: int | tuple[int, ...],
    *,
    width: int,
    embed_dim: int,
    text_width: int,
    resolution: int = 224,
    patch: int | None = None,
) -> Architecture:
    """Return the architecture of a ViT, or of a ResNet if `patch` is None. The text towers differ only in width."""
    return Architecture(
        embed_dim=embed_dim,
        image_resolution=resolution,
        vision_layers=layers,
        vision_width=width,
        vision_patch_size=patch,
        context_length=77,
        vocab_size=49408,
        transformer_width=text_width,
        transformer_layers=12,
    )


def _openai(name: str, file: str, sha256: str, architecture: Architecture, profile: Profile) -> ModelSpec:
    return ModelSpec(
        name,
        form="url",
        source=f"{OPENAI_URL}/{sha256}/{file}",
        sha256=sha256,
        architecture=architecture,
        profile=profile,
        license=OPENAI_LICENSE,
    )


MODELS: tuple[ModelSpec, ...] = (
    _openai(
        "RN50",
        "RN50.pt",
        "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
        _architecture((3, 4, 6, 3), width=64, embed_dim=1024, text_width=512),
        Profile(image_parameters=38_316_896, parameters=102_007_137, flops=11_586_306_048),
    ),
    _openai(
        "RN101",
        "RN101.pt",
        "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
        _architecture((3, 4, 23, 3), width=64, embed_dim=512, text_width=512),
        Profile(image_parameters=56_259_936, parameters=119_688_033, flops=19_008_651_264),
    ),
    _openai(
        "RN50x4",
        "RN50x4.pt",
        "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
        _architecture((4, 6, 10, 6), width=80, embed_dim=640, text_width=640, resolution=288),
        Profile(image_parameters=87_137_080, parameters=178_300_601, flops=41_162_096_640),
    ),
    _openai(
        "RN50x16",
        "RN50x16.pt",
        "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
        _architecture((6, 8, 18, 8), width=96, embed_dim=768, text_width=768, resolution=384),
        Profile(image_parameters=167_328_912, parameters=290_979_217, flops=145_736_675_328),
    ),
    _openai(
        "RN50x64",
        "RN50x64.pt",
        "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
        _architecture((3, 15, 36, 10), width=128, embed_dim=1024, text_width=1024, resolution=448),
        Profile(image_parameters=420_380_352, parameters=623_258_305, flops=520_253_554_688),
    ),
    _openai(
        "ViT-B/32",
        "ViT-B-32.pt",
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
        _architecture(12, width=768, embed_dim=512, text_width=512, patch=32),
        Profile(image_parameters=87_849_216, parameters=151_277_313, flops=8_817_623_040),
    ),
    _openai(
        "ViT-B/16",
        "ViT-B-16.pt",
        "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
        _architecture(12, width=768, embed_dim=512, text_width=512, patch=16),
        Profile(image_parameters=86_192_640, parameters=149_620_737, flops=35_126_906_880),
    ),
    _openai(
        "ViT-L/14",
        "ViT-L-14.pt",
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
        _architecture(24, width=1024, embed_dim=768, text_width=768, patch=14),
        Profile(image_parameters=303_966_208, parameters=427_616_513, flops=162_025_537_536),
    ),
    _openai(
        "ViT-L/14@336px",
        "ViT-L-14-336px.pt",
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        _architecture(24, width=1024, embed_dim=768, text_width=768, resolution=336, patch=14),
        Profile(image_parameters=304_293_888, parameters=427_944_193, flops=381_919_789_056),
    ),
    ModelSpec(
        "tiny",
        form="embedded",
        source="tiny/tiny.pt",
        sha256="c32e71a0e7358044ab8d541c30a38da45d276ed933e3a293d8e50e02131e2cf7",
        architecture=Architecture(
            embed_dim=256,
            image_resolution=32,
            vision_layers=6,
            vision_width=192,
            vision_patch_size=8,
            context_length=32,
            vocab_size=863,
            transformer_width=128,
            transformer_layers=2,
        ),
        profile=Profile(image_parameters=2_759_424, parameters=3_303_553, flops=92_852_736),
        license="MIT",
        merges="tiny/merges.txt.gz",
    ),
)
