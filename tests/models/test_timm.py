"""Models of timm give the features and the preprocessing of timm's own code."""

import hashlib
import json
import logging
import sys
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import timm
import torch
from make import kills, timm_zoo
from make.colours import write_colours
from make.timm_zoo import write_weights
from PIL import Image

from probe.cli.main import main
from probe.doctor import diagnose
from probe.errors import (
    CheckpointError,
    CheckpointMissingError,
    ChecksumError,
    DownloadError,
    ExtraMissingError,
    UnknownNameError,
)
from probe.models import get_model, is_here, timm_names, timm_weights
from probe.models.description import model_facts
from probe.models.loading import identify, load_clip, load_encoder
from probe.models.preprocess import CustomPreprocess, Preprocess
from probe.models.text import load_text_encoder
from probe.models.timm_names import TimmSource
from probe.models.timm_preprocess import timm_preprocess
from probe.records.record import read_records

SIZES = ((320, 240), (500, 375), (97, 411), (224, 224), (33, 20))


def _image(size, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def _transform(name):
    """Return timm's own transform of a model."""
    config = timm.data.resolve_model_data_config(timm.create_model(name))
    return timm.data.create_transform(**config, is_training=False)


def _pixels(preprocess, sizes=SIZES):
    return torch.from_numpy(np.stack([preprocess.to_pixels(_image(size)) for size in sizes]))


@pytest.mark.parametrize("architecture", timm_zoo.SMALL)
@torch.inference_mode()
def test_features_are_those_of_timm_without_the_classifier(architecture, tmp_path):
    """The tolerance is 1e-5 of the largest feature. The images go through the preprocessing of each side."""
    with timm_zoo.small_timm():
        theirs = write_weights(architecture, tmp_path / "weights.pth")
        encoder = load_encoder(f"timm:{architecture}/{tmp_path / 'weights.pth'}", device="cpu")
        transform = _transform(architecture)
    expected = theirs(torch.stack([transform(_image(size)) for size in SIZES[:2]]))
    found = encoder.encode(_pixels(encoder.preprocess, SIZES[:2]))
    assert (found.projected - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert found.pre_projection.equal(found.projected)
    assert encoder.pre_projection_dim == encoder.embed_dim == expected.shape[1]
    assert not encoder.has_projection
    assert encoder.execution.precision == "fp32"
    assert (
        encoder.preprocess_from == f"timm's {timm.get_pretrained_cfg(architecture).architecture}.{_tag(architecture)}"
    )


def _tag(architecture):
    return timm.get_pretrained_cfg(architecture).tag


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("test_vit", Preprocess),  # bicubic
        ("resnet18.gluon_in1k", Preprocess),
        ("mobilenetv3_large_100.ra_in1k", Preprocess),
        ("dla34.in1k", Preprocess),  # bilinear
        ("convnext_nano.d1h_in1k", Preprocess),
        ("coat_lite_medium_384", Preprocess),  # squashes without a crop
        ("deepseek_vit_412m", CustomPreprocess),  # adds borders
        ("vit_base_patch16_sapiens2", CustomPreprocess),  # not square
    ],
)
@pytest.mark.filterwarnings("ignore:Mapping deprecated model name")
def test_preprocessing_has_the_bits_of_timms_transform(name, kind):
    architecture, _, tag = name.partition(".")
    source = TimmSource(architecture, tag or _tag(architecture))
    preprocess = timm_preprocess(source)
    assert isinstance(preprocess, kind)
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(source.model).to_dict())
    transform = timm.data.create_transform(**config, is_training=False)
    for size in SIZES:
        pixels = torch.from_numpy(preprocess.to_pixels(_image(size)))
        assert preprocess.normalize(pixels[None])[0].equal(transform(_image(size)))


