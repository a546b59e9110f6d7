"""Weights on disk in 8 bits: every matrix as int8 with a float32 scale per row, all other tensors as they are.

Symmetric, by the largest of a row: s_i = max_j |w_ij| / 127, q_ij = round(w_ij / s_i), and s_i q_ij is read back, off
by half of s_i at most. Scales are rounded to 16 significant bits, so that products with the 7 of q are exact in
float32: what is read back is the same on every machine, and gives the same q and s when it is saved again.
"""

from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lsr.errors import FormatError, InputError

#: A name that Hugging Face's loaders do not look for, and in it names that no model has: codes are not read as weights.
INT8_FILE = "model.int8.safetensors"
CODES, SCALE = ".int8", ".scale"
WHOLE_FILE = "model.safetensors"

#: What the file's metadata say, and the format that is written and read; one key, as several come in any order.
VERSION_KEY = "lsr_int8_version"
VERSION = "1"

LARGEST = 127

#: Bits of a float32 scale that are cleared, of 23 behind the leading one.
CLEARED_BITS = 8


def quantize(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, int8 of the same shape, and scales, float32 (rows,), of a matrix (rows, columns) of finite numbers."""
    weights = weights.float()
    scales = _rounded(weights.abs().amax(1) / LARGEST)
    divisors = scales.where(scales > 0, 1)[:, None]
    return (weights / divisors).round().clamp(-LARGEST, LARGEST).to(torch.int8), scales


def dequantize(codes: Tensor, scales: Tensor) -> Tensor:
    """float32 (rows, columns): each code times its row's scale, exactly."""
    return codes.float() * scales[:, None]


def _rounded(scales: Tensor) -> Tensor:
    """Positive float32 numbers to the nearest with `CLEARED_BITS` zeros at their end."""
    step = 1 << CLEARED_BITS
    return ((scales.view(torch.int32) + step // 2) & -step).view(torch.float32)


def pack_weights(folder: Path) -> None:
    """Replace the weights of a Hugging Face folder by `INT8_FILE`.

    Raises:
        InputError: a matrix has weights that are not finite.
    """
    packed: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / WHOLE_FILE).items():
        if tensor.ndim != 2 or not tensor.is_floating_point():
            packed[name] = tensor
            continue
        if not tensor.isfinite().all():
            raise InputError(f"{name} has weights that are not finite: they cannot be saved as int8")
        packed[name + CODES], packed[name + SCALE] = quantize(tensor)
    save_file(packed, folder / INT8_FILE, {VERSION_KEY: VERSION})
    (folder / WHOLE_FILE).unlink()


def unpack_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a folder's `INT8_FILE` by name, matrices as float32.

    Raises:
        FormatError: the file is damaged, of another format or version, or lacks scales.
    """
    path = folder / INT8_FILE
    if (folder / WHOLE_FILE).exists():
        raise FormatError(f"{folder} has weights twice, in {WHOLE_FILE} and in {INT8_FILE}: delete one of them")
    try:
        with safetensors.safe_open(path, "pt") as file:
            version = (file.metadata() or {}).get(VERSION_KEY)
        tensors = load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise FormatError(f"{path} is damaged ({error}): save the encoder again") from error
    if version is None:
        raise FormatError(f"{path} holds no weights in 8 bits that lsr wrote: save the encoder again")
    if version != VERSION:
        raise FormatError(f"{path} has format {version}, this version of lsr reads {VERSION}: upgrade lsr")
    for name in [key.removesuffix(CODES) for key in tensors if key.endswith(CODES)]:
        codes, scales = tensors.pop(name + CODES), tensors.pop(name + SCALE, None)
        if scales is None or codes.ndim != 2 or scales.shape != codes.shape[:1]:
            raise FormatError(f"{path} has no scale for each row of {name}: save the encoder again")
        tensors[name] = dequantize(codes, scales)
    return tensors
