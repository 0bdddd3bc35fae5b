from probe.names import unknown_name


def test_similar_names_are_suggested():
    message = str(unknown_name("dataset", "cifar-10", ["cifar10", "cifar100", "mnist"]))
    assert message == "unknown dataset 'cifar-10'; did you mean 'cifar10' or 'cifar100'?"


def test_case_does_not_matter():
    assert "'ViT-B/32'" in str(unknown_name("model", "vit-b/32", ["RN50", "ViT-B/32"]))


def test_without_similar_names_all_are_listed():
    message = str(unknown_name("dataset", "zzz", ["mnist", "digits"], forms="folder:PATH"))
    assert message == "unknown dataset 'zzz'; choose one of mnist, digits, or folder:PATH"