def test_the_settings_of_every_published_model_can_be_read():
    kinds = {type(timm_preprocess(TimmSource(*name.split(".", 1)))) for name in timm.list_pretrained()}
    assert kinds == {Preprocess, CustomPreprocess}


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_224",
        "vit_base_patch16_224.augreg2_in21k_ft_in1k",
        "vit_base_patch16_224/augreg2_in21k_ft_in1k",
    ],
)
def test_all_spellings_of_a_name_are_one_model(name):
    spec = get_model(f"timm:{name}")
    assert spec.name == "timm:vit_base_patch16_224.augreg2_in21k_ft_in1k"
    assert spec.license == "apache-2.0"


def test_a_path_can_follow_a_tag(tmp_path, caplog):
    """The tag then decides the preprocessing. Without a tag, the default is assumed, with a warning if tags differ."""
    path = tmp_path / "x.pth"
    path.write_bytes(b"")
    spec = get_model(f"timm:resnet18.fb_ssl_yfcc100m_ft_in1k/{path}")
    assert spec.source == f"resnet18.fb_ssl_yfcc100m_ft_in1k/{path}"
    assert spec.license == ""
    timm_preprocess(TimmSource("resnet18", "fb_ssl_yfcc100m_ft_in1k", path))
    assert not caplog.text
    timm_preprocess(TimmSource("resnet18", "a1_in1k", path, has_tag=False))
    assert f"timm:resnet18/{path} names no tag; the preprocessing of timm's resnet18.a1_in1k is assumed" in caplog.text


def test_a_path_can_follow_an_architecture_without_tags(tmp_path):
    """The names of such architectures have no dot."""
    path = tmp_path / "x.pth"
    path.write_bytes(b"")
    source = TimmSource("davit_large", "", path, has_tag=False)
    assert get_model(f"timm:davit_large/{path}").source == str(source)
    assert timm_preprocess(source) == timm_preprocess(TimmSource("davit_large", ""))


def _refuse(name, error, message):
    with pytest.raises(error, match=message):
        load_encoder(name, device="cpu", offline=True)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("timm:vit_bas_patch16_224", UnknownNameError, "unknown architecture of timm .*'vit_base_patch16_224'"),
        ("timm:test_vit.r16", UnknownNameError, r"unknown tag of timm's test_vit 'r16'; choose one of r160_in1k$"),
        ("timm:resnet50/a1_in", UnknownNameError, "unknown tag of timm's resnet50 'a1_in'; did you mean 'a1_in1k'"),
        ("timm:test_vit4", UnknownNameError, r"timm has no weights for test_vit4\S*; give timm:test_vit4/PATH, or"),
        ("timm:test_vit//none/x.pt", CheckpointMissingError, r"no checkpoint at /none/x\.pt; give the path of a file"),
        ("timm:test_vit/" + "x" * 5000, CheckpointMissingError, "cannot access"),
        ("random:timm:test_vi", UnknownNameError, "unknown architecture of timm"),
        ("random:open_clip:ViT-B-32/openai", UnknownNameError, "no random weights for 'ViT-B-32/openai'"),
    ],
)
def test_unknown_names_are_refused(name, error, message):
    _refuse(name, error, message)


def _damage(state_dict, what, path):
    if what == "missing":
        del state_dict["blocks.0.norm1.weight"]
    elif what == "deeper":
        state_dict["blocks.40.norm1.weight"] = torch.zeros(3)
    elif what == "two models":
        state_dict = {"model": state_dict, "model_ema": dict(state_dict)}
    elif what == "objects":
        state_dict = timm.create_model("test_vit")
    torch.save(state_dict, path)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", r'Missing key.* "blocks\.0\.norm1\.weight".*check that the weights belong to this architecture'),
        ("deeper", r'Unexpected key.* "blocks\.40\.norm1\.weight".*check that the weights belong'),
        ("two models", r"contains 2 models; add one of these to the path: \?key=model, \?key=model_ema$"),
        ("objects", "contains pickled objects .* which are not loaded, because that would run code"),
    ],
)
def test_weights_that_do_not_fit_are_refused(what, message, tmp_path):
    """Without this check, timm would leave missing weights random, because the classifier is not used."""
    path = tmp_path / "weights.pth"
    write_weights("test_vit", path)
    _damage(torch.load(path, weights_only=True), what, path)
    _refuse(f"timm:test_vit/{path}", CheckpointError, message)


