"""PSNR, SSIM and LPIPS against scikit-image, torchmetrics and lpips; their properties."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
from extras import extra
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torchmetrics.functional.image import peak_signal_noise_ratio as torchmetrics_psnr
from torchmetrics.functional.image import structural_similarity_index_measure

from analogy.core.errors import ModelError
from analogy.metrics import Lpips, lpips, psnr, ssim
from analogy.metrics.perceptual import _SMALLEST

quick = settings(deadline=None, max_examples=25)


def stacks(n=3, side=12):
    """Few values, so that flat areas and equal pixels are common."""
    return arrays(np.uint8, (n, side, side, 3), elements=st.sampled_from([0, 1, 127, 254, 255]))


@pytest.fixture(scope="module")
def networks(backbone_files):
    return {name: Lpips(name, weights=file) for name, file in backbone_files.items()}


@pytest.fixture(scope="module")
def metrics(networks):
    """Every metric of two images under its name, LPIPS by its fastest network."""
    return {"psnr": psnr, "ssim": ssim, "lpips": lambda *a, **k: lpips(*a, networks["alex"], **k)}


NAMES = ["psnr", "ssim", "lpips"]


# --- against others


def other_pictures(pictures, noisy, kind):
    return noisy if kind == "noisy" else np.roll(pictures, 1, axis=0)


@pytest.mark.parametrize("kind", ["noisy", "unrelated"])
@pytest.mark.parametrize("data_range", [255.0, 100.0])
def test_psnr_is_that_of_others(pictures, noisy, kind, data_range):
    others = other_pictures(pictures, noisy, kind)
    expected = [
        extra("skimage.metrics").peak_signal_noise_ratio(a, b, data_range=data_range)
        for a, b in zip(others, pictures, strict=True)
    ]
    values = psnr(pictures, others, data_range=data_range)
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    theirs = torchmetrics_psnr(
        torch.from_numpy(pictures.copy()),
        torch.from_numpy(others.copy()),
        data_range=data_range,
        dim=(1, 2, 3),
        reduction="none",
    )
    np.testing.assert_allclose(values, theirs.numpy(), rtol=1e-5)


@pytest.mark.parametrize("kind", ["noisy", "unrelated"])
@pytest.mark.parametrize("data_range", [255.0, 100.0])
def test_ssim_is_that_of_scikit_image(pictures, noisy, kind, data_range):
    others = other_pictures(pictures, noisy, kind)
    expected = [
        extra("skimage.metrics").structural_similarity(
            a,
            b,
            data_range=data_range,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(others, pictures, strict=True)
    ]
    values = ssim(pictures, others, data_range=data_range)
    np.testing.assert_allclose(values, expected, rtol=1e-9)


@pytest.mark.parametrize("borders", [True, False])
def test_ssims_windows_are_those_of_torchmetrics_in_float64(pictures, noisy, borders):
    """With the borders its mean, without them its map's inside."""
    a, b = (
        torch.from_numpy(part[:3, :24, :30].transpose(0, 3, 1, 2).copy()).double()
        for part in (pictures, noisy)
    )
    mean, windows = structural_similarity_index_measure(
        a, b, data_range=255.0, reduction="none", return_full_image=True
    )
    expected = mean if borders else windows[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
    values = ssim(pictures[:3, :24, :30], noisy[:3, :24, :30], borders=borders)
    np.testing.assert_allclose(values, expected.numpy(), rtol=1e-9)


def test_torchmetrics_ssim_in_float32_is_not_exact(pictures):
    """The reason not to use it: a drawing is not quite itself. Once it is, use it."""
    a = torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()).float()
    theirs = structural_similarity_index_measure(a, a, data_range=255.0, reduction="none")
    assert theirs.min() < 1 - 5e-5
    assert ssim(pictures, pictures).min() == 1.0


