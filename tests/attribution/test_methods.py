"""Methods of attribution against captum, closed forms, and each other smoothed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lrpguard
from lrpguard.attribution import (
    BayesianLrp,
    Gradient,
    GradientTimesInput,
    IntegratedGradients,
    Lrp,
    Method,
    SmoothGrad,
    attribute,
)
from lrpguard.errors import (
    ConfigurationError,
    ModelOutputError,
    TrainingModeError,
    UnsupportedOperatorError,
)
from lrpguard.lrp import COMPOSITES, relevance
from lrpguard.noise import gaussian_copies, image_digest, key_bytes
from tests.nets import TinyResNet, Whole, images, plain_cnn, randomized, rel_l2

METHODS: dict[str, Method] = {
    "lrp": Lrp(COMPOSITES["epsilon-plus"]),
    "gradient": Gradient(),
    "gradient times input": GradientTimesInput(),
    "integrated gradients": IntegratedGradients(steps=5),
    "smoothgrad": SmoothGrad(n=3),
    "b-lrp": BayesianLrp(samples=3, layers="*", rate=0.2),
}
PLAIN = [name for name in METHODS if "lrp" not in name]


def smooth_net(seed: int = 0) -> nn.Module:
    """Return a network whose gradient changes everywhere, and which LRP refuses."""
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Softplus(), nn.Flatten(), nn.Linear(5 * 14 * 14, 4))
    return randomized(net, seed=seed)


def captum(name: str) -> Any:
    return getattr(pytest.importorskip("captum.attr", reason="needs lrpguard[dev]"), name)


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
class TestEqualsCaptum:
    @pytest.mark.parametrize("make", [plain_cnn, smooth_net, TinyResNet])
    def test_gradients(self, make: Any) -> None:
        model, x = randomized(make()), images(3)
        target = torch.tensor([1, 0, 3])
        ours = attribute(model, x, target, method=Gradient())
        theirs = captum("Saliency")(model).attribute(x.clone(), target=target, abs=False)
        assert rel_l2(ours.relevance, theirs.detach()) < 1e-14
        assert torch.equal(ours.logits, model(x).detach())
        ours = attribute(model, x, target, method=GradientTimesInput())
        theirs = captum("InputXGradient")(model).attribute(x.clone(), target=target)
        assert rel_l2(ours.relevance, theirs.detach()) < 1e-14

    @pytest.mark.parametrize("baseline", [0.0, 0.5])
    def test_integrated_gradients(self, baseline: float) -> None:
        model, x, target = smooth_net(), images(3), torch.tensor([1, 0, 3])
        method = IntegratedGradients(steps=7, baseline=baseline)
        theirs = captum("IntegratedGradients")(model).attribute(
            x.clone(), baseline, target, n_steps=7, method="riemann_middle"
        )
        ours = attribute(model, x, target, method=method).relevance
        assert rel_l2(ours, theirs.detach()) < 1e-6  # captum's steps are in float32

    def test_smoothgrad(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """captum's noise is drawn by torch.normal; here it is given ours."""
        model, x, target = smooth_net(), images(2), torch.tensor([1, 3])
        digests = [image_digest(image, key_bytes(4)) for image in x]
        noise = torch.cat([gaussian_copies(d, 0, 6, x.shape[1:]) for d in digests])
        monkeypatch.setattr(torch, "normal", lambda mean, std: mean + std * noise)
        theirs = captum("NoiseTunnel")(captum("Saliency")(model)).attribute(
            x.clone(), "smoothgrad", nt_samples=6, stdevs=0.1, target=target, abs=False
        )
        ours = attribute(model, x, target, method=SmoothGrad(n=6, sigma=0.1, seed=4)).relevance
        assert rel_l2(ours, theirs.detach()) < 1e-6  # the copies are made in float32


def test_by_hand() -> None:
    # f = x1^2 + 3 x2 at (0.5, 0.2): gradient (1, 3); the path from 0 integrates to (0.25, 0.6).
    def forward(net: Any, x: Tensor) -> Tensor:
        a, b = x.flatten(1).unbind(1)
        return torch.stack([a**2 + 3 * b, torch.zeros_like(a)], 1)

    model = Whole(forward).eval()
    x = torch.tensor([0.5, 0.2], dtype=torch.float64).view(1, 1, 1, 2)
    expected: dict[Method, list[float]] = {
        Gradient(): [1.0, 3.0],
        GradientTimesInput(): [0.5, 0.6],
        IntegratedGradients(steps=3): [0.25, 0.6],
        IntegratedGradients(steps=4, baseline=0.1): [0.24, 0.3],
    }
    for method, values in expected.items():
        found = attribute(model, x, method=method).relevance.flatten()
        assert found.tolist() == pytest.approx(values, rel=1e-12)


