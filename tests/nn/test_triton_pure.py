"""The Triton kernels of pure training beside the reference in PyTorch: on CUDA, or in Triton's interpreter without it.

Integers and exact sums agree bit for bit. Shapes are no multiples of a byte's fields, of a random block or of a tile.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from onebit.nn import Pure1BitLinear, create_pure1bit_optimizer, pure_kernels, torch_pure
from onebit.nn.pure_storage import pack_codes, pack_counters, packed_width, unpack_counters
from onebit.optim.pure_deposit import Factors, update_moments
from onebit.quant.counters import counter_named

pytest.importorskip("triton")
from onebit.nn import triton_pure

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def gradient(rows: int, cols: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(rows * cols)
    sizes = torch.rand(rows, 1, generator=generator) * torch.rand(1, cols, generator=generator)
    return (torch.randn(rows, cols, generator=generator) * sizes * 1e-3).to(dtype).to(DEVICE)


def factors_of(g_OI: Tensor) -> Factors:
    rows, cols = g_OI.shape
    moments = torch.zeros(rows, device=DEVICE), torch.zeros(cols, device=DEVICE)
    peak = g_OI.abs().amax().float()
    return update_moments(moments, torch_pure.square_sums(g_OI, peak, rows), peak, torch.ones((), device=DEVICE))


def integers(rows: int, cols: int, low: int, high: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, (rows, cols), generator=generator, dtype=torch.int8).to(DEVICE)


def codes(rows: int, cols: int, is_binary: bool) -> Tensor:
    numbers = integers(rows, cols, 0, 1) * 2 - 1 if is_binary else integers(rows, cols, -1, 1)
    return pack_codes(numbers, is_binary=is_binary)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_the_references(dtype: torch.dtype) -> None:
    g = gradient(37, 133, dtype)
    peak = g.abs().amax().float()
    for got, expected in zip(triton_pure.square_sums(g, peak, 64), torch_pure.square_sums(g, peak, 64), strict=True):
        assert torch.equal(got, expected)
    factors = factors_of(g)
    assert torch.equal(triton_pure.update_energy(g, factors), torch_pure.update_energy(g, factors))


@pytest.mark.parametrize("peak", [0.0, 1.0, 3e-5, 2.0**-140, 3e38, float("inf"), float("nan")])
def test_moments_and_factors_are_the_references(peak: float) -> None:
    """Vectors longer than a block; the bits of the shift come from sums that agree to the last bit, as above."""
    rows, cols = 1500, 2100
    generator = torch.Generator().manual_seed(1)
    sizes = torch.rand(2 * (rows + cols), generator=generator).to(DEVICE)
    old = sizes[:rows], sizes[rows : rows + cols] * 1e-9
    sums = sizes[rows + cols :].double().split((rows, cols))
    sums[0][3] = sums[1][4] = 0.0  # below the floor
    old[0][3] = old[1][4] = 0.0
    for count in (1, 1000):
        step = torch.tensor(count, device=DEVICE)
        moments, expected_moments = ((old[0].clone(), old[1].clone()) for _ in range(2))
        factors, expected = (
            kernels.update_moments(kept, sums, torch.tensor(peak, device=DEVICE), step)
            for kernels, kept in ((triton_pure, moments), (torch_pure, expected_moments))
        )
        for got, wanted in zip(moments, expected_moments, strict=True):
            assert torch.equal(got, wanted)
        assert factors.is_finite == expected.is_finite == (peak < 1e19)
        # float64 is added up in another order, which may move float32's last place
        for got, wanted in ((factors.row_O1, expected.row_O1), (factors.column_I, expected.column_I)):
            torch.testing.assert_close(got, wanted, rtol=2.0**-23, atol=0.0)


def test_the_largest_number_is_the_references() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        g = gradient(37, 133, dtype)
        assert torch.equal(triton_pure.peak_of(g), torch_pure.peak_of(g))
    g[3, 4] = float("nan")
    assert triton_pure.peak_of(g).isnan()
    assert torch_pure.peak_of(g).isnan()


@pytest.mark.parametrize(("name", "dtype"), [
    ("int8", torch.bfloat16), ("int4", torch.float32), ("none", torch.float32)
])  # fmt: skip
@pytest.mark.parametrize("mean_square", [0.3, 1.7])
def test_a_deposit_gives_the_references_integers(name: str, dtype: torch.dtype, mean_square: float) -> None:
    rows, cols, counter = 5, 541, counter_named(name)
    g = gradient(rows, cols, dtype)
    start = pack_counters(integers(rows, cols, -counter.bound, counter.bound), counter)
    eta = 0.6 if counter.remembers else 1.5
    square = torch.tensor(mean_square, dtype=torch.float64, device=DEVICE)
    step = torch.tensor((1 << 33) + 5, device=DEVICE)
    kept = {}
    for kernels in (torch_pure, triton_pure):
        kept[kernels] = start.clone()
        kernels.deposit(
            kept[kernels], g, factors_of(g), eta, square, counter,
            seed=2**32 - 3, tensor=2**31 + 1, step=step, first_row=70_000,
        )  # fmt: skip
    assert torch.equal(kept[triton_pure], kept[torch_pure])
    moved = unpack_counters(kept[triton_pure], cols, counter) != unpack_counters(start, cols, counter)
    assert 0.1 < moved.float().mean() < 1.0


@pytest.mark.parametrize(("name", "rows", "cols", "bad"), [
    ("int8", 37, 133, None), ("int4", 36, 130, None), ("none", 7, 530, None), ("int8", 7, 40, float("nan"))
])  # fmt: skip
def test_a_whole_deposit_is_its_steps(name: str, rows: int, cols: int, bad: float | None) -> None:
    counter, g = counter_named(name), gradient(rows, cols)
    if bad is not None:
        g[1, 2] = bad
    start = pack_counters(integers(rows, cols, -counter.bound, counter.bound), counter)
    eta = 0.6 if counter.remembers else 1.5
    random = {"seed": 2**32 - 3, "tensor": 2**31 + 1, "step": torch.tensor(4, device=DEVICE)}
    whole, in_steps = start.clone(), start.clone()
    moments, kept = ((torch.zeros(rows, device=DEVICE), torch.zeros(cols, device=DEVICE)) for _ in range(2))
    assert triton_pure.deposit_whole(whole, moments, g, eta, counter, **random)
    assert random["step"] == 5, "the deposit is counted"
    peak = torch_pure.peak_of(g)
    factors = triton_pure.update_moments(kept, torch_pure.square_sums(g, peak, rows), peak, random["step"])
    mean_square = torch_pure.update_energy(g, factors) / g.numel()
    torch_pure.deposit(in_steps, g, factors, eta, mean_square, counter, **random)
    assert torch.equal(whole, in_steps)
    assert torch.equal(whole, start) == (bad is not None)
    assert all(torch.equal(got, wanted) for got, wanted in zip(moments, kept, strict=True))


def test_a_gradient_that_is_not_finite_deposits_nothing() -> None:
    g = gradient(4, 40)
    g[1, 2] = float("nan")
    counters = integers(4, 40, -50, 50)
    before = counters.clone()
    triton_pure.deposit(
        counters, g, factors_of(g), 0.5,
        torch.ones((), dtype=torch.float64, device=DEVICE), counter_named("int8"),
        seed=1, tensor=2, step=torch.tensor(3, device=DEVICE),
    )  # fmt: skip
    assert torch.equal(counters, before)


@pytest.mark.parametrize(("name", "is_binary"), [("int8", False), ("int4", True), ("none", False)])
def test_firing_gives_the_references_integers(name: str, is_binary: bool) -> None:
    counter, sizes = counter_named(name), ((5, 541), (1, 7), (9, 64), (3, 1600))  # one larger than a tile
    kept, moves = {}, {}
    for kernels in (torch_pure, triton_pure):
        kept[kernels] = [
            (
                codes(*size, is_binary),
                pack_counters(integers(*size, -counter.bound, counter.bound, 1), counter),
                size[1],
            )
            for size in sizes
        ]
        moves[kernels] = kernels.fire(kept[kernels], counter, is_binary=is_binary)
    for got, expected in zip(kept[triton_pure], kept[torch_pure], strict=True):
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])
    assert torch.equal(moves[triton_pure], moves[torch_pure])
    assert (moves[torch_pure] > 0).sum() >= 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cols", [203, 1100])
def test_inputs_become_the_references_codes(dtype: torch.dtype, cols: int) -> None:
    generator = torch.Generator().manual_seed(cols)
    x = torch.randn(3, 7, cols, generator=generator) * 10.0 ** torch.randint(-9, 9, (3, 7, 1), generator=generator)
    x[0, 0] = 0.0
    x[1, 2, : cols - 2] = torch.arange(cols - 2) % 64 + 0.5  # halves, which round to the even one
    x[1, 2, -2:] = torch.tensor([127.0, -126.5])
    x = x.to(dtype).to(DEVICE)
    for got, expected in zip(triton_pure.input_codes(x), torch_pure.input_codes(x), strict=True):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)
    for bad in (float("nan"), float("inf")):
        x[2, 3, 5] = bad
        assert not triton_pure.input_codes(x)[1][2, 3].isfinite()


@pytest.mark.parametrize(("is_binary", "tokens"), [(False, 7), (True, 7), (False, 70)])
def test_products_of_int8_are_exact(is_binary: bool, tokens: int) -> None:
    w, x = codes(139, 203, is_binary), integers(3 * tokens, 203, -127, 127).view(3, tokens, 203)
    expected = torch_pure.forward_product(x, w, torch.float64, is_binary=is_binary)
    got = triton_pure.forward_product(x, w, torch.float32, is_binary=is_binary)
    assert torch.equal(got.double(), expected)


@pytest.mark.parametrize("is_binary", [False, True])
def test_products_of_short_floats_round_once(is_binary: bool) -> None:
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16  # the interpreter has no product of bfloat16
    w, x = codes(139, 203, is_binary), torch.randn(3, 7, 203, device=DEVICE).to(dtype)
    g = torch.randn(3, 7, 139, device=DEVICE).to(dtype)
    y = triton_pure.forward_product(x, w, dtype, is_binary=is_binary)
    back = triton_pure.input_gradient(g, w, 203, is_binary=is_binary)
    # The float32 sum of about 200 numbers of size 1 is off by at most 200^2 2^-24; its rounding, by half a unit.
    tolerance = {"rtol": torch.finfo(dtype).eps / 2, "atol": 2.5e-3}
    exact = torch_pure.forward_product(x.double(), w, torch.float64, is_binary=is_binary)
    torch.testing.assert_close(y.double(), exact, **tolerance)
    exact = torch_pure.input_gradient(g.double(), w, 203, is_binary=is_binary)
    torch.testing.assert_close(back.double(), exact, **tolerance)


@pytest.mark.parametrize("is_binary", [False, True])
@pytest.mark.parametrize(("shape", "group_size"), [((), 0), ((9,), 0), ((9, 4), 64)])
def test_the_gradient_of_a_scale(shape: tuple[int, ...], group_size: int, is_binary: bool) -> None:
    w, g = codes(9, 203, is_binary), gradient(9, 203)
    scale = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    got = triton_pure.scale_gradient(g, w, scale, group_size, is_binary=is_binary)
    expected = torch_pure.scale_gradient(g.double(), w, scale, group_size, is_binary=is_binary)
    assert got.shape == shape[:1]
    # float32 sums of up to 9 * 203 terms, of up to 1e-3 each
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("is_binary", [False, True])
def test_unpacking(is_binary: bool) -> None:
    w = codes(5, 541, is_binary)
    assert w.shape[1] == packed_width(541, 1 if is_binary else 2)
    for dtype in (torch.bfloat16, torch.float32):
        expected = torch_pure.unpack(w, 541, dtype, is_binary=is_binary)
        assert torch.equal(triton_pure.unpack(w, 541, dtype, is_binary=is_binary), expected)


def test_training_steps_leave_the_references_state(monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    for kernels in (torch_pure, triton_pure):
        monkeypatch.setattr(pure_kernels, "kernels_on", lambda _, kernels=kernels: kernels)
        torch.manual_seed(0)
        layer = Pure1BitLinear(70, 12).to(DEVICE)
        optimizer, _ = create_pure1bit_optimizer(layer, lr=0.1)
        before = layer.weight.codes.clone()
        for _ in range(3):  # on a GPU, the later ones launch what the first compiled
            layer(torch.randn(8, 70).to(DEVICE)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert not torch.equal(layer.weight.codes, before)
        states.append(layer.state_dict())
    for name, expected in states[0].items():
        assert torch.equal(states[1][name], expected) or name == "weight.log_scale", name
    torch.testing.assert_close(*(state["weight.log_scale"] for state in states))


@pytest.mark.skipif(sys.platform != "linux", reason="triton compiles on Linux")
@pytest.mark.parametrize("architecture", [80, pytest.param(90, marks=pytest.mark.slow)])
def test_kernels_compile_for_a_gpu_without_fused_sums_and_are_launched_as_triton_would(architecture: int) -> None:
    """The interpreter takes what the compiler refuses; the compiler, with its assembler, needs no GPU."""
    command = [sys.executable, str(Path(__file__).with_name("compile_triton.py")), str(architecture)]
    cache = str(Path(__file__).parents[2] / "build" / "triton")
    environment = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": cache, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
