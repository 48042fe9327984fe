"""Chunked top-k's kernels: by Triton's interpreter wherever Triton is, and on a GPU where there is one."""

import os
import subprocess
import sys

import pytest
import torch

from cser_ray.communication.communicator import Communicator
from cser_ray.compressors import ChunkedTopK
from cser_ray.compressors.formats import VALUE_FORMATS
from cser_ray.compressors.packing import pack_fields, packed_bytes, unpack_fields
from cser_ray.compressors.sparse import SparseMessage
from cser_ray.partial_sync import partial_sync

SHAPES = [(5, 256, 3, 700), (64, 4096, 2, 8192 + 100), (7, 1000, 1, 2500), (256, 256, 1, 300)]
"""Kept, chunk, workers, d: odd, chunks that are no power of two, last ones cut short, all of a chunk kept."""


def same(kept: int, chunk: int, workers: int, d: int, form: str, device: str) -> None:
    """Kernels against what is written without them: places and residuals, records read by either, and the mean."""
    from cser_ray.compressors import chunked_top_k_kernels as kernels

    compressor = ChunkedTopK(kept, chunk, form)
    v = torch.randn(2, workers, d, generator=torch.Generator().manual_seed(1)).to(device)
    v[0, 0, :9] = torch.tensor([1, 1, -1, 1, 0, 0, 5, -5, 5])
    v[1, 0, chunk:] = 0
    payload, left = kernels.compress(v, kept, chunk, compressor.place_bits, form)
    assert payload.shape[-1] == -(-d // chunk) * compressor.record_bytes()
    here = compressor.records(v)
    places, values = compressor.read(payload, v.dtype)
    known_places, known_values = compressor.read(here, v.dtype)
    full = v.reshape(-1, d)
    for row, (found, known) in enumerate(
        zip(places.view(len(full), -1), known_places.view(len(full), -1), strict=True)
    ):
        assert len(set(found.tolist())) == len(found)
        padded = torch.cat([full[row], full.new_zeros(-d % chunk)])
        torch.testing.assert_close(  # the same magnitudes, whichever of equal ones is taken
            padded[found].abs().view(-1, kept).sort().values,
            padded[known].abs().view(-1, kept).sort().values,
            rtol=0,
            atol=0,
        )
    message = SparseMessage(v, payload, range(workers), lambda payload, _: compressor.read(payload, v.dtype))
    assert torch.equal(left, message.residual())  # what the kernel leaves is v minus what everybody reads
    if torch.equal(places, known_places):
        torch.testing.assert_close(values, known_values, rtol=1e-6, atol=0)
        assert form == "int2" or torch.equal(payload, here)
    mean = kernels.average(payload, d, kept, chunk, compressor.place_bits, form)
    expected = message.average(Communicator(workers, group=None), "reset")
    if device == "cpu":
        assert torch.equal(mean, expected)
    else:  # torch multiplies by 1 / n there; the kernel divides, on every worker
        torch.testing.assert_close(mean, expected, rtol=1e-6, atol=1e-6)


def check(device: str) -> None:
    """All shapes in all formats."""
    for shape in SHAPES:
        for form in VALUE_FORMATS:
            same(*shape, form, device)
    from cser_ray.compressors import chunked_top_k_kernels as kernels

    v = torch.ones(1, 512, device=device)
    v[0, 300] = torch.nan
    for form in VALUE_FORMATS:
        assert kernels.compress(v, 3, 256, 8, form)[1][0, 300].isnan(), form


def test_the_kernels_write_what_is_written_without_them() -> None:
    """Records, residuals and means, to the bit. Interpreted, in a process of its own."""
    code = "from tests.test_chunked_top_k import check; check('cpu'); print('checked')"
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout == "checked\n", done.stderr


@pytest.mark.gpu
def test_the_kernels_on_a_gpu() -> None:
    """As interpreted, so compiled; and partial_sync takes them there."""
    check("cuda")
    v = torch.randn(3, 5000, device="cuda")
    mean, r = partial_sync(v, ChunkedTopK(64, format="int4"), Communicator(3, group=None), 1, "reset")
    torch.testing.assert_close((mean + r).mean(0), v.mean(0))


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("count", [1, 2, 7, 8, 33])
def test_fields_come_back(bits: int, count: int) -> None:
    """Of every width, in exactly as many bytes as they need."""
    fields = torch.randint(2**bits, (2, 3, count), generator=torch.Generator().manual_seed(bits))
    packed = pack_fields(fields, bits)
    assert packed.shape[-1] == packed_bytes(count, bits) == -(-bits * count // 8)
    assert torch.equal(unpack_fields(packed, bits, count), fields)


def test_places_of_4096_take_twelve_bits() -> None:
    """64 places in 96 bytes; with values of 2 bits and two scales 120 bytes leave for every chunk."""
    sent = ChunkedTopK(64, format="int2").records(torch.randn(1, 8192))
    assert sent.shape == (1, 2 * 120)
    assert sent.dtype == torch.uint8
