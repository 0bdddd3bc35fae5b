"""Protocols of other suites and papers, as far as their code says what they do.

Each `source` names the code that was read, which rules are kept, and which differ here. A probe that its authors train
by gradient descent for a number of epochs, such as the probe of LAION-AI/CLIP_benchmark, is not in this list. Its score
depends on the learning rate and the number of epochs, which a logistic regression does not have.
"""

from __future__ import annotations

from probe.specs import Protocol

# scikit-learn stops when no component of the gradient of the mean loss exceeds `tol`. Since version 1.4, when the loss
# became a mean, its default of 1e-4 stops far from the optimum (scikit-learn#28700).
TOL = 1e-6
PAPER_GRID = tuple(10.0 ** (k / 8) for k in range(-48, 49))  # 97 values, 8 per decade; Radford et al. 2021, A.3
COOP = "coop-lp"
COOP_GRID = tuple(10.0**k for k in range(-6, 7, 2))  # lpclip/linear_probe.py, `search_list`
COOP_HELD_OUT = {1: 1, 2: 2, 4: 4, 8: 4, 16: 4}  # lpclip/linear_probe.py, `val_shot_list`
VTAB_DRAWS = 5  # our choice: VTAB has one fixed draw


def _coop(shots: int, held_out: int) -> Protocol:
    return Protocol(
        name=f"{COOP}-{shots}",
        title=f"the linear probe of CoOp, {shots} {'image' if shots == 1 else 'images'} a class",
        feature_point="projected",
        grid=COOP_GRID,
        bisections=8,
        max_iter=1000,
        tol=TOL,
        shots=shots,
        held_out=held_out,
        num_seeds=3,
        refit=False,
        source=(
            "Zhou et al. 2022 (KaiyangZhou/CoOp, lpclip/linear_probe.py and linear_probe.sh). Kept: 7 values of C and "
            "8 steps of bisection, 3 draws, C chosen on min(shots, 4) images per class, projected features as they "
            "are. CoOp fits features of RN50; here any model can be fitted. CoOp draws the images for the choice of C "
            "from its validation split; here they are further images of train. The draws differ, because CoOp draws "
            "with NumPy. CoOp's fits stop at scikit-learn's default tolerance, which had a different meaning before "
            "version 1.4; here tol is 1e-6"
        ),
    )


OTHERS: tuple[Protocol, ...] = (
    Protocol(
        name="open-clip",
        title="the linear probe script of open_clip",
        feature_point="projected",
        normalize=True,
        standardize=True,
        grid=(1.0, 10.0, 100.0, 1000.0, 10000.0),  # 1 / lambda for `--l2 1 .1 .01 .001 .0001`
        mean_loss=True,
        max_iter=1500,
        tol=1e-8,
        refit=False,
        source=(
            "mlfoundations/open_clip, scripts/linear_probe.py and docs/linear_probe.md at commit 940f4c10, with "
            "default options. Kept: L2-normalised features, standardised by the training images; lambda from 1 to "
            "1e-4 on the mean loss, where lambda = 1 / (C n) for n training images; no final fit on the validation "
            "split. The script fits in float64 with its own L-BFGS; here the run names the solver. The script "
            "chooses lambda by top-1 accuracy; here it is the metric of the dataset. The script asks the user for a "
            "validation split; here the dataset has one. For images with several labels the script also fits "
            "thresholds, which are not used here"
        ),
    ),
    *(_coop(shots, held_out) for shots, held_out in COOP_HELD_OUT.items()),
    Protocol(
        name="mteb-16",
        title="the image classification of mteb, 16 images a class",
        feature_point="projected",
        grid=(1.0,),
        max_iter=100,
        tol=1e-4,
        shots=16,
        num_seeds=5,
        refit=False,
        source=(
            "embeddings-benchmark/mteb, mteb/abstasks/classification.py. Kept: scikit-learn's LogisticRegression with "
            "C = 1, tol = 1e-4 and at most 100 iterations; projected features as they are, which mteb's wrapper of "
            "open_clip returns; 16 images per label and 5 draws, which its tasks of image classification set (the "
            "defaults, for texts, are 8 and 10). The solver sklearn stops where mteb's fits stop; the solver fast "
            "continues towards the optimum. mteb draws with NumPy from all training images; here the validation split "
            "is left out. mteb uses all images of a class that has fewer than 16; here such a dataset is refused. "
            "mteb reports accuracy; here it is the metric of the dataset"
        ),
    ),
    Protocol(
        name="vtab-1k",
        title="the 1,000 images of VTAB-1k, with a linear probe",
        feature_point="pre_projection",
        grid=PAPER_GRID,
        coarse_step=16,
        max_iter=1000,
        tol=TOL,
        shots=800,
        held_out=200,
        per_class=False,
        num_seeds=VTAB_DRAWS,
        source=(
            "Zhai et al. 2019 (google-research/task_adaptation). Kept: 800 images to fit on and 200 to choose on, "
            "whatever their classes; then a fit on all 1,000, scored on the whole test split. Not kept: VTAB "
            "fine-tunes the network; here a logistic regression with the search of the CLIP paper is fitted on its "
            "features, so the scores are not comparable with VTAB's leaderboard. VTAB has one fixed draw, of which "
            "the 200 images are from an official validation split if there is one; here there are 5 draws from train. "
            "Test images of a class that is not drawn count as wrong. VTAB reports accuracy; here it is the metric of "
            "the dataset"
        ),
    ),
)
