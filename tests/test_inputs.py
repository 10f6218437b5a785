"""The contract at the edge: what is taken, what is refused, and what the refusal says."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lrpguard
from lrpguard.errors import (
    ConfigurationError,
    InputError,
    InputRangeError,
    InputShapeError,
    InputTypeError,
    LrpGuardWarning,
    NonFiniteInputError,
    TrainingModeError,
    UnsupportedModelError,
)
from lrpguard.inputs import (
    MAX_PIXELS,
    MAX_SIDE,
    PIXEL_TOLERANCE,
    NormalizedModel,
    check_images,
    check_model,
    eager_module,
    stem_channels,
)
from tests.nets import images, plain_cnn

NAN, INF = float("nan"), float("inf")
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def with_pixel(value: float, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Three images of which the second has one pixel of this value."""
    batch = images(3, 4, dtype=torch.float64)
    batch[1, 2, 3, 0] = value
    return batch.to(dtype)


class TestCheckImages:
    @pytest.mark.parametrize("dtype", FLOATS)
    def test_returns_good_images_without_a_copy(self, dtype: torch.dtype) -> None:
        batch = images(2, 5).to(dtype)
        batch[0, 0, 0, 0], batch[0, 0, 0, 1] = 0, 1
        checked = check_images(batch)
        assert checked.dtype == dtype
        assert checked.data_ptr() == batch.data_ptr()
        assert torch.equal(checked, batch)

    def test_cuts_the_callers_graph(self) -> None:
        batch = images(1, 4).requires_grad_()
        assert not check_images(batch).requires_grad
        assert batch.requires_grad

    @pytest.mark.parametrize("overshoot", [1e-7, PIXEL_TOLERANCE])
    def test_clips_rounding_errors_and_leaves_the_callers_tensor_alone(
        self, overshoot: float
    ) -> None:
        batch = images(2, 4)
        batch[0, 0, 0, 0], batch[1, 0, 0, 0] = -overshoot, 1 + overshoot
        before = batch.clone()
        checked = check_images(batch)
        assert checked.min() == 0
        assert checked.max() == 1
        assert torch.equal(checked.flatten()[1:47], before.flatten()[1:47])
        assert torch.equal(batch, before)

    @pytest.mark.parametrize(
        ("value", "error", "span"),
        [
            (-1.1e-6, InputRangeError, r"\[-1.1e-06, "),
            (1 + 2e-6, InputRangeError, r", 1\]"),
            (-2.1, InputRangeError, r"\[-2.1, "),
            (2.64, InputRangeError, r", 2.64\]"),
            (255.0, InputRangeError, r", 255\]"),
        ],
    )
    def test_refuses_pixels_outside_the_range(
        self, value: float, error: type[InputError], span: str
    ) -> None:
        with pytest.raises(error, match=rf"span .*{span}.*takes pixels in \[0, 1\].*normalized\("):
            check_images(with_pixel(value))

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_refuses_normalised_images_of_every_dtype(self, dtype: torch.dtype) -> None:
        with pytest.raises(InputRangeError, match=r"lrpguard\.normalized\(model, mean, std\)"):
            check_images(with_pixel(-2.0, dtype=dtype))

    def test_eight_bit_values_as_floats_are_told_to_divide(self) -> None:
        with pytest.raises(InputRangeError, match="Divide 8-bit values by 255"):
            check_images(images(1, 4) * 255)

    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_refuses_pixels_that_are_not_finite_and_names_the_image(
        self, value: float, dtype: torch.dtype
    ) -> None:
        with pytest.raises(NonFiniteInputError, match=r"images \[1\].*NaN or infinite.*finite"):
            check_images(with_pixel(value, dtype=dtype))

    @pytest.mark.parametrize(
        ("value", "says"),
        [
            (np.zeros((1, 3, 4, 4), np.float32), r"ndarray.*torch\.Tensor"),
            ([[0.0]], r"list.*torch\.Tensor"),
            (None, r"NoneType.*torch\.Tensor"),
            (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), r"uint8.*\[0, 1\].*float\(\) / 255"),
            (torch.zeros(1, 3, 4, 4, dtype=torch.int64), r"int64.*\[0, 1\]"),
            (torch.zeros(1, 3, 4, 4, dtype=torch.bool), r"bool.*\[0, 1\]"),
            (torch.zeros(1, 3, 4, 4, dtype=torch.complex64), r"complex64.*\[0, 1\]"),
        ],
    )
    def test_refuses_what_is_no_float_tensor(self, value: object, says: str) -> None:
        with pytest.raises(InputTypeError, match=says):
            check_images(value)

    @pytest.mark.parametrize(
        "value",
        [
            torch.zeros(1, 3, 4, 4).to(torch.float8_e4m3fn),
            torch.zeros(1, 3, 4, 4).to_sparse(),
            torch.zeros(1, 3, 4, 4, device="meta"),
        ],
        ids=["float8", "sparse", "meta"],
    )
    def test_refuses_tensors_it_cannot_compute_with(self, value: Tensor) -> None:
        with pytest.raises(InputTypeError, match="takes"):
            check_images(value)

    @pytest.mark.parametrize(
        ("shape", "says"),
        [
            ((3, 4, 4), r"\[3, 4, 4\].*\[B, C, H, W\].*unsqueeze\(0\)"),
            ((4, 4), r"\[4, 4\].*\[B, C, H, W\]"),
            ((1, 1, 3, 4, 4), r"\[1, 1, 3, 4, 4\].*\[B, C, H, W\]"),
            ((0, 3, 4, 4), r"\[0, 3, 4, 4\].*empty.*at least one"),
            ((1, 0, 4, 4), r"\[1, 0, 4, 4\].*empty"),
            ((1, 3, 0, 4), r"\[1, 3, 0, 4\].*empty"),
        ],
    )
    def test_refuses_other_shapes(self, shape: tuple[int, ...], says: str) -> None:
        with pytest.raises(InputShapeError, match=says):
            check_images(torch.zeros(shape))

    def test_refuses_one_pixel_too_many_without_reading_them(self) -> None:
        huge = torch.zeros(1).expand(1, 3, 4096, MAX_PIXELS // 4096 + 1)
        with pytest.raises(InputShapeError, match=rf"{re.escape(str(list(huge.shape)))}.*Resize"):
            check_images(huge)

    def test_refuses_a_side_that_no_jpeg_can_hold(self) -> None:
        assert check_images(torch.zeros(1, 1, 1, MAX_SIDE)).shape[3] == MAX_SIDE
        with pytest.raises(InputShapeError, match=rf"{MAX_SIDE + 1}.*longer than {MAX_SIDE}"):
            check_images(torch.zeros(1, 1, 1, MAX_SIDE + 1))

    def test_every_refusal_is_a_value_error(self) -> None:
        with pytest.raises(ValueError, match="images"):
            check_images(None)


class TestNormalizedModel:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def expected(self, batch: Tensor) -> Tensor:
        mean = torch.tensor(self.mean, dtype=batch.dtype).view(3, 1, 1)
        std = torch.tensor(self.std, dtype=batch.dtype).view(3, 1, 1)
        return (batch - mean) / std

    def test_normalises_and_runs_the_model(self) -> None:
        model = plain_cnn().eval()
        batch = images(2, 16, dtype=torch.float32)
        wrapped = lrpguard.normalized(model, self.mean, self.std)
        torch.testing.assert_close(wrapped.normalize(batch), self.expected(batch))
        assert torch.equal(wrapped(batch), model(wrapped.normalize(batch)))
        assert wrapped.model is model

    def test_normalises_at_the_precision_of_a_float64_model(self) -> None:
        batch = images(2, 16)
        wrapped = NormalizedModel(plain_cnn().double().eval(), self.mean, self.std)
        torch.testing.assert_close(
            wrapped.normalize(batch), self.expected(batch), rtol=1e-14, atol=1e-14
        )

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_takes_on_the_models_dtype(self, dtype: torch.dtype) -> None:
        wrapped = NormalizedModel(plain_cnn().to(dtype).eval(), self.mean, self.std)
        assert wrapped.mean.dtype == wrapped.std.dtype == dtype
        assert wrapped(images(1, 16).to(dtype)).dtype == dtype

    def test_takes_on_the_models_device(self) -> None:
        wrapped = NormalizedModel(nn.Conv2d(3, 4, 3, device="meta"), self.mean, self.std)
        assert wrapped.mean.device.type == wrapped.std.device.type == "meta"

    def test_does_not_move_a_model_that_lies_on_two_devices(self) -> None:
        second = nn.Conv2d(4, 4, 3)
        before = second.weight.clone()
        NormalizedModel(
            nn.Sequential(nn.Conv2d(3, 4, 3, device="meta"), second), self.mean, self.std
        )
        assert second.weight.device.type == "cpu"
        assert torch.equal(second.weight, before)

    @pytest.mark.parametrize("training", [True, False])
    def test_takes_on_the_models_mode(self, training: bool) -> None:
        model = plain_cnn().train(training)
        assert NormalizedModel(model, self.mean, self.std).training is training
        assert all(module.training is training for module in model.modules())

    def test_takes_a_model_without_parameters(self) -> None:
        wrapped = NormalizedModel(nn.Flatten().eval(), [0.5], [0.25])
        assert wrapped(torch.ones(1, 1, 1, 2)).tolist() == [[2.0, 2.0]]

    @pytest.mark.parametrize("shape", [(2, 1, 16, 16), (2, 4, 16, 16), (3, 16, 16)])
    def test_refuses_other_channels_rather_than_broadcasting(self, shape: tuple[int, ...]) -> None:
        wrapped = NormalizedModel(plain_cnn().eval(), self.mean, self.std)
        with pytest.raises(InputShapeError, match=r"has 3 channel.*takes \[B, 3, H, W\]") as error:
            wrapped(torch.zeros(shape))
        assert str(list(shape)) in str(error.value)

    @pytest.mark.parametrize(
        ("mean", "std", "says"),
        [
            ([0.5], [0.5, 0.5], "mean has 1 and std 2"),
            ([], [], "mean has 0 and std 0"),
            ([0.5], [0.0], "std .*0.0.*positive"),
            ([0.5, 0.5], [0.1, -0.1], "positive"),
            *(
                (mean, std, "finite")
                for mean, std in ([[0.5], [NAN]], [[NAN], [0.5]], [[0.5], [INF]])
            ),
        ],
    )
    def test_refuses_impossible_statistics(
        self, mean: list[float], std: list[float], says: str
    ) -> None:
        with pytest.raises(ConfigurationError, match=says):
            NormalizedModel(nn.Flatten(), mean, std)

    def test_unwraps_a_compiled_model(self) -> None:
        model = plain_cnn().eval()
        with pytest.warns(LrpGuardWarning, match="compiled"):
            wrapped = NormalizedModel(compiled(model), self.mean, self.std)
        assert wrapped.model is model


def compiled(model: nn.Module) -> nn.Module:
    wrapped: Any = torch.compile(model, backend="eager")
    assert isinstance(wrapped, nn.Module)
    return wrapped


class TestCheckModel:
    def test_returns_the_very_model(self) -> None:
        model = plain_cnn().eval()
        assert check_model(model) is model
        wrapped = lrpguard.normalized(model, [0.5] * 3, [0.5] * 3)
        assert check_model(wrapped) is wrapped

    @pytest.mark.parametrize("value", [lambda x: x, None, "resnet18", nn.ReLU])
    def test_refuses_what_is_no_module(self, value: object) -> None:
        with pytest.raises(UnsupportedModelError, match=r"model is a .*eager torch\.nn\.Module"):
            check_model(value)

    def test_refuses_exported_programs_and_their_modules(self) -> None:
        program = torch.export.export(nn.Conv2d(3, 4, 3).eval(), (torch.zeros(1, 3, 8, 8),))
        with pytest.raises(UnsupportedModelError, match=r"ExportedProgram.*give the nn\.Module"):
            check_model(program)
        with pytest.raises(
            UnsupportedModelError, match=r"exported program of aten operators.*Give"
        ):
            check_model(program.module())
        with pytest.raises(UnsupportedModelError, match=r"module '1' is an exported program"):
            check_model(nn.Sequential(nn.Identity(), program.module()))

    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
    def test_refuses_torchscript(self) -> None:
        model = nn.Conv2d(3, 4, 3).eval()
        for scripted in (torch.jit.script(model), torch.jit.trace(model, torch.zeros(1, 3, 8, 8))):
            with pytest.raises(UnsupportedModelError, match=r"the model is a TorchScript.*eager"):
                check_model(scripted)
        with pytest.raises(UnsupportedModelError, match=r"module '1' is a TorchScript module"):
            check_model(nn.Sequential(nn.Identity(), torch.jit.script(model)).eval())

    def test_takes_a_traced_graph_of_modules(self) -> None:
        model = torch.fx.symbolic_trace(plain_cnn().eval())
        assert check_model(model) is model

    def test_unwraps_a_compiled_model_with_a_warning(self) -> None:
        model = plain_cnn().eval()
        with pytest.warns(LrpGuardWarning, match="compiled.*eager original"):
            assert check_model(compiled(model)) is model
        assert eager_module(model) is model

    def test_takes_models_compiled_in_place(self) -> None:
        model = plain_cnn().eval()
        model.compile(backend="eager")
        with pytest.warns(LrpGuardWarning, match="compiled.*eager original"):
            assert check_model(model) is model
        wrapped = lrpguard.normalized(model, [0.5] * 3, [0.5] * 3)
        with pytest.warns(LrpGuardWarning, match="compiled.*eager original"):
            assert check_model(wrapped) is wrapped

    def test_refuses_compiled_parts(self) -> None:
        wrapped = nn.Sequential(nn.ReLU(), compiled(nn.Conv2d(3, 4, 3))).eval()
        with pytest.raises(UnsupportedModelError, match=r"module '1' is compiled.*whole model"):
            check_model(wrapped)
        in_place = plain_cnn().eval()
        in_place[3].compile(backend="eager")
        with pytest.raises(UnsupportedModelError, match=r"module '3' is compiled"):
            check_model(in_place)

    def test_refuses_train_mode_and_names_the_module(self) -> None:
        with pytest.raises(TrainingModeError, match=r"the model \(Sequential\).*model\.eval\(\)"):
            check_model(plain_cnn().train())
        norm = nn.BatchNorm2d(4)
        model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), norm)).eval()
        norm.train()
        with pytest.raises(TrainingModeError, match=r"module '0\.1' \(BatchNorm2d\) is in train"):
            check_model(model)
        assert norm.training

    def test_a_compiled_model_in_train_mode_is_refused_too(self) -> None:
        with (
            pytest.warns(LrpGuardWarning, match="compiled"),
            pytest.raises(TrainingModeError, match="train mode"),
        ):
            check_model(compiled(plain_cnn().train()))

    def test_refuses_a_model_on_two_devices(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, device="meta")).eval()
        with pytest.raises(UnsupportedModelError, match=r"\['cpu', 'meta'\].*model\.to\(device\)"):
            check_model(model)


class TestStemChannels:
    def test_is_the_first_convolutions(self) -> None:
        first = nn.Sequential(nn.Identity(), nn.Sequential(nn.Conv2d(5, 4, 3), nn.Conv2d(4, 2, 3)))
        assert stem_channels(first) == 5
        assert stem_channels(lrpguard.normalized(plain_cnn(), [0.5] * 3, [0.5] * 3)) == 3

    def test_is_none_without_one(self) -> None:
        assert stem_channels(nn.Sequential(nn.Flatten(), nn.Linear(4, 2))) is None
