"""What transformers' processors need of torchvision, for machines where its build does not fit torch's.

torchvision's wheels are made for one build of torch each. Its two operations that M3's processors reach on uint8
tensors are thin: resizing calls torch's own `interpolate`, and normalising subtracts and divides. `install` puts a
package with just these into `sys.modules`; it must run before transformers is imported.
"""

from __future__ import annotations

import sys
from enum import Enum
from importlib.machinery import ModuleSpec
from types import ModuleType

import torch


class InterpolationMode(Enum):
    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


def resize(
    image: torch.Tensor, size: tuple[int, int], interpolation: InterpolationMode, antialias: bool
) -> torch.Tensor:
    assert image.dtype == torch.uint8
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    batch = image.reshape(-1, *image.shape[-3:])
    resized = torch.nn.functional.interpolate(
        batch, size=list(size), mode=interpolation.value, align_corners=False, antialias=antialias
    )
    return resized.reshape(*image.shape[:-2], *size)


def normalize(image: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    return (image - mean[:, None, None]) / std[:, None, None]


def grayscale_to_rgb(image: torch.Tensor) -> torch.Tensor:
    return image.expand(*image.shape[:-3], 3, *image.shape[-2:]) if image.shape[-3] == 1 else image


def install() -> None:
    for name in ("", ".io", ".transforms", ".transforms.functional", ".transforms.v2", ".transforms.v2.functional"):
        module = ModuleType(f"torchvision{name}")
        module.__spec__ = ModuleSpec(module.__name__, None, is_package=True)
        module.__path__ = []
        sys.modules[module.__name__] = module
        if name:
            parent, _, own = module.__name__.rpartition(".")
            setattr(sys.modules[parent], own, module)
    sys.modules["torchvision"].__dict__["__version__"] = "0.28.0"
    sys.modules["torchvision.transforms"].__dict__["InterpolationMode"] = InterpolationMode
    sys.modules["torchvision.transforms.functional"].__dict__["pil_to_tensor"] = None
    functional = sys.modules["torchvision.transforms.v2.functional"].__dict__
    functional.update(
        InterpolationMode=InterpolationMode, resize=resize, normalize=normalize, grayscale_to_rgb=grayscale_to_rgb
    )
