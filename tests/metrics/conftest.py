"""What the metrics' tests share: drawings, and random backbones in the files of real ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tools.distort import drawings, noise, random_backbone

BACKBONES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}


@pytest.fixture(scope="session")
def drawn():
    """Twelve drawings, uint8 (12, 64, 64, 3), and their captions."""
    return drawings(12, seed=0)


@pytest.fixture(scope="session")
def pictures(drawn):
    """Twelve drawings, uint8 (12, 64, 64, 3)."""
    return drawn[0]


@pytest.fixture(scope="session")
def captions(drawn):
    """A caption of each drawing."""
    return drawn[1]


@pytest.fixture(scope="session")
def noisy(pictures):
    """The drawings under noise."""
    return noise(pictures, 20)


@pytest.fixture(scope="session")
def backbone_files(tmp_path_factory):
    """Per network of LPIPS a file like torchvision's, without the classifier, which none reads."""
    folder = tmp_path_factory.mktemp("backbones")
    return {
        network: random_backbone(folder / f"{name}.pth", name)
        for network, name in BACKBONES.items()
    }


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory):
    """A file like torch-fidelity's Inception v3, of random weights."""
    from torch_fidelity import feature_extractor_inceptionv3 as fidelity

    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *args, **kwargs: None)
        patch.setattr(torch.nn.Module, "to", lambda self, *args: self)
        model = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    path = tmp_path_factory.mktemp("inception") / "weights-inception.pth"
    torch.save({name: random_weights(name, v) for name, v in model.state_dict().items()}, path)
    return path


def random_weights(name: str, like: torch.Tensor) -> torch.Tensor:
    """Weights that keep a signal's size; batch normalisation does nothing."""
    if name.endswith(("running_var", "bn.weight")):
        return torch.ones(like.shape)
    if like.ndim > 1:
        return (2.0 / like[0].numel()) ** 0.5 * torch.randn(
            like.shape, generator=torch.Generator().manual_seed(len(name))
        )
    return torch.zeros(like.shape, dtype=like.dtype)


@pytest.fixture
def empty_hub(tmp_path, monkeypatch):
    """A machine on which torch has downloaded nothing."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def rng():
    """A generator that draws the same each time."""
    return np.random.default_rng(0)


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine with two CUDA devices, as far as torch says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def square():
    """A 4096x4096 float32 matrix on the GPU, 64 MiB."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.ones(4096, 4096, device="cuda")
