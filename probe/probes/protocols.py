"""The named protocols, as data. All run on the same features; each says where it comes from.

What is not known of the sources stands in `source`, since a score under a protocol of ours is no score of theirs where
we had to choose. A protocol of one's own is a TOML file, see `user_protocols`, or a `Protocol` made in Python.
"""

from __future__ import annotations

from collections.abc import Mapping

from probe.errors import UnknownNameError
from probe.names import unknown_name
from probe.probes.protocol_checks import check_protocol
from probe.probes.user_protocols import make_protocol
from probe.specs import Protocol

# scikit-learn stops where no component of the gradient of the mean loss exceeds `tol`. Its default of 1e-4 stops far
# from the optimum since 1.4, when the loss became a mean (scikit-learn#28700).
TOL = 1e-6
PAPER_GRID = tuple(10.0 ** (k / 8) for k in range(-48, 49))  # 97 values, 8 to the decade; Radford et al. 2021, A.3
SHOTS = (1, 2, 4, 8, 16)  # figure 6 of the paper, and CoOp
MOST_HELD_OUT = 4  # KaiyangZhou/CoOp, lpclip/linear_probe.py: as many images to choose C on as shots, at most 4
NUM_SEEDS = 5  # ours: the paper tells no number, and lpclip/linear_probe.sh of CoOp has 3


FEW_SHOT = (
    "Radford et al. 2021, figure 6; openai/CLIP#128: C is chosen on the validation split of the full data, so that "
    "this is no true few-shot. Not known, openai/CLIP#135: which images were drawn, how many times, and which C were "
    f"chosen; the {NUM_SEEDS} draws and the search of appendix A.3 are ours"
)
HELD_OUT = (
    "few-shot of Radford et al. 2021, with C chosen on min(shots, 4) images a class as Zhou et al. 2022 do "
    "(KaiyangZhou/CoOp, lpclip/linear_probe.py). They draw these from their validation splits, here they are further "
    "images of train; they have 3 draws, projected features of RN50 and a search of their own, so that the scores are "
    "not theirs"
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
        refit=False,  # the validation split in the final fit would be no few-shot, LAION-AI/CLIP_benchmark#125
    )


CATALOG: tuple[Protocol, ...] = (
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
        # There, the class token after the last norm, with no head after it (dinov2/models/vision_transformer.py):
        # in CLIP's ViT, what goes into the projection.
        feature_point="pre_projection",
        grid=tuple(10.0 ** (k / 4 - 6) for k in range(45)),  # 1e-6 to 1e5, 4 to the decade
        coarse_step=1,  # all are tried
        max_iter=1000,
        # Out of reach of float32 features: fits end where the loss falls no more, or at `max_iter`.
        tol=1e-12,
        source=(
            "facebookresearch/dinov2, dinov2/eval/log_regression.py: C is chosen on a split beside train, or on a "
            "random tenth of train where there is none, and the final fit is on both; features are not L2-normalised "
            "(ModelWithNormalize is for its k-NN). There the solver is cuML's in float64, which stops by the gradient "
            "over the loss; here it is scikit-learn's. Which split each published score chose on is not in the code"
        ),
    ),
    *(_few_shot(shots) for shots in SHOTS),
    *(_few_shot(shots, held_out=min(shots, MOST_HELD_OUT)) for shots in SHOTS),
)

# Names that stand for several, where the command line takes protocols.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "few-shot": tuple(f"few-shot-{shots}" for shots in SHOTS),
    "few-shot-held-out": tuple(f"few-shot-{shots}-held-out" for shots in SHOTS),
}
FORMS = "the path of a protocol in TOML, mine.toml"


def protocol_names() -> tuple[str, ...]:
    """The protocols there are; see `GROUPS` for names of several."""
    return tuple(protocol.name for protocol in CATALOG)


def get_protocol(name: str) -> Protocol:
    """Find a protocol by name, or read one of the user's own where `name` is a path that ends in `.toml`.

    Raises:
        UnknownNameError: there is none of that name, or there are several.
        ProtocolError: the file is missing or holds no protocol.
    """
    for protocol in CATALOG:
        if protocol.name == name:
            return protocol
    if name in GROUPS:
        raise UnknownNameError(f"protocol {name!r} stands for {', '.join(GROUPS[name])}; name one of them")
    names = (*protocol_names(), *GROUPS)
    if name.lower().endswith(".toml"):
        return make_protocol(name, taken=names)
    raise unknown_name("protocol", name, names, forms=FORMS)


def validate(protocol: Protocol) -> None:
    """Check a protocol that was made in Python.

    Raises:
        ProtocolError: a field is of the wrong type or out of range, or two do not go together.
    """
    check_protocol(protocol, where=f"protocol {protocol.name!r}")