def test_gradient_by_finite_differences() -> None:
    model, x, target = smooth_net(), images(1), torch.tensor([2])
    gradient = attribute(model, x, target, method=Gradient()).relevance
    step = torch.zeros_like(x)
    for index in ((0, 0, 3, 3), (0, 2, 8, 1)):
        step.zero_()[index] = 1e-6
        with torch.no_grad():
            slope = (model(x + step) - model(x - step))[0, 2] / 2e-6
        assert float(gradient[index]) == pytest.approx(float(slope), rel=1e-6)


def test_integrated_gradients_are_complete() -> None:
    model, x, target = smooth_net(), images(2), torch.tensor([2, 0])
    with torch.no_grad():
        rise = (model(x) - model(torch.full_like(x, 0.5))).gather(1, target[:, None]).squeeze(1)
    found = attribute(model, x, target, method=IntegratedGradients(400, 0.5)).relevance
    assert rel_l2(found.sum((1, 2, 3)), rise) < 1e-6


@pytest.mark.parametrize("composite", ["zero", "epsilon-gamma-box"])
def test_lrp_is_the_engines(composite: str) -> None:
    model, x = randomized(TinyResNet()), images()
    ours = attribute(model, x, method=Lrp(COMPOSITES[composite]))
    expected = relevance(model, x, composite=COMPOSITES[composite])
    assert torch.equal(ours.relevance, expected.relevance)
    assert torch.equal(ours.logits, expected.logits)


@pytest.mark.parametrize("name", METHODS)
class TestEveryMethod:
    def test_alone_or_in_a_batch(self, name: str) -> None:
        model, x = randomized(plain_cnn()), images(3)
        batch = attribute(model, x, method=METHODS[name])
        for i in range(3):
            alone = attribute(model, x[i : i + 1], method=METHODS[name])
            assert rel_l2(alone.relevance[0], batch.relevance[i]) < 1e-12
            assert rel_l2(alone.logits[0], batch.logits[i]) < 1e-12

    def test_is_taken_after_a_known_normalisation(self, name: str) -> None:
        net, x, target = randomized(plain_cnn()), images(2), torch.tensor([1, 2])
        mean, std = [0.5, 0.4, 0.3], [0.25, 0.2, 0.3]
        ours = attribute(lrpguard.normalized(net, mean, std), x, target, method=METHODS[name])
        assert ours.relevance.shape == x.shape
        if name == "gradient":
            bounds = [torch.tensor(v).view(1, -1, 1, 1).double() for v in (mean, std)]
            inside = attribute(net, (x - bounds[0]) / bounds[1], target, method=METHODS[name])
            assert rel_l2(ours.relevance, inside.relevance) < 1e-6

    def test_can_be_smoothed(self, name: str) -> None:
        model, x = randomized(plain_cnn(), dtype=torch.float32), images(2, dtype=torch.float32)
        method = METHODS[name]
        evidence = lrpguard.explain(model, x, n=4, sigma=0.1, method=method, target=1)
        noise = gaussian_copies(image_digest(x[1], key_bytes(0)), 0, 4, x.shape[1:])
        copies = x[1] + 0.1 * noise
        maps = attribute(model, copies, torch.ones(4, dtype=torch.long), method=method).relevance
        maps = maps.sum(1)
        assert rel_l2(evidence.relevance_mean[1], maps.mean(0)) < 1e-5
        assert rel_l2(evidence.relevance_variance[1], maps.var(0)) < 1e-4

    def test_chunks_do_not_matter(self, name: str) -> None:
        model, x = randomized(plain_cnn(), dtype=torch.float32), images(1, dtype=torch.float32)
        method = METHODS[name]
        one, all_at_once = (
            lrpguard.explain(model, x, n=5, method=method, memory_budget=budget)
            for budget in (1, 2**30)
        )
        assert rel_l2(one.relevance_mean, all_at_once.relevance_mean) < 1e-5

    def test_leaves_the_model_as_it_was(self, name: str) -> None:
        model, x = randomized(TinyResNet(), dtype=torch.float32), images(dtype=torch.float32)
        model.stem.weight.requires_grad_(False)

        def state() -> list[object]:
            tensors = (*model.parameters(), *model.buffers())
            held: list[object] = [
                (t._version, t.requires_grad, t.grad, t.detach().double().sum().item())
                for t in tensors
            ]
            return [*held, *(m.training for m in model.modules())]

        before = state()
        attribute(model, x, method=METHODS[name])
        assert state() == before

    def test_the_callers_mode_changes_nothing(self, name: str) -> None:
        model, x = randomized(TinyResNet()), images()
        expected = attribute(model, x, method=METHODS[name]).relevance
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                assert torch.equal(attribute(model, x, method=METHODS[name]).relevance, expected)
        with torch.inference_mode():
            model, x = randomized(TinyResNet()), images()
            assert torch.equal(attribute(model, x, method=METHODS[name]).relevance, expected)

    def test_train_mode_is_refused(self, name: str) -> None:
        with pytest.raises(TrainingModeError):
            attribute(TinyResNet().train(), images(), method=METHODS[name])

    def test_finite_on_extreme_images(self, name: str) -> None:
        model = randomized(TinyResNet(), dtype=torch.float32)
        for value in (0.0, 0.5, 1.0):
            x = torch.full((1, 3, 16, 16), value)
            assert attribute(model, x, method=METHODS[name]).relevance.isfinite().all()