def test_weights_of_another_architecture_and_other_files_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    write_weights("test_resnet", path)
    _refuse(f"timm:test_vit/{path}", CheckpointError, "timm cannot build test_vit/.*Missing key")
    path.write_bytes(b"<html>404</html>")
    _refuse(f"timm:test_vit/{path}", CheckpointError, r"weights\.pth is not a checkpoint or is damaged")


@pytest.mark.parametrize("key", ["", "state_dict", "model_ema"])
@torch.inference_mode()
def test_weights_are_found_in_containers_and_below_prefixes(key, tmp_path, caplog):
    path = tmp_path / "weights.pth"
    theirs = write_weights("test_vit", path)
    weights = {f"module.{name}": tensor for name, tensor in torch.load(path, weights_only=True).items()}
    if key == "state_dict":
        state = {0: {"exp_avg": torch.zeros(3)}}
        torch.save({"epoch": 3, "state_dict": weights, "optimizer": {"state": state}}, path)
    elif key == "model_ema":
        torch.save({"model_ema": weights, "model": {name: tensor + 1 for name, tensor in weights.items()}}, path)
    else:
        backbone = {f"backbone.{name.removeprefix('module.')}": tensor for name, tensor in weights.items()}
        torch.save(backbone | {"backbone.decoder.weight": torch.zeros(2)}, path)
    suffix = "?key=model_ema" if key == "model_ema" else ""
    encoder = load_encoder(f"timm:test_vit/{path}{suffix}", device="cpu")
    assert encoder.weights_key == (key or "backbone")
    pixels = _pixels(encoder.preprocess)
    torch.testing.assert_close(
        encoder.encode(pixels).projected, theirs(encoder.preprocess.normalize(pixels)), rtol=1e-5, atol=1e-5
    )
    assert ("1 tensors are not part of the model and are not used: decoder.weight" in caplog.text) == (key == "")


@torch.inference_mode()
def test_weights_in_another_naming_are_converted_by_timm(tmp_path):
    """The first weights of DINOv2 with registers have other names for the registers."""
    path = tmp_path / "weights.pth"
    with timm_zoo.small_timm():
        theirs = write_weights("vit_small_patch14_reg4_dinov2", path)
        weights = torch.load(path, weights_only=True)
        positions = weights["pos_embed"]
        weights["register_tokens"] = weights.pop("reg_token")
        weights["pos_embed"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("head")}
        torch.save(weights | {"mask_token": torch.zeros(1, 64)}, path)
        encoder = load_encoder(f"timm:vit_small_patch14_reg4_dinov2/{path}", device="cpu")
    pixels = _pixels(encoder.preprocess, SIZES[:1])
    torch.testing.assert_close(
        encoder.encode(pixels).projected, theirs(encoder.preprocess.normalize(pixels)), rtol=1e-5, atol=1e-5
    )


def test_the_identity_is_that_of_weights_architecture_and_preprocessing(tmp_path):
    first, second = tmp_path / "a.pth", tmp_path / "b.pth"
    write_weights("test_vit", first)
    second.write_bytes(first.read_bytes())
    own = identify(get_model(f"timm:test_vit/{first}"))
    assert own == identify(get_model(f"timm:test_vit/{second}"))
    assert own != identify(get_model(f"timm:test_vit2/{first}"))
    second.write_bytes(first.read_bytes() + b" ")
    assert own != identify(get_model(f"timm:test_vit/{second}"))
    assert identify(get_model("random:timm:test_vit")) != identify(get_model("random:timm:test_vit2"))


