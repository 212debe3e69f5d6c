"""Makes the goldens of the metrics: PSNR and SSIM by scikit-image, the Frechet distance by pytorch-fid.

Run: python make.py   (writes the .safetensors files and PROVENANCE.toml beside this script)
"""

import importlib.metadata
import platform
from pathlib import Path

import numpy
import safetensors.numpy
from pytorch_fid.fid_score import calculate_frechet_distance
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

HERE = Path(__file__).parent
SEED = 20260


def pictures():
    """Pictures in [-1, 1] of shape [height, width, channels]; data range 2, the settings of Wang et al. 2004."""
    random = numpy.random.default_rng(SEED)
    rows, columns = numpy.mgrid[0:21, 0:17] / 4.0
    reference = numpy.stack([numpy.sin(rows + columns), numpy.cos(rows * 1.3 - columns), numpy.sin(rows * columns * 0.3)], axis=-1)
    reference = reference.astype(numpy.float32)
    blurred = sum(numpy.roll(reference, shift, axis) for shift in (-1, 0, 1) for axis in (0, 1)) / 6
    tensors = {
        "reference": reference,
        "noisy": (reference + 0.2 * random.standard_normal(reference.shape)).clip(-1, 1).astype(numpy.float32),
        "blurred": blurred.astype(numpy.float32),
        "darker": (reference * 0.5 - 0.4).astype(numpy.float32),
        "inverted": -reference,
    }
    for name in list(tensors)[1:]:
        value = structural_similarity(
            tensors[name].astype(numpy.float64), reference.astype(numpy.float64), data_range=2, channel_axis=-1,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False, K1=0.01, K2=0.03,
        )
        tensors[f"{name}_ssim"] = numpy.array([value])
        tensors[f"{name}_psnr"] = numpy.array([peak_signal_noise_ratio(reference.astype(numpy.float64), tensors[name].astype(numpy.float64), data_range=2)])
    safetensors.numpy.save_file({name: numpy.ascontiguousarray(value) for name, value in tensors.items()}, HERE / "pictures.safetensors")


def features():
    random = numpy.random.default_rng(SEED + 1)

    def mixed(count, mean, scale):
        mixing = random.standard_normal((12, 12)) * scale
        return (random.standard_normal((count, 12)) @ mixing + mean).astype(numpy.float32)

    tensors = {"first": mixed(80, 0.0, 1.0), "second": mixed(60, 0.5, 0.7), "few": mixed(8, -0.3, 1.0)}
    statistics = {name: (value.astype(numpy.float64).mean(axis=0), numpy.cov(value.astype(numpy.float64), rowvar=False)) for name, value in tensors.items()}
    for left, right in [("first", "second"), ("second", "first"), ("first", "few"), ("few", "first")]:
        tensors[f"{left}_{right}"] = numpy.array([calculate_frechet_distance(*statistics[left], *statistics[right])])
        print(left, right, tensors[f"{left}_{right}"])
    safetensors.numpy.save_file(tensors, HERE / "features.safetensors")


def provenance():
    packages = ["numpy", "scipy", "scikit-image", "pytorch-fid", "safetensors"]
    lines = ['script = "make.py"', f"seed = {SEED}", f'python = "{platform.python_version()}"']
    lines += [f'{name} = "{importlib.metadata.version(name)}"' for name in packages]
    lines += ["", "[licences]", 'scikit-image = "BSD-3-Clause"', 'pytorch-fid = "Apache-2.0"', 'data = "random, made by this script"']
    (HERE / "PROVENANCE.toml").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    pictures()
    features()
    provenance()