class TestSmoothGrad:
    def test_is_the_gradient_smoothed(self) -> None:
        model, x = randomized(plain_cnn(), dtype=torch.float32), images(2, dtype=torch.float32)
        ours = attribute(model, x, method=SmoothGrad(n=6, sigma=0.1, seed=3)).relevance.sum(1)
        evidence = lrpguard.explain(model, x, n=6, sigma=0.1, seed=3, method=Gradient())
        assert rel_l2(ours, evidence.relevance_mean) < 1e-5

    def test_a_linear_network_has_no_noise_in_its_gradient(self) -> None:
        model, x = randomized(nn.Sequential(nn.Flatten(), nn.Linear(768, 3))), images(2)
        smooth = attribute(model, x, method=SmoothGrad(n=3)).relevance
        assert rel_l2(smooth, attribute(model, x, method=Gradient()).relevance) < 1e-14


class TestWhereLrpRefuses:
    """Plain gradients are the knowing choice for a network without rules."""

    @pytest.mark.parametrize("name", PLAIN)
    def test_plain_gradients_work(self, name: str) -> None:
        model, x = smooth_net(), images(1)
        with pytest.raises(UnsupportedOperatorError):
            attribute(model, x, method=Lrp())
        result = attribute(model, x, method=METHODS[name])
        assert result.relevance.isfinite().all()
        assert result.relevance.any()

    def test_a_value_that_leaves_the_graph_is_an_error(self) -> None:
        model = randomized(Whole(lambda net, x: net.net(x.detach()), net=plain_cnn()))
        with pytest.raises(ModelOutputError, match="differentiable"):
            attribute(model, images(), method=Gradient())

    def test_saves_no_weights_gradient(self) -> None:
        """Memory of a pass is that of a network with frozen weights."""
        model, x = randomized(plain_cnn()), images(1)
        size = Gradient().saved_bytes(model, x)
        assert size == Gradient().saved_bytes(model.requires_grad_(False), x)
        assert size >= x.nbytes


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: IntegratedGradients(steps=0), "steps is 0"),
        (lambda: IntegratedGradients(baseline=-1.0), "baseline is -1"),
        (lambda: SmoothGrad(n=0), "n is 0"),
        (lambda: SmoothGrad(sigma=0.0), "sigma is 0"),
        (lambda: SmoothGrad(seed=-1), "seed is -1"),
        (lambda: BayesianLrp(samples=0), "samples is 0"),
        (lambda: BayesianLrp(rate=1.0), "rate is 1"),
        (lambda: BayesianLrp(layers="x"), "without a rate"),
    ],
)
def test_impossible_settings_are_refused(make: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        make()


def test_a_method_and_a_composite_contradict_each_other() -> None:
    model, composite = randomized(plain_cnn()), COMPOSITES["zero"]
    with pytest.raises(ConfigurationError, match="both a method"):
        lrpguard.explain(model, images(), method=Gradient(), composite=composite)