@pytest.mark.parametrize("name", ["alex", "vgg", "squeeze"])
def test_lpips_is_that_of_its_package_on_the_same_backbone(
    name, networks, backbone_files, pictures, noisy
):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package calls torchvision as it was
        package = extra("lpips")

        with torch.device("meta"):
            theirs = package.LPIPS(net=name, pnet_rand=True, pretrained=False, verbose=False)
    heads = torch.load(
        f"{package.__path__[0]}/weights/v0.1/{name}.pth", map_location="cpu", weights_only=True
    )
    backbone = torch.load(backbone_files[name], weights_only=True)
    trunk = {
        key: backbone[re.sub(r"^net\.slice\d+\.", "features.", key)]
        for key in theirs.state_dict()
        if key.startswith("net.")
    }
    theirs.load_state_dict({**trunk, **heads}, strict=False, assign=True)
    a, b = (
        torch.from_numpy(part[:4].transpose(0, 3, 1, 2).copy()).float() / 127.5 - 1
        for part in (pictures, noisy)
    )
    with torch.inference_mode():
        expected = theirs(a, b).flatten().numpy()
    values = lpips(pictures[:4], noisy[:4], networks[name])
    assert values.min() > 1e-4
    np.testing.assert_allclose(values, expected, rtol=1e-4)


# --- properties


def test_an_image_is_nearest_to_itself(pictures, metrics):
    assert np.isposinf(psnr(pictures, pictures)).all()
    np.testing.assert_array_equal(ssim(pictures, pictures), 1.0)
    np.testing.assert_array_equal(metrics["lpips"](pictures, pictures), 0.0)


@quick
@given(stacks())
def test_equal_images_have_ssim_1_and_infinite_psnr(images):
    np.testing.assert_array_equal(ssim(images, images), 1.0)
    assert np.isposinf(psnr(images, images)).all()


@quick
@given(stacks(), stacks(), st.booleans())
def test_ranges_and_symmetry(images, references, borders):
    values = ssim(images, references, borders=borders)
    assert (np.abs(values) <= 1 + 1e-12).all()
    np.testing.assert_allclose(ssim(references, images, borders=borders), values, rtol=1e-12)
    decibels = psnr(images, references)
    assert (decibels >= 0).all()
    np.testing.assert_array_equal(psnr(references, images), decibels)


def test_lpips_is_symmetric_and_not_negative(pictures, noisy, networks):
    for network in networks.values():
        values = lpips(pictures[:3], noisy[:3], network)
        assert (values > 0).all()
        np.testing.assert_allclose(lpips(noisy[:3], pictures[:3], network), values, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_an_images_value_is_its_own(name, metrics, pictures, noisy):
    """Neither the batch nor the order matters."""
    metric = metrics[name]
    whole = metric(pictures, noisy)
    assert whole.shape == (12,)
    assert whole.dtype == np.float64
    each = [metric(a[None], b[None])[0] for a, b in zip(pictures, noisy, strict=True)]
    np.testing.assert_allclose(each, whole, rtol=1e-5)
    if name == "lpips":
        for batch_size in (1, 5, 100):
            values = metric(pictures, noisy, batch_size=batch_size)
            np.testing.assert_allclose(values, whole, rtol=1e-5)
    order = np.random.default_rng(0).permutation(12)
    np.testing.assert_allclose(metric(pictures[order], noisy[order]), whole[order], rtol=1e-5)


def test_the_data_range_is_not_taken_from_the_images():
    """Two dim images: by their own range they would be far apart."""
    dim = np.full((1, 16, 16, 3), 3, np.uint8)
    dimmer = np.full((1, 16, 16, 3), 1, np.uint8)
    assert psnr(dim, dimmer)[0] == pytest.approx(20 * np.log10(255 / 2), rel=1e-6)
    c1 = (0.01 * 255) ** 2
    assert ssim(dim, dimmer)[0] == pytest.approx((2 * 3 + c1) / (9 + 1 + c1), rel=1e-12)


def test_arguments_are_not_changed(pictures, noisy, metrics):
    before = pictures.copy(), noisy.copy()
    for metric in metrics.values():
        metric(pictures, noisy)
    np.testing.assert_array_equal(pictures, before[0])
    np.testing.assert_array_equal(noisy, before[1])


# --- what is refused


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("references", "said"),
    [
        (np.zeros((12, 32, 32, 3), np.uint8), r"one shape, got \(12, 64, 64, 3\) and \(12, 32,"),
        (np.zeros((11, 64, 64, 3), np.uint8), r"one shape, got .* and \(11, 64, 64, 3\)"),
        (np.zeros((12, 64, 64, 3), np.float32), r"references: expected uint8 .*, got float32"),
        (np.zeros((12, 3, 64, 64), np.uint8), r"references: .* got uint8 of shape \(12, 3, 64"),
        (None, r"references: this metric compares with references, got None"),
        ([], r"references: expected uint8 .*, got list"),
    ],
)
def test_references_that_do_not_fit_are_refused(name, metrics, pictures, references, said):
    with pytest.raises(ValueError, match=said):
        metrics[name](pictures, references)