def test_random_weights_are_the_same_in_each_process():
    """The seed is for torch's generator, whose state does not change."""
    torch.manual_seed(5)
    one, state = load_encoder("random:timm:test_resnet", device="cpu"), torch.get_rng_state()
    torch.manual_seed(6)
    other = load_encoder("random:timm:test_resnet", device="cpu")
    assert one.weights_sha256 == other.weights_sha256
    torch.manual_seed(5)
    assert state.equal(torch.get_rng_state())
    assert is_here(get_model("random:timm:test_resnet"))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@torch.inference_mode()
def test_half_precision_gives_nearly_the_same_features(precision):
    full = load_encoder("random:timm:test_vit", device="cpu")
    half = load_encoder("random:timm:test_vit", device="cpu", precision=precision)
    assert half.weights_dtypes == ({"fp16": "float16", "bf16": "bfloat16"}[precision],)
    pixels = _pixels(full.preprocess)
    found, expected = (encoder.encode(pixels).projected for encoder in (half, full))
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.99


def test_uses_of_a_text_tower_or_an_archive_are_refused(capsys):
    with pytest.raises(CheckpointError, match="loaded without a text tower; give a CLIP model, or a protocol other"):
        load_text_encoder("random:timm:test_vit", device="cpu")
    with pytest.raises(CheckpointError, match="is not a CLIP model; load it with load_encoder"):
        load_clip("random:timm:test_vit", device="cpu")
    assert main(["parity", "--model", "random:timm:test_vit", "--dataset", "digits", "--device", "cpu"]) == 1
    assert "is not a TorchScript archive, so it has no JIT mode" in capsys.readouterr().err


def test_without_timm_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ExtraMissingError, match=r"^timm is not installed; install it with pip install timm, or the"):
        get_model("timm:test_vit")


def test_the_catalogue_lists_timm(capsys):
    assert main(["models", "timm:"]) == 0
    assert "\ntimm:vit_base_patch16_224.augreg_in21k\n" in capsys.readouterr().out
    assert main(["models", "timm:", "--json"]) == 0
    assert {"name": "timm:test_vit.r160_in1k", "is_here": False} in json.loads(capsys.readouterr().out)
    assert diagnose().extras["timm"] == timm.__version__


def test_the_sizes_of_a_model_are_known_without_its_weights():
    """He et al. 2016, table 1, counts 1.8 billion multiply-adds, each of which is two operations here."""
    facts = model_facts("timm:resnet18.a1_in1k")
    model = timm.create_model("resnet18", num_classes=0)
    assert facts["parameters"] == facts["image_parameters"] == sum(p.numel() for p in model.parameters())
    assert (facts["resolution"], facts["embed_dim"], facts["pre_projection_dim"]) == (224, 512, 512)
    assert facts["flops"] / 2 == pytest.approx(1.8e9, rel=0.02)
    assert facts["license"] == "apache-2.0"
    assert not facts["is_here"]


def test_the_sizes_of_a_model_that_reads_values_while_it_is_built_are_known():
    """Older versions of timm cannot build RegNets on the device `meta` of torch."""
    assert model_facts("timm:regnetx_002.pycls_in1k")["parameters"] == 2_315_792


@pytest.mark.slow
def test_a_plan_knows_the_sizes_of_a_model(capsys):
    arguments = ["run", "--dataset", "digits", "--model", "random:timm:test_vit", "--device", "cpu", "--plan", "--json"]
    assert main(arguments) == 0
    (row,) = json.loads(capsys.readouterr().out)["models"]
    assert row["disk"] == 1797 * (4 * (64 + 64) + 8)
    assert row["memory"]["host"] > 1_000_000_000


