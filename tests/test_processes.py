"""What the machine is asked, once for all."""

import pytest
import torch

from lrvsf.processes import has_fast_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("able", "fast"),
    [
        ({"amx_bf16": True, "avx512_bf16": False}, True),
        ({"amx_bf16": False, "avx512_bf16": True}, True),  # AMD's
        ({"amx_bf16": False, "avx512_bf16": False, "avx512_f": True, "avx2": True}, False),
        ({"neon": True}, False),  # another architecture names neither
    ],
)
def test_a_cpu_multiplies_bfloat16_fast_by_its_instructions(monkeypatch, able, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert has_fast_bf16(CPU) is fast


def test_torch_is_asked_what_this_cpu_can():
    assert has_fast_bf16(CPU) in (True, False)  # a torch without the question raises


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_that_emulates_bfloat16_is_not_fast(monkeypatch, native):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert has_fast_bf16(torch.device("cuda")) is native