@pytest.mark.parametrize("name", NAMES)
def test_no_images_are_refused(name, metrics, pictures):
    with pytest.raises(ValueError, match=r"expected at least one, got the shape \(0, 64, 64, 3\)"):
        metrics[name](pictures[:0], pictures[:0])


def test_a_batch_of_none_is_refused(networks, pictures):
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        lpips(pictures, pictures, networks["alex"], batch_size=0)


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize("data_range", [0.0, -1.0, np.nan, np.inf])
def test_a_data_range_that_is_none_is_refused(metric, data_range, pictures):
    with pytest.raises(ValueError, match="data_range: expected a finite number above 0"):
        metric(pictures, pictures, data_range=data_range)


def test_ssim_needs_one_window():
    images = np.zeros((1, 11, 11, 3), np.uint8)
    assert ssim(images, images) == [1.0]
    for small in (images[:, :10], images[:, :, :10]):
        with pytest.raises(ValueError, match="11 pixels or more a side for ssim's window, got 1"):
            ssim(small, small)


@pytest.mark.parametrize("name", ["alex", "vgg", "squeeze"])
def test_lpips_has_a_smallest_image_for_each_network(name, networks):
    side = _SMALLEST[name]
    images = np.zeros((1, side, side, 3), np.uint8)
    assert lpips(images, images, networks[name]) == [0.0]
    small = images[:, 1:]
    with pytest.raises(ValueError, match=f"{side} pixels or more a side for lpips by {name}"):
        lpips(small, small, networks[name])
    with pytest.raises(RuntimeError, match="too small"):  # and the bound is no larger than needed
        networks[name].model(torch.zeros(1, 3, side - 1, side), torch.zeros(1, 3, side - 1, side))


# --- LPIPS's weights


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("alex", "alexnet-owt-7be5be79.pth"),
        ("vgg", "vgg16-397923af.pth"),
        ("squeeze", "squeezenet1_1-b8a52dc0.pth"),
    ],
)
def test_missing_weights_are_named_with_the_command_that_fetches_them(name, file, empty_hub):
    with pytest.raises(ModelError) as refusal:
        Lpips(name)
    message = str(refusal.value)
    assert message.startswith(f"{empty_hub / file}: no such file")
    assert f"curl --create-dirs -fLo {empty_hub / file} https://" in message
    assert message.endswith(f"/{file}")
    with pytest.raises(ModelError, match=r"/nowhere/w\.pth: no such file.*weights=PATH"):
        Lpips(name, weights="/nowhere/w.pth")


def test_weights_are_found_where_torch_keeps_them(empty_hub, backbone_files, pictures, networks):
    empty_hub.mkdir(parents=True)
    kept = empty_hub / "alexnet-owt-7be5be79.pth"
    kept.write_bytes(backbone_files["alex"].read_bytes())
    network = Lpips("alex")
    assert network.fingerprint == networks["alex"].fingerprint
    assert re.fullmatch(r"lpips-alex@sha256:[0-9a-f]{16}", network.fingerprint)


def test_loading_draws_no_random_number(backbone_files):
    before = torch.get_rng_state()
    Lpips("alex", weights=backbone_files["alex"])
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_of_another_network_are_refused(backbone_files):
    with pytest.raises(ModelError, match=r"squeezenet.*: expected .* torchvision's alexnet"):
        Lpips("alex", weights=backbone_files["squeeze"])
    with pytest.raises(ModelError, match="expected the weights of torchvision's vgg16"):
        Lpips("vgg", weights=backbone_files["alex"])


class Runs:
    """An object whose unpickling would call a function."""

    def __reduce__(self):
        return (print, ("a file of weights ran code",))


def test_a_file_that_is_no_weights_is_refused(tmp_path, capsys):
    path = tmp_path / "weights.pth"
    path.write_text("not found", "utf-8")
    with pytest.raises(ModelError, match=r"weights\.pth: expected a state dict"):
        Lpips("alex", weights=path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(ModelError, match="expected a state dict, got list"):
        Lpips("alex", weights=path)
    torch.save({"features.0.weight": Runs()}, path)
    with pytest.raises(ModelError, match="expected a state dict"):
        Lpips("alex", weights=path)
    assert capsys.readouterr().out == ""


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match="one of alex, vgg, squeeze, got 'resnet'"):
        Lpips("resnet")