@pytest.mark.slow
def test_a_run_is_resumed_cached_reproduced_and_compared(tmp_path, caplog, capsys):
    weights, work = tmp_path / "weights.pth", tmp_path / "work"
    write_weights("test_vit", weights)
    command = ["run", "--dataset", write_colours(tmp_path), "--model", f"timm:test_vit/{weights}", "--device", "cpu"]
    command += ["--results-dir", str(work / "results"), "--cache-dir", str(work / "cache"), "--offline"]
    for i, point in enumerate(("projected", "pre_projection")):
        protocol = tmp_path / f"quick-{i}.toml"
        protocol.write_text(kills.PROTOCOL.format(i=i, C=1.0).replace("projected", point), encoding="utf-8")
        command += ["--protocol", str(protocol)]
    output = tmp_path / "output"
    # The process is killed while features are written.
    assert kills.run_command(command, output, watched=work, moment=12) == kills.KILLED
    assert not read_records(work / "results")
    assert kills.run_command(command, output, watched=work) == 0
    assert (
        "has no projection; quick-0 uses its features, which are the same at both feature points" in output.read_text()
    )
    first, second = read_records(work / "results")
    assert {one.spec.protocol.feature_point for one in (first, second)} == {"projected", "pre_projection"}
    assert output.read_text().count("has no projection") == 1
    assert not first.encoder.has_projection
    assert first.encoder.preprocess_from == "timm's test_vit.r160_in1k"
    assert first.encoder.pooling == "token"
    assert first.features == second.features

    caplog.set_level(logging.INFO, "probe")
    assert main(command) == 0
    assert "skipped 2 of 2 runs" in caplog.text
    assert main([*command, "--rerun"]) == 0
    assert all(record.extraction.from_cache for record in read_records(work / "results"))
    (path, _) = sorted((work / "results" / "records").rglob("*.json"))
    assert main(["reproduce", str(path), "--results-dir", str(tmp_path / "again")]) == 0
    assert "identical" in capsys.readouterr().out
    (again,) = (tmp_path / "again" / "records").rglob("*.json")
    assert main(["diff", str(path), str(again)]) == 0

    write_weights("test_vit", weights)
    changed = torch.load(weights, weights_only=True)
    changed["norm.bias"] = changed["norm.bias"] + 1
    torch.save(changed, weights)
    caplog.clear()
    assert main(command) == 0  # new weights under the same name
    assert "skipped" not in caplog.text


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Log nothing to stderr."""


@pytest.fixture
def server(tmp_path):
    """Serve the folder `web`; yield its address."""
    (tmp_path / "web").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=tmp_path / "web")) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_weights_that_are_not_on_the_hub_are_downloaded_to_torchs_folder(tmp_path, server, monkeypatch):
    """The end of the file's name is the start of its SHA-256."""
    theirs = write_weights("test_vit", tmp_path / "weights.pth")
    digest = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    config = timm.get_pretrained_cfg("test_vit")
    for start, message in ((digest[:8], None), ("01234567", r"SHA-256 mismatch \(expected 01234567\.\.\., got")):
        name = f"test_vit-{start}.pth"
        (tmp_path / "web" / name).write_bytes((tmp_path / "weights.pth").read_bytes())
        own = replace(config, hf_hub_id=None, url=f"{server}/{name}")
        for module in (timm_names, timm_weights):
            monkeypatch.setattr(module, "find_config", lambda source, own=own: own)
        spec = get_model("timm:test_vit")
        assert not is_here(spec)
        with pytest.raises(DownloadError, match=r"is missing, and --offline forbids the download"):
            load_encoder(spec, device="cpu", offline=True)
        if message is not None:
            with pytest.raises(ChecksumError, match=message):
                load_encoder(spec, device="cpu")
            continue
        encoder = load_encoder(spec, device="cpu")
        assert is_here(spec)
        assert (tmp_path / "torch" / "hub" / "checkpoints" / name).is_file()
        pixels = _pixels(encoder.preprocess)
        with torch.inference_mode():
            expected = theirs(encoder.preprocess.normalize(pixels))
        torch.testing.assert_close(encoder.encode(pixels).projected, expected, rtol=1e-5, atol=1e-5)
