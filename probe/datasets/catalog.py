"""Catalogue of datasets, as data: their sources, subsets, sizes, classes, metric and licence.

Datasets with `in_paper` are in table 9 of Radford et al. 2021. Sizes are the true sizes: the table has errors, which
`notes` describe. Sizes come from the makers' page in `homepage`, unless `numbers_from` says more. Entries without
`class_names` take the names in the files of the dataset, and entries without `templates` take `prompts.TEMPLATE`.
"""

from __future__ import annotations

from probe.datasets import class_names
from probe.datasets.source_specs import TRAIN_FLAG, TRAIN_TEST, TRAIN_VAL_TEST, folders, hub, own, shards, torchvision
from probe.specs import OPEN_CLIP, DatasetSpec, Source, Subset

_IDX_FILES = tuple(f"{subset}-{kind}-ubyte" for subset in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
_IDX_TEXT = f"{', '.join(_IDX_FILES[:3])} and {_IDX_FILES[3]}, unpacked"
_GTSRB_TRACK = r"(\d+/\d+)_\d+\.ppm$"  # class and track of a file CLASS/TRACK_FRAME.ppm
_HUB_VALIDATION = {"train": "train", "val": "validation", "test": "test"}
_THOR = "https://thor.robots.ox.ac.uk/pascal/VOC/voc2007/"  # torchvision 0.29 takes the archives from there
# For copies without a fixed revision and without counts of each class: only the sizes of the subsets are checked.
_NO_CHECKSUM = (
    "No checksum of the copy on the hub is published: before you use it, compare a few of its images and labels with "
    "the makers' files."
)
_SCRIPT_ERROR = "Table 9 prints different sizes, because of an error in the script that made it (openai/CLIP#45)."

DATASETS: tuple[DatasetSpec, ...] = (
    DatasetSpec(
        name="digits",
        title="Optical recognition of handwritten digits, 8 x 8 pixels",
        subsets=(Subset("all", 1_797, first_label=0, last_label=8),),
        sources=(Source("embedded", "sklearn.datasets.load_digits"),),
        num_classes=10,
        val_fraction=0.2,
        homepage="https://archive.ics.uci.edu/dataset/80",
        license="CC BY 4.0",
        numbers_from="scikit-learn's load_digits, counted",
        notes="The test subset of the original dataset, divided 60 / 20 / 20 here.",
        class_names=class_names.DIGITS,
    ),
    DatasetSpec(
        name="food101",
        title="Food-101",
        subsets=(Subset("train", 75_750), Subset("test", 25_250)),
        sources=(
            torchvision(
                "Food101",
                TRAIN_TEST,
                paths=("food-101/images", "food-101/meta"),
                files="the folder food-101 of food-101.tar.gz",
                archives=(("food-101.tar.gz", "."),),
            ),
            hub("ethz/food101", {"train": "train", "test": "validation"}),
        ),
        num_classes=101,
        homepage="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        license="not stated",
        numbers_from="home page: 750 and 250 images of each of 101 classes",
        notes="Table 9 prints 102 classes; there are 101.",
        in_paper=True,
    ),
    DatasetSpec(
        name="cifar10",
        title="CIFAR-10",
        subsets=(Subset("train", 50_000), Subset("test", 10_000)),
        sources=(
            torchvision(
                "CIFAR10",
                TRAIN_FLAG,
                paths=("cifar-10-batches-py",),
                files="the folder cifar-10-batches-py of cifar-10-python.tar.gz",
                archives=(("cifar-10-python.tar.gz", "."),),
            ),
            hub("uoft-cs/cifar10", {"train": "train", "test": "test"}, image="img"),
        ),
        num_classes=10,
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        license="not stated",
        numbers_from="home page; Radford et al. 2021, table 9",
        in_paper=True,
        tests=("cifar10_1", "cifar10_2"),
    ),
    DatasetSpec(
        name="cifar100",
        title="CIFAR-100, fine labels",
        subsets=(Subset("train", 50_000), Subset("test", 10_000)),
        sources=(
            torchvision(
                "CIFAR100",
                TRAIN_FLAG,
                paths=("cifar-100-python",),
                files="the folder cifar-100-python of cifar-100-python.tar.gz",
                archives=(("cifar-100-python.tar.gz", "."),),
            ),
            hub("uoft-cs/cifar100", {"train": "train", "test": "test"}, image="img", label="fine_label"),
        ),
        num_classes=100,
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        license="not stated",
        numbers_from="home page; Radford et al. 2021, table 9",
        in_paper=True,
    ),
    DatasetSpec(
        name="birdsnap",
        title="Birdsnap",
        subsets=(Subset("train", 47_386), Subset("test", 2_443)),
        sources=(
            own(
                "birdsnap",
                "birdsnap",
                paths=("images.txt", "test_images.txt", "download/images"),
                files="a folder birdsnap with images.txt and test_images.txt of birdsnap.tgz, and the folder "
                "download/images that its get_birdsnap.py makes",
            ),
        ),
        num_classes=500,
        homepage="http://thomasberg.org/",
        license="not stated",
        numbers_from="the makers' lists of 49,829 images, 2,443 of them for testing",
        notes="Table 9 has the 42,283 and 2,149 images that were available in 2020. The list of these images is not "
        "published, and fewer are left. Compare scores only between runs on the same files.",
        gone="its images are links to other sites, many of which are dead; use --allow-partial to evaluate on the rest",
        in_paper=True,
    ),
    DatasetSpec(
        name="sun397",
        title="SUN397, first partition",
        subsets=(Subset("train", 19_850, class_counts=(50,) * 397), Subset("test", 19_850, class_counts=(50,) * 397)),
        sources=(
            own(
                "sun397",
                "SUN397",
                paths=("Training_01.txt", "Testing_01.txt", "ClassName.txt"),
                files="the folder SUN397 of SUN397.tar.gz, with ClassName.txt, Training_01.txt and Testing_01.txt of "
                "Partitions.zip in it",
                archives=(("SUN397.tar.gz", "."), ("Partitions.zip", "SUN397")),
            ),
            hub("tanganke/sun397", {"train": "train", "test": "test"}),
            hub("ARCHONG/sun397", {"train": "train", "test": "test"}),
        ),
        num_classes=397,
        homepage="https://vision.princeton.edu/projects/2010/SUN/",
        license="not stated",
        numbers_from="the makers' partitions: 50 and 50 images of each of 397 classes; Radford et al. 2021, table 9",
        notes="The first of ten partitions, as in Kornblith et al. 2019. Most copies contain all 108,754 images, or "
        "have different splits. The makers' archive is no longer online (pytorch/vision#9348). The copies on the hub "
        "do not name their partition, but their classes have the right numbers of images.",
        in_paper=True,
    ),
    DatasetSpec(
        name="stanford_cars",
        title="Stanford Cars",
        subsets=(Subset("train", 8_144), Subset("test", 8_041)),
        sources=(
            torchvision(
                "StanfordCars",
                TRAIN_TEST,
                paths=tuple(
                    f"stanford_cars/{name}"
                    for name in ("cars_train", "cars_test", "cars_test_annos_withlabels.mat", "devkit")
                ),
                files="a folder stanford_cars with cars_train, cars_test, cars_test_annos_withlabels.mat and devkit",
                can_download=False,
            ),
            hub("tanganke/stanford_cars", {"train": "train", "test": "test"}),
            shards("clip-benchmark/wds_cars", {"train": "train", "test": "test"}),
        ),
        num_classes=196,
        homepage="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        license="for non-commercial research",
        numbers_from="home page; Radford et al. 2021, table 9",
        notes=f"The makers' files are no longer online (pytorch/vision#7545). {_NO_CHECKSUM}",
        in_paper=True,
    ),
    DatasetSpec(
        name="fgvc_aircraft",
        title="FGVC Aircraft, variants",
        subsets=tuple(
            # 100 images of each variant, dealt to the subsets in turn: embeddings-benchmark/mteb counted train and test
            Subset(subset, size, class_counts=tuple(33 + (label % 3 == turn) for label in range(100)))
            for turn, (subset, size) in enumerate((("train", 3_334), ("val", 3_333), ("test", 3_333)))
        ),
        sources=(
            torchvision(
                "FGVCAircraft",
                {subset: {"split": subset, "annotation_level": "variant"} for subset in ("train", "val", "test")},
                paths=("fgvc-aircraft-2013b/data",),
                files="the folder fgvc-aircraft-2013b of fgvc-aircraft-2013b.tar.gz",
                archives=(("fgvc-aircraft-2013b.tar.gz", "."),),
            ),
            hub("Donghyun99/FGVC-Aircraft", {"train": "train", "val": "val", "test": "test"}),
        ),
        num_classes=100,
        metric="mean_per_class",
        homepage="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        license="for non-commercial research",
        numbers_from="home page: 3,334, 3,333 and 3,333 of 10,000 images; Radford et al. 2021, table 9",
        notes="Classes are the 100 variants, not the 70 families or 30 manufacturers. Images keep their banner.",
        in_paper=True,
    ),
    DatasetSpec(
        name="voc2007",
        title="Pascal VOC 2007, classification",
        subsets=(Subset("train", 2_501), Subset("val", 2_510), Subset("test", 4_952)),
        sources=(
            own(
                "voc2007",
                "VOCdevkit/VOC2007",
                paths=("ImageSets/Main/aeroplane_train.txt", "ImageSets/Main/aeroplane_test.txt", "JPEGImages"),
                files="the folder VOCdevkit of VOCtrainval_06-Nov-2007.tar and of VOCtest_06-Nov-2007.tar, one over "
                "the other",
                archives=(("VOCtrainval_06-Nov-2007.tar", "."), ("VOCtest_06-Nov-2007.tar", ".")),
                downloads=(
                    (f"{_THOR}VOCtrainval_06-Nov-2007.tar", "c52e279531787c972589f7e41ab4ae64"),
                    (f"{_THOR}VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f"),
                ),
            ),
        ),
        num_classes=20,
        metric="voc2007_11pt_map",
        homepage=_THOR,
        license="Flickr's terms of use",
        numbers_from="home page, statistics of the database; Radford et al. 2021, table 9",
        notes="An image shows one class or several, so each class has its own binary probe; all share one C. Images "
        "that show a class only in instances marked as difficult are ignored for this class, in fitting and in "
        "scoring, as in the makers' evaluation; the paper does not say how it treats them.",
        in_paper=True,
        class_names=class_names.VOC2007,
    ),
    DatasetSpec(
        name="dtd",
        title="Describable Textures, first partition",
        subsets=tuple(Subset(subset, 1_880, class_counts=(40,) * 47) for subset in ("train", "val", "test")),
        sources=(
            torchvision(
                "DTD",
                {subset: {"split": subset, "partition": 1} for subset in ("train", "val", "test")},
                paths=("dtd/dtd",),
                files="a folder dtd with the folder dtd of dtd-r1.0.1.tar.gz",
                archives=(("dtd/dtd-r1.0.1.tar.gz", "dtd"),),
            ),
            hub("mcimpoi/dtd_split_1", _HUB_VALIDATION),  # uploaded by the first author
        ),
        num_classes=47,
        homepage="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        license="for research",
        numbers_from="home page: 40 images of each of 47 classes for each split; Radford et al. 2021, table 9",
        notes="The first of ten partitions.",
        in_paper=True,
    ),
    DatasetSpec(
        name="oxford_pets",
        title="Oxford-IIIT Pets, breeds",
        subsets=(Subset("train", 3_680), Subset("test", 3_669)),
        sources=(
            torchvision(
                "OxfordIIITPet",
                {"train": {"split": "trainval"}, "test": {"split": "test"}},
                paths=("oxford-iiit-pet/images", "oxford-iiit-pet/annotations"),
                files="a folder oxford-iiit-pet with the folders of images.tar.gz and annotations.tar.gz",
                archives=(
                    ("oxford-iiit-pet/images.tar.gz", "oxford-iiit-pet"),
                    ("oxford-iiit-pet/annotations.tar.gz", "oxford-iiit-pet"),
                ),
            ),
            hub("timm/oxford-iiit-pet", {"train": "train", "test": "test"}),
        ),
        num_classes=37,
        metric="mean_per_class",
        homepage="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        license="CC BY-SA 4.0",
        numbers_from="the makers' lists trainval.txt and test.txt; Radford et al. 2021, table 9",
        notes=_NO_CHECKSUM,
        in_paper=True,
    ),
    DatasetSpec(
        name="caltech101",
        title="Caltech-101 with its background class",
        subsets=(Subset("all", 9_144, first_label=0, last_label=101),),
        sources=(
            folders(
                "caltech101",
                {"all": "101_ObjectCategories"},
                files="a folder caltech101 with the folder 101_ObjectCategories of caltech-101.zip",
                ignore=("tmp",),  # a stray file among the background images
                archives=(("101_ObjectCategories.tar.gz", "caltech101"),),
            ),
        ),
        num_classes=102,
        metric="mean_per_class",
        recipe="caltech101",
        split_sizes=(("train", 2_754), ("val", 306), ("test", 6_084)),
        homepage="https://data.caltech.edu/records/mzrjq-6wc02",
        license="CC BY 4.0",
        numbers_from="8,677 images of 101 classes (torchvision's Caltech101) and 467 of the background; Radford et al. "
        "2021, table 9, which prints 6,085 for testing",
        notes="30 images of each class are drawn for training. The 6,085 test images of table 9 equal the test subset "
        "of TensorFlow Datasets, which draws 30 names of each class before it drops a stray file, and so trains "
        "on 3,059 images. Its draw depends on the order in which a file system lists files, so it cannot be repeated "
        "from the makers' files. Here the sizes are 3,060 and 6,084, and the images are different.",
        in_paper=True,
    ),
    DatasetSpec(
        name="flowers102",
        title="Oxford Flowers 102",
        subsets=(
            Subset("train", 1_020, class_counts=(10,) * 102),
            Subset("val", 1_020, class_counts=(10,) * 102),
            Subset("test", 6_149),
        ),
        sources=(
            torchvision(
                "Flowers102",
                TRAIN_VAL_TEST,
                paths=("flowers-102/jpg", "flowers-102/imagelabels.mat", "flowers-102/setid.mat"),
                files="a folder flowers-102 with the folder jpg of 102flowers.tgz, imagelabels.mat and setid.mat",
                archives=(("flowers-102/102flowers.tgz", "flowers-102"),),
            ),
            # The makers' JPEG files; the next copy holds PNG files made of them.
            hub(
                "Donghyun99/Oxford-Flower-102",
                _HUB_VALIDATION,
                revision="7e43fe37eeb9278138ab0bd2d0abb10d0f703d09",
            ),
            hub("dpdl-benchmark/oxford_flowers102", _HUB_VALIDATION),
        ),
        num_classes=102,
        metric="mean_per_class",
        homepage="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        license="not stated",
        numbers_from="the makers' setid.mat; Radford et al. 2021, table 9",
        in_paper=True,
        class_names=class_names.FLOWERS102,
    ),
    DatasetSpec(
        name="mnist",
        title="MNIST",
        subsets=(Subset("train", 60_000), Subset("test", 10_000)),
        sources=(
            torchvision(
                "MNIST",
                TRAIN_FLAG,
                paths=tuple(f"MNIST/raw/{file}" for file in _IDX_FILES),
                files=f"a folder MNIST/raw with {_IDX_TEXT}",
            ),
            hub("ylecun/mnist", {"train": "train", "test": "test"}),
        ),
        num_classes=10,
        homepage="https://yann.lecun.org/exdb/mnist/index.html",
        license="CC BY-SA 3.0",
        numbers_from="home page; Radford et al. 2021, table 9",
        in_paper=True,
        class_names=class_names.DIGITS,
    ),
    DatasetSpec(
        name="fer2013",
        title="Facial Emotion Recognition 2013",
        subsets=(
            Subset("train", 28_709, class_counts=(3_995, 436, 4_097, 7_215, 4_830, 3_171, 4_965)),
            Subset("val", 3_589, class_counts=(467, 56, 496, 895, 653, 415, 607)),
            Subset("test", 3_589, class_counts=(491, 55, 528, 879, 594, 416, 626)),
        ),
        sources=(
            own(
                "fer2013",
                "fer2013",
                paths=("fer2013.csv",),
                files="a folder fer2013 with fer2013.csv of the Kaggle competition (icml_face_data.csv under that "
                "name)",
                archives=(("fer2013.tar.gz", "."),),
            ),
            hub(
                "Aaryan333/fer2013_train_publicTest_privateTest",
                {"train": "train", "val": "publicTest", "test": "privateTest"},
                revision="da8d1643649c86bfc2cffba5b744b51fdf329212",
            ),
        ),
        num_classes=7,
        homepage="https://www.kaggle.com/c/challenges-in-representation-learning-facial-expression-recognition-"
        "challenge",
        license="not stated",
        numbers_from="the column Usage of the makers' file; openai/CLIP#45; images of each class counted by "
        "embeddings-benchmark/mteb, for both test subsets together",
        notes="The validation split is PublicTest and the test split is PrivateTest; most copies have both in a split "
        f"called test. {_SCRIPT_ERROR} Table 9 also prints 8 classes; there are 7.",
        in_paper=True,
        class_names=class_names.FER2013,
        templates=("a photo of a {} face.",),
    ),
    DatasetSpec(
        name="stl10",
        title="STL-10, mean of 10 folds",
        subsets=(Subset("train", 5_000), Subset("test", 8_000)),
        sources=(
            torchvision(
                "STL10",
                TRAIN_TEST,
                paths=tuple(
                    f"stl10_binary/{name}"
                    for name in ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "fold_indices.txt")
                ),
                files="the folder stl10_binary of stl10_binary.tar.gz",
                form="stl10",
                archives=(("stl10_binary.tar.gz", "."),),
            ),
        ),
        num_classes=10,
        num_folds=10,
        fold_sizes=((1_000, 8_000),) * 10,
        homepage="https://cs.stanford.edu/~acoates/stl10/",
        license="not stated",
        numbers_from="home page; openai/CLIP#45",
        notes="A probe is fitted on each of the makers' 10 folds of 1,000 images, of which a tenth is held out for "
        "validation. The score is the mean over the folds.",
        in_paper=True,
        class_names=class_names.STL10,
    ),
    DatasetSpec(
        name="eurosat",
        title="EuroSAT, RGB",
        subsets=(Subset("all", 27_000, first_label=0, last_label=9),),
        sources=(
            torchvision(
                "EuroSAT",
                {"all": {}},
                paths=("eurosat/2750",),
                files="a folder eurosat with the folder 2750 of EuroSAT.zip",
                archives=(("eurosat/EuroSAT.zip", "eurosat"),),
                # As in torchvision 0.20 and later; earlier versions ask a host whose certificate is not accepted.
                downloads=(
                    (
                        "https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
                        "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
                        "c8fa014336c82ac7804f0398fcb19387",
                    ),
                ),
            ),
        ),
        num_classes=10,
        recipe="eurosat",
        split_sizes=(("train", 5_000), ("val", 5_000), ("test", 5_000)),
        homepage="https://github.com/phelber/EuroSAT",
        license="MIT",
        numbers_from="home page for 27,000; openai/CLIP#45 for the splits",
        notes="The paper's authors drew 500 images of each class for each split with seed 42, from files in the order "
        "of their file system. Here the files are sorted, so the splits have the same sizes, but different images.",
        in_paper=True,
        class_names=class_names.EUROSAT,
        templates=("a satellite photo of {}.",),
    ),
    DatasetSpec(
        name="resisc45",
        title="NWPU-RESISC45",
        subsets=(Subset("all", 31_500, first_label=0, last_label=44),),
        sources=(
            folders(
                ".",
                {"all": "NWPU-RESISC45"},
                files="the folder NWPU-RESISC45 of NWPU-RESISC45.rar, or NWPU-RESISC45.zip",
                archives=(("NWPU-RESISC45.zip", "."),),
                downloads=(
                    (
                        "https://huggingface.co/datasets/torchgeo/resisc45/resolve/"
                        "a826b44d938a883185f11ebe3d512d38b464312f/NWPU-RESISC45.zip",
                        "75206b2e16446591afa88e2628744886",
                    ),
                ),
            ),
        ),
        num_classes=45,
        recipe="resisc45",
        split_sizes=(("train", 3_150), ("val", 3_150), ("test", 25_200)),
        homepage="https://arxiv.org/abs/1703.00121",
        license="not stated",
        numbers_from="Cheng et al. 2017: 700 images of each of 45 classes; openai/CLIP#45 for the splits",
        notes="The paper's authors shuffled the images with a seed, 42 from memory, and took 10, 10 and 80 %. Here the "
        "files are sorted first, so the splits have the same sizes, but different images. The training size in table 9 "
        "does not include the validation images.",
        in_paper=True,
    ),
    DatasetSpec(
        name="gtsrb",
        title="German Traffic Signs, training set of 2011",
        subsets=(Subset("train", 26_640), Subset("test", 12_630)),
        sources=(
            torchvision(
                "GTSRB",
                TRAIN_TEST,
                paths=("gtsrb/GTSRB/Training", "gtsrb/GTSRB/Final_Test/Images", "gtsrb/GT-final_test.csv"),
                files="a folder gtsrb with GTSRB/Training of GTSRB-Training_fixed.zip, GTSRB/Final_Test of "
                "GTSRB_Final_Test_Images.zip and GT-final_test.csv of GTSRB_Final_Test_GT.zip",
                groups=_GTSRB_TRACK,
                archives=(
                    ("gtsrb/GTSRB-Training_fixed.zip", "gtsrb"),
                    ("gtsrb/GTSRB_Final_Test_Images.zip", "gtsrb"),
                    ("gtsrb/GTSRB_Final_Test_GT.zip", "gtsrb"),
                ),
            ),
        ),
        num_classes=43,
        homepage="https://benchmark.ini.rub.de/gtsrb_dataset.html",
        license="not stated",
        numbers_from="openai/CLIP#156; Radford et al. 2021, table 9",
        notes="Trained on the set of the IJCNN 2011 competition, tested on the official final test set. Images are "
        "frames of tracks; whole tracks are held out for validation.",
        in_paper=True,
        class_names=class_names.GTSRB,
        templates=("a photo of the traffic sign '{}'.",),
    ),
    DatasetSpec(
        name="kitti",
        title="KITTI, distance to the nearest vehicle",
        subsets=(Subset("train", 6_347), Subset("val", 423), Subset("test", 711)),
        sources=(
            own(
                "kitti",
                "Kitti/raw",
                paths=("training/image_2", "training/label_2", "mapping/train_rand.txt", "mapping/train_mapping.txt"),
                files="a folder Kitti/raw with the folders of data_object_image_2.zip, data_object_label_2.zip and "
                "devkit_object.zip",
                archives=tuple(
                    (f"{name}.zip", "Kitti/raw")
                    for name in ("data_object_image_2", "data_object_label_2", "devkit_object")
                ),
            ),
            hub("dpdl-benchmark/kitti", _HUB_VALIDATION, label="label_distance"),
        ),
        num_classes=4,
        homepage="https://www.cvlibs.net/datasets/kitti/eval_object.php",
        license="CC BY-NC-SA 3.0",
        numbers_from="TensorFlow Datasets, kitti; Radford et al. 2021, table 9",
        notes="The task closest_vehicle_distance of VTAB (openai/CLIP#86). Classes are the depth of the nearest car, "
        "van or truck: up to 8 m, up to 20 m, beyond 20 m, or no vehicle. Splits are by video as in TensorFlow "
        "Datasets. The centre crop of CLIP's transform removes the sides of these wide images. The labels of the copy "
        "on the hub were computed by its uploader. No checksum of this copy is published; only the sizes of the splits "
        "and the number of classes are checked. Before you publish scores, compare them with scores on the makers' "
        "files.",
        in_paper=True,
        class_names=class_names.KITTI,
        templates=("a photo of a road with {}.",),
    ),
    DatasetSpec(
        name="country211",
        title="Country211",
        subsets=(
            Subset("train", 31_650, first_label=0, last_label=210, class_counts=(150,) * 211),
            Subset("val", 10_550, first_label=0, last_label=210, class_counts=(50,) * 211),
            Subset("test", 21_100, first_label=0, last_label=210, class_counts=(100,) * 211),
        ),
        sources=(
            torchvision(
                "Country211",
                {"train": {"split": "train"}, "val": {"split": "valid"}, "test": {"split": "test"}},
                paths=("country211",),
                files="the folder country211 of country211.tgz",
                archives=(("country211.tgz", "."),),
            ),
            hub("nateraw/country211", _HUB_VALIDATION),
        ),
        num_classes=211,
        homepage="https://github.com/openai/CLIP/blob/main/data/country211.md",
        license="Creative Commons, image by image",
        numbers_from="home page: 150, 50 and 100 images of each of 211 countries",
        notes="Table 9 prints 43,200 images for training and validation; there are 42,200 (openai/CLIP#154).",
        in_paper=True,
        class_names=tuple(class_names.COUNTRIES.values()),
        templates=("a photo of a place in {}.",),
    ),
    DatasetSpec(
        name="pcam",
        title="PatchCamelyon",
        subsets=(Subset("train", 262_144), Subset("val", 32_768), Subset("test", 32_768)),
        sources=(
            torchvision(
                "PCAM",
                TRAIN_VAL_TEST,
                paths=tuple(
                    f"pcam/camelyonpatch_level_2_split_{split}_{kind}.h5"
                    for split in ("train", "valid", "test")
                    for kind in "xy"
                ),
                files="a folder pcam with the six files camelyonpatch_level_2_split_*.h5, unpacked",
                form="pcam",
            ),
            hub("1aurent/PatchCamelyon", {"train": "train", "val": "valid", "test": "test"}),
        ),
        num_classes=2,
        homepage="https://github.com/basveeling/pcam",
        license="CC0",
        numbers_from="home page; Radford et al. 2021, table 9",
        notes=_NO_CHECKSUM,
        in_paper=True,
        class_names=class_names.PCAM,
        templates=("a microscope image of a lymph node with {}.",),
    ),
    DatasetSpec(
        name="ucf101",
        title="UCF101, middle frames, mean of 3 splits",
        subsets=(Subset("all", 13_320, first_label=0, last_label=100),),
        sources=(
            own(
                "ucf101",
                "ucf101",
                paths=("UCF-101", "ucfTrainTestlist"),
                files="a folder ucf101 with the folder UCF-101 of UCF101.rar and the folder ucfTrainTestlist of "
                "UCF101TrainTestSplits-RecognitionTask.zip",
                archives=(
                    ("ucf101/UCF101.zip", "ucf101"),
                    ("ucf101/UCF101TrainTestSplits-RecognitionTask.zip", "ucf101"),
                ),
                # The makers' files, as zip instead of rar. Python does not accept the certificate of the makers' host.
                downloads=tuple(
                    (f"https://huggingface.co/datasets/MichiganNLP/ucf-101/resolve/main/{name}.zip", "")
                    for name in ("UCF101", "UCF101TrainTestSplits-RecognitionTask")
                ),
            ),
        ),
        num_classes=101,
        num_folds=3,
        fold_sizes=((9_537, 3_783), (9_586, 3_734), (9_624, 3_696)),
        homepage="https://www.crcv.ucf.edu/data/UCF101.php",
        license="not stated",
        numbers_from="home page for 13,320; the makers' lists: 9,537, 9,586, 9,624 clips for training, 3,783, 3,734, "
        "3,696 for testing",
        notes="A probe is fitted on each of the makers' 3 splits; the score is their mean. Whole groups of clips are "
        f"held out for validation. {_SCRIPT_ERROR} {_NO_CHECKSUM}",
        in_paper=True,
    ),
    DatasetSpec(
        name="kinetics700",
        title="Kinetics-700, middle frames",
        subsets=(Subset("train", 494_801), Subset("test", 31_669)),
        sources=(
            folders(
                "kinetics700",
                {"train": "train", "test": "val"},
                files="a folder kinetics700 with train/CLASS/*.mp4 and val/CLASS/*.mp4, clips of 10 s",
                media="video",
            ),
        ),
        num_classes=700,
        metric="mean_top1_top5",
        homepage="https://github.com/cvdfoundation/kinetics-dataset",
        license="CC BY 4.0 (annotations)",
        numbers_from="Radford et al. 2021, table 9: the clips that were available then",
        notes="The official validation subset is the test split, as the size in table 9 suggests. About 536,000 clips "
        "were listed, and each crawl finds different ones. Compare scores only between runs on the same files. "
        "torchvision's Kinetics downloads a different version, Kinetics-700-2020.",
        gone="its clips are links to YouTube, many of which are dead; use --allow-partial to evaluate on the rest",
        in_paper=True,
    ),
    DatasetSpec(
        name="clevr_counts",
        title="CLEVR, number of objects",
        subsets=(
            Subset("train", 70_000),
            Subset("test", 15_000, class_counts=(1_898, 1_925, 1_843, 1_852, 1_808, 1_941, 1_877, 1_856)),
        ),
        sources=(
            torchvision(
                "CLEVRClassification",
                {"train": {"split": "train"}, "test": {"split": "val"}},
                paths=("clevr/CLEVR_v1.0",),
                files="a folder clevr with the folder CLEVR_v1.0 of CLEVR_v1.0.zip",
                first_class=3,
                archives=(("clevr/CLEVR_v1.0.zip", "clevr"),),
            ),
            hub(
                "dpdl-benchmark/clevr",
                {"train": "train", "test": "test"},
                label="label_count",
                revision="a9b3cc07eacabb93d57ceef72374427982104e00",
            ),
        ),
        num_classes=8,
        recipe="clevr_counts",
        split_sizes=(("test", 500),),
        homepage="https://cs.stanford.edu/people/jcjohns/clevr/",
        license="CC BY 4.0",
        numbers_from="home page for 70,000 and 15,000; Radford et al. 2021, table 9, for 2,000 and 500; images of each "
        "class counted by embeddings-benchmark/mteb",
        notes="Classes are 3 to 10 objects. The paper does not say which 2,500 images it used, nor from which subset "
        "(openai/CLIP#245). Here 2,000 images of the training subset and 500 of the validation subset are drawn in a "
        "fixed order. The copy on the hub lists the images in a different order, so other images are drawn.",
        in_paper=True,
        class_names=class_names.CLEVR_COUNTS,
        templates=("a scene with {} objects.",),
    ),
    DatasetSpec(
        name="hateful_memes",
        title="Hateful Memes, images alone",
        subsets=(Subset("train", 8_500), Subset("test", 500)),
        sources=(
            own(
                "hateful_memes",
                "hateful_memes",
                paths=("img", "train.jsonl"),
                files="a folder hateful_memes with img, train.jsonl and dev.jsonl (or dev_seen.jsonl) of the "
                "challenge's archive",
            ),
        ),
        num_classes=2,
        metric="roc_auc",
        homepage="https://hatefulmemeschallenge.com/",
        license="Hateful Memes Dataset License",
        numbers_from="Radford et al. 2021, table 9",
        notes="The development subset is the test split, because the labels of the test subset were not public. "
        "Validation images are held out of the training subset. You must accept the licence, which forbids "
        "redistribution.",
        gone="its makers no longer distribute it (facebookresearch/mmf#1332, #1335)",
        in_paper=True,
        class_names=class_names.HATEFUL_MEMES,
        templates=("a meme that is {}.",),
    ),
    DatasetSpec(
        name="rendered_sst2",
        title="Rendered SST2",
        subsets=(
            Subset("train", 6_920, first_label=0, last_label=1),
            Subset("val", 872, first_label=0, last_label=1),
            Subset("test", 1_821, first_label=0, last_label=1),
        ),
        sources=(
            torchvision(
                "RenderedSST2",
                TRAIN_VAL_TEST,
                paths=("rendered-sst2",),
                files="the folder rendered-sst2 of rendered-sst2.tgz",
                archives=(("rendered-sst2.tgz", "."),),
            ),
            hub("nateraw/rendered-sst2", _HUB_VALIDATION),
        ),
        num_classes=2,
        homepage="https://github.com/openai/CLIP/blob/main/data/rendered-sst2.md",
        license="not stated",
        numbers_from="home page; Radford et al. 2021, table 9",
        in_paper=True,
        class_names=class_names.RENDERED_SST2,
        templates=("a {} sentence from a movie review.",),
    ),
    DatasetSpec(
        name="imagenet",
        title="ImageNet, ILSVRC 2012",
        subsets=(
            Subset("train", 1_281_167, first_label=0, last_label=999),
            Subset("test", 50_000, first_label=0, last_label=999),
        ),
        sources=(
            folders(
                "imagenet",
                {"train": "train", "test": "val"},
                files="a folder imagenet with train/WNID/*.JPEG and val/WNID/*.JPEG",
            ),
            hub("ILSVRC/imagenet-1k", {"train": "train", "test": "validation"}),
            shards(
                "timm/imagenet-1k-wds",
                {"train": "imagenet1k-train-{0000..1023}.tar", "test": "imagenet1k-validation-{00..63}.tar"},
            ),
        ),
        num_classes=1000,
        val_fraction=0.039,  # 50 to 51 of a class
        homepage="https://www.image-net.org/challenges/LSVRC/2012/",
        license="for non-commercial research",
        numbers_from="home page; Radford et al. 2021, table 9",
        notes="The official validation subset is the test split. About 50,000 images of the training subset are held "
        "out for validation, as the paper's authors did in early iterations (openai/CLIP#64). Both copies on "
        "the hub are gated: accept their terms and log in. The second copy is larger than 150 GB.",
        in_paper=True,
        class_names_from=OPEN_CLIP,
        templates_from=OPEN_CLIP,
        tests=(
            *("imagenet_v2_matched", "imagenet_v2_threshold", "imagenet_v2_top", "imagenet_a", "imagenet_r"),
            *("imagenet_sketch", "objectnet", "imagenet_real"),
        ),
    ),
    DatasetSpec(
        name="fashion_mnist",
        title="Fashion-MNIST",
        subsets=(
            Subset("train", 60_000, first_label=9, last_label=5),
            Subset("test", 10_000, first_label=9, last_label=5),
        ),
        sources=(
            torchvision(
                "FashionMNIST",
                TRAIN_FLAG,
                paths=tuple(f"FashionMNIST/raw/{file}" for file in _IDX_FILES),
                files=f"a folder FashionMNIST/raw with {_IDX_TEXT}",
            ),
            hub("zalando-datasets/fashion_mnist", {"train": "train", "test": "test"}),
        ),
        num_classes=10,
        homepage="https://github.com/zalandoresearch/fashion-mnist",
        license="MIT",
        numbers_from="home page; labels read from the files",
        class_names=class_names.FASHION_MNIST,
    ),
    DatasetSpec(
        name="kmnist",
        title="Kuzushiji-MNIST",
        subsets=(Subset("train", 60_000), Subset("test", 10_000)),
        sources=(
            torchvision(
                "KMNIST",
                TRAIN_FLAG,
                paths=tuple(f"KMNIST/raw/{file}" for file in _IDX_FILES),
                files=f"a folder KMNIST/raw with {_IDX_TEXT}",
                can_download=False,  # its only host does not answer (rois-codh/kmnist#29), and torchvision waits for it
            ),
            hub("tanganke/kmnist", {"train": "train", "test": "test"}),
        ),
        num_classes=10,
        homepage="https://github.com/rois-codh/kmnist",
        license="CC BY-SA 4.0",
        numbers_from="home page",
        notes=_NO_CHECKSUM,
        class_names=class_names.KMNIST,
    ),
    DatasetSpec(
        name="emnist",
        title="EMNIST, balanced",
        subsets=(Subset("train", 112_800), Subset("test", 18_800)),
        sources=(
            torchvision(
                "EMNIST",
                {"train": {"split": "balanced", "train": True}, "test": {"split": "balanced", "train": False}},
                paths=tuple(
                    f"EMNIST/raw/emnist-balanced-{subset}-{kind}-ubyte"
                    for subset in ("train", "test")
                    for kind in ("images-idx3", "labels-idx1")
                ),
                files="a folder EMNIST/raw with the files emnist-balanced-*-ubyte of gzip.zip",
            ),
        ),
        num_classes=47,
        homepage="https://www.nist.gov/itl/products-and-services/emnist-dataset",
        license="not stated",
        numbers_from="Cohen et al. 2017 (arXiv 1702.05373), table 2",
        notes="Images are transposed in the files, and are used as they are.",
        class_names=class_names.EMNIST_BALANCED,
    ),
    DatasetSpec(
        name="svhn",
        title="Street View House Numbers, cropped digits",
        subsets=(Subset("train", 73_257), Subset("test", 26_032)),
        sources=(
            torchvision(
                "SVHN",
                TRAIN_TEST,
                paths=("train_32x32.mat", "test_32x32.mat"),
                files="train_32x32.mat and test_32x32.mat",
            ),
            hub("ufldl-stanford/svhn", {"train": "train", "test": "test"}, config="cropped_digits"),
        ),
        num_classes=10,
        homepage="http://ufldl.stanford.edu/housenumbers/",
        license="for non-commercial use",
        numbers_from="home page",
        class_names=class_names.DIGITS,
    ),
    DatasetSpec(
        name="gtsrb_39209",
        title="German Traffic Signs, final training set",
        subsets=(Subset("train", 39_209, first_label=0, last_label=42), Subset("test", 12_630)),
        sources=(
            own(
                "gtsrb",
                "gtsrb",
                paths=("GTSRB/Final_Training/Images", "GTSRB/Final_Test/Images", "GT-final_test.csv"),
                files="a folder gtsrb with GTSRB/Final_Training of GTSRB_Final_Training_Images.zip, GTSRB/Final_Test "
                "of GTSRB_Final_Test_Images.zip and GT-final_test.csv of GTSRB_Final_Test_GT.zip",
                archives=tuple(
                    (f"gtsrb/GTSRB_Final_{name}.zip", "gtsrb") for name in ("Training_Images", "Test_Images", "Test_GT")
                ),
                groups=_GTSRB_TRACK,
            ),
        ),
        num_classes=43,
        homepage="https://benchmark.ini.rub.de/gtsrb_dataset.html",
        license="not stated",
        numbers_from="home page",
        notes="The larger training set, which other papers use; the training set of the CLIP paper is in gtsrb. Whole "
        "tracks are held out for validation.",
        class_names=class_names.GTSRB,
        templates=("a photo of the traffic sign '{}'.",),
    ),
    DatasetSpec(
        name="places365",
        title="Places365, standard, 256 x 256 pixels",
        subsets=(Subset("train", 1_803_460), Subset("test", 36_500)),
        sources=(
            torchvision(
                "Places365",
                {"train": {"split": "train-standard", "small": True}, "test": {"split": "val", "small": True}},
                paths=(
                    *("data_256_standard", "val_256", "categories_places365.txt", "places365_train_standard.txt"),
                    "places365_val.txt",
                ),
                files="data_256_standard, val_256, categories_places365.txt, places365_train_standard.txt and "
                "places365_val.txt",
            ),
        ),
        num_classes=365,
        homepage="http://places2.csail.mit.edu/download.html",
        license="for non-commercial research",
        numbers_from="home page",
        notes="The official validation subset is the test split.",
    ),
    DatasetSpec(
        name="imagenet_v2",
        title="ImageNetV2, matched frequency, trained on ImageNet",
        subsets=(
            Subset("train", 1_281_167, first_label=0, last_label=999),
            Subset("test", 10_000, first_label=0, last_label=999),
        ),
        sources=(
            folders(
                ".",
                {"train": "imagenet/train", "test": "imagenetv2-matched-frequency-format-val"},
                files="the folder imagenet with train/WNID/*.JPEG, and the folder "
                "imagenetv2-matched-frequency-format-val of its archive",
                numbered=("test",),
            ),
        ),
        num_classes=1000,
        val_fraction=0.039,  # 50 to 51 of a class
        homepage="https://github.com/modestyachts/ImageNetV2",
        license="MIT",
        numbers_from="home page",
        notes="A new test set for probes trained on ImageNet. Its scores are not comparable with scores on imagenet.",
        class_names_from=OPEN_CLIP,
        templates_from=OPEN_CLIP,
    ),
)
