"""Catalogue of the named protocols.

The field `source` of a protocol says where its rules come from. It also says which details the source leaves open and
what this package does instead, because scores are then not exactly comparable with published scores. Users define their
own protocols in a TOML file, see `user_protocols`, or as a `Protocol` in Python.
"""

from __future__ import annotations

from collections.abc import Mapping

from probe.errors import UnknownNameError
from probe.names import unknown_name
from probe.probes.protocol_checks import check_protocol
from probe.probes.published_protocols import COOP, OTHERS, PAPER_GRID, TOL
from probe.probes.user_protocols import make_protocol
from probe.specs import KNN, ZERO_SHOT, Protocol

SHOTS = (1, 2, 4, 8, 16)  # figure 6 of the paper, and CoOp
MAX_HELD_OUT = 4  # KaiyangZhou/CoOp, lpclip/linear_probe.py: C is chosen on min(shots, 4) images per class
NUM_SEEDS = 5  # our choice: the paper does not give a number, and lpclip/linear_probe.sh of CoOp uses 3


FEW_SHOT = (
    "Radford et al. 2021, figure 6. C is chosen on the validation split of the full dataset (openai/CLIP#128), so the "
    "choice of C is not few-shot. The paper does not say which images were drawn, how many times, or which C was "
    f"chosen (openai/CLIP#135); {NUM_SEEDS} draws and the search of appendix A.3 are choices of this package"
)
HELD_OUT = (
    "few-shot protocol of Radford et al. 2021, with C chosen on min(shots, 4) images per class as in Zhou et al. 2022 "
    "(KaiyangZhou/CoOp, lpclip/linear_probe.py). Zhou et al. draw these images from validation splits; here they are "
    "further images of train. Zhou et al. also use 3 draws, projected features of RN50 and a different search, so the "
    "scores are not comparable with theirs"
)


def _few_shot(shots: int, *, held_out: int = 0) -> Protocol:
    images = "1 image" if shots == 1 else f"{shots} images"
    return Protocol(
        name=f"few-shot-{shots}-held-out" if held_out else f"few-shot-{shots}",
        title=f"{images} a class, C chosen on {f'{held_out} more' if held_out else 'the validation split'}",
        feature_point="pre_projection",
        grid=PAPER_GRID,
        coarse_step=16,
        max_iter=1000,
        tol=TOL,
        source=HELD_OUT if held_out else FEW_SHOT,
        shots=shots,
        num_seeds=NUM_SEEDS,
        held_out=held_out,
        refit=False,  # a final fit on the validation split would not be few-shot, see LAION-AI/CLIP_benchmark#125
    )


PROTOCOLS: tuple[Protocol, ...] = (
    Protocol(
        name="readme",
        title="the example of OpenAI's README",
        feature_point="projected",
        grid=(0.316,),
        coarse_step=1,
        max_iter=1000,
        tol=TOL,
        source="openai/CLIP README, 'Linear-probe evaluation'",
    ),
    Protocol(
        name="clip-paper",
        title="the sweep of the CLIP paper",
        feature_point="pre_projection",
        grid=PAPER_GRID,
        coarse_step=16,
        max_iter=1000,
        tol=TOL,
        source="Radford et al. 2021, appendix A.3; openai/CLIP#39",
    ),
    Protocol(
        name="dinov2",
        title="the logistic regression of DINOv2",
        # DINOv2 takes the class token after the last norm, without a head (dinov2/models/vision_transformer.py). In
        # CLIP's ViT this is the input of the projection.
        feature_point="pre_projection",
        grid=tuple(10.0 ** (k / 4 - 6) for k in range(45)),  # 1e-6 to 1e5, 4 per decade
        coarse_step=1,
        max_iter=1000,
        # Float32 features cannot reach this value. Fits end when the loss no longer decreases, or at `max_iter`.
        tol=1e-12,
        source=(
            "facebookresearch/dinov2, dinov2/eval/log_regression.py. C is chosen on a validation split, or on a random "
            "tenth of train if there is none, and the final fit is on both. Features are not L2-normalised "
            "(ModelWithNormalize is for the k-NN). DINOv2 uses cuML's solver in float64, which compares the gradient "
            "with the loss to stop; here it is the solver of the run. The code does not say on which split C was "
            "chosen for each published score"
        ),
    ),
    Protocol(
        name="zero-shot",
        title="classification by the prompts of the class names",
        feature_point="projected",
        normalize=True,
        method=ZERO_SHOT,
        source=(
            "Radford et al. 2021, section 3.1, and openai/CLIP, notebooks/Prompt_Engineering_for_ImageNet.ipynb. "
            "`probe datasets NAME` shows the class names and templates"
        ),
    ),
    Protocol(
        name="knn",
        title="the weighted k-nearest neighbours of DINO",
        feature_point="projected",
        normalize=True,
        method=KNN,
        neighbours=(10, 20, 100, 200),
        temperature=0.07,
        source=(
            "Caron et al. 2021 (facebookresearch/dino, eval_knn.py). DINO reports the best k on the test split; here k "
            "is chosen on the validation split, and then training and validation images vote. DINO uses the class "
            "token; this package uses the projected features"
        ),
    ),
    Protocol(
        name="knn-5",
        title="plain votes of the 5 nearest neighbours",
        feature_point="projected",
        normalize=True,
        method=KNN,
        neighbours=(5,),
        source="not from a paper: one vote for each of the 5 nearest neighbours by cosine similarity",
    ),
    *(_few_shot(shots) for shots in SHOTS),
    *(_few_shot(shots, held_out=min(shots, MAX_HELD_OUT)) for shots in SHOTS),
    *OTHERS,
)

# Names that stand for several protocols on the command line.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "few-shot": tuple(f"few-shot-{shots}" for shots in SHOTS),
    "few-shot-held-out": tuple(f"few-shot-{shots}-held-out" for shots in SHOTS),
    COOP: tuple(f"{COOP}-{shots}" for shots in SHOTS),
}
PROTOCOL_FORMS = "the path of a TOML file with a protocol of your own, such as mine.toml"


def protocol_names() -> tuple[str, ...]:
    """Return the names of the protocols in the catalogue, without the names of `GROUPS`."""
    return tuple(protocol.name for protocol in PROTOCOLS)


def get_protocol(name: str) -> Protocol:
    """Return a protocol of the catalogue by name, or read a protocol from a path that ends in `.toml`.

    Raises:
        UnknownNameError: no protocol has this name, the name is one of `GROUPS`, or the file does not exist.
        ProtocolError: the file is invalid.
    """
    for protocol in PROTOCOLS:
        if protocol.name == name:
            return protocol
    if name in GROUPS:
        raise UnknownNameError(f"protocol {name!r} stands for {', '.join(GROUPS[name])}; name one of them")
    names = (*protocol_names(), *GROUPS)
    if name.lower().endswith(".toml"):
        return make_protocol(name, taken=names)
    raise unknown_name("protocol", name, names, forms=PROTOCOL_FORMS)


def validate(protocol: Protocol) -> None:
    """Check a protocol that was made in Python.

    Raises:
        ProtocolError: a field has a wrong type or value, or two fields contradict each other.
    """
    check_protocol(protocol, where=f"protocol {protocol.name!r}")
