"""Each score on evidence written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lrpguard import Evidence, explain
from lrpguard.errors import ConfigurationError
from lrpguard.scores import (
    SCORES,
    chroma_noise,
    label_disagreement,
    line_noise,
    log_odds_shift,
    margin,
    max_logit,
    place_roughness,
    relative_variance,
    relevance_roughness,
    relevance_spread,
    relevance_variance,
    score_matrix,
)
from tests.support import images, make_evidence, small_net

BY_HAND = make_evidence(
    logits=[[2.0, -1.0, 0.5], [0.0, 1.0, 4.0]],
    noisy_logits=[
        [[2.5, 0.0, 0.5], [1.0, 3.0, 0.0], [2.0, -1.0, 2.5], [1.5, 0.0, 0.0]],
        [[0.0, 1.0, 3.0], [0.0, 2.0, 5.0], [1.0, 0.0, 4.0], [0.0, 1.0, 4.0]],
    ],
    variance=[[[1.0, 2.0], [3.0, 6.0]], [[0.0, 0.0], [0.0, 0.5]]],
    total=[[1.0, 2.0, 3.0, 6.0], [4.0, 4.0, 4.0, 4.0]],
    chroma=[-3.5, -6.0],
    line=[-2.5, -7.0],
    place=[0.5, 3.0],
)


def approx(*values: float) -> object:
    return pytest.approx(list(values), rel=1e-6)


class TestByHand:
    def test_relevance_variance(self) -> None:
        assert relevance_variance(BY_HAND).tolist() == approx(3.0, 0.125)  # 12 / 4, 0.5 / 4

    def test_relative_variance(self) -> None:
        wanted = math.log(3.0 / 2.0**2), math.log(0.125 / 4.0**2)
        assert relative_variance(BY_HAND).tolist() == approx(*wanted)

    def test_relative_variance_of_a_negative_explained_logit(self) -> None:
        evidence = make_evidence(
            logits=[[2.0, -4.0]], noisy_logits=[[[0.0, 0.0]]], label=[1], variance=[[[8.0]]]
        )
        assert relative_variance(evidence).tolist() == approx(math.log(8.0 / 16.0))

    def test_relevance_spread(self) -> None:
        # 1 2 3 6: mean 3, deviations -2 -1 0 3, variance 14 / 3.
        spread = relevance_spread(BY_HAND)
        assert spread[0].item() == pytest.approx(math.log(math.sqrt(14 / 3) / 2.0), rel=1e-6)
        assert spread[1].item() == pytest.approx(math.log(1e-30 / 4.0))  # no spread: kept finite

    def test_label_disagreement(self) -> None:
        assert label_disagreement(BY_HAND).tolist() == [0.5, 0.0]  # classes 0 1 2 0, and 2 2 2 2

    def test_label_disagreement_is_with_the_explained_class(self) -> None:
        evidence = make_evidence(
            logits=[[1.0, 0.0]], noisy_logits=[[[1.0, 0.0]] * 3 + [[0.0, 1.0]]], label=[1]
        )
        assert label_disagreement(evidence).tolist() == [0.75]

    def test_max_logit(self) -> None:
        assert max_logit(BY_HAND).tolist() == [2.0, 4.0]

    def test_log_odds_shift(self) -> None:
        # Mean noisy logits 1.75 0.5 0.75: odds against class 0 are -1.25 and -1; clean -3 and -1.5.
        # Second request: mean 0.25 1 4, odds against class 2 are -3.75 and -3; clean -4 and -3.
        assert log_odds_shift(BY_HAND).tolist() == approx(max(-1.25 + 3, -1 + 1.5), 0.25)

    def test_log_odds_shift_may_be_negative(self) -> None:
        # The explained class gains on both others: the class itself, at 0, must not count.
        evidence = make_evidence(
            logits=[[2.0, 1.0, 0.0]], noisy_logits=[[[4.0, 1.0, 0.0], [4.0, 1.0, 0.0]]]
        )
        assert log_odds_shift(evidence).tolist() == [-2.0]

    def test_margin(self) -> None:
        assert margin(BY_HAND).tolist() == [1.5, 3.0]  # 2 - 0.5, 4 - 1

    def test_margin_of_an_explained_class_that_is_not_the_largest_is_negative(self) -> None:
        evidence = make_evidence(logits=[[2.0, -4.0, 1.0]], noisy_logits=[[[0.0] * 3]], label=[1])
        assert margin(evidence).tolist() == [-6.0]

    def test_noise_and_roughness_of_the_pixels_are_those_of_the_evidence(self) -> None:
        assert chroma_noise(BY_HAND).tolist() == [-3.5, -6.0]
        assert line_noise(BY_HAND).tolist() == [-2.5, -7.0]
        assert place_roughness(BY_HAND).tolist() == [0.5, 3.0]

    def test_relevance_roughness_of_a_constant_map_is_none(self) -> None:
        flat = make_evidence(
            logits=[[1.0, 0.0]], noisy_logits=[[[1.0, 0.0]]], mean=[[[2.0] * 5] * 4]
        )
        assert relevance_roughness(flat).item() < math.log(1e-6)  # but for rounding

    def test_relevance_roughness_of_one_bright_pixel(self) -> None:
        # A Gaussian of 1 pixel leaves w0^2 of a single pixel in place, and w_i w_j elsewhere.
        spot = torch.zeros(9, 9)
        spot[4, 4] = -3.0
        evidence = make_evidence(
            logits=[[1.0, 0.0]], noisy_logits=[[[1.0, 0.0]]], mean=[spot.tolist()]
        )
        bell = [math.exp(-(i**2) / 2) for i in range(-3, 4)]
        kernel = [[a * b / sum(bell) ** 2 for b in bell] for a in bell]
        left = sum((float(i == j == 3) - kernel[i][j]) ** 2 for i in range(7) for j in range(7))
        assert relevance_roughness(evidence).tolist() == approx(math.log(math.sqrt(left)))

    def test_relevance_roughness_of_a_speckle_is_above_that_of_a_blob(self) -> None:
        y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
        blob = torch.exp(-((y - 8) ** 2 + (x - 8) ** 2) / 32)
        speckle = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
        evidence = make_evidence(
            logits=[[1.0, 0.0]] * 2,
            noisy_logits=[[[1.0, 0.0]]] * 2,
            mean=[blob.tolist(), speckle.tolist()],
        )
        smooth, rough = relevance_roughness(evidence).tolist()
        assert smooth < math.log(0.2)
        assert rough > math.log(0.8)


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return explain(small_net(), images(6), n=4)


class TestEveryScore:
    @pytest.mark.parametrize("name", SCORES)
    def test_is_one_finite_float64_a_request(self, name: str, evidence: Evidence) -> None:
        values = SCORES[name].function(evidence)
        assert values.shape == (6,)
        assert values.dtype == torch.float64
        assert bool(torch.isfinite(values).all())

    @pytest.mark.parametrize("name", SCORES)
    def test_is_of_its_own_request_alone(self, name: str, evidence: Evidence) -> None:
        rows = torch.tensor([4, 1])
        alone = SCORES[name].function(evidence.select(rows))
        assert torch.equal(alone, SCORES[name].function(evidence)[rows])

    @pytest.mark.parametrize("name", SCORES)
    def test_leaves_the_evidence_alone(self, name: str, evidence: Evidence) -> None:
        def parts() -> list[Tensor]:
            return [t.clone() for t in vars(evidence).values() if isinstance(t, Tensor)]

        before = parts()
        SCORES[name].function(evidence)
        assert all(torch.equal(a, b) for a, b in zip(before, parts(), strict=True))

    @pytest.mark.parametrize("name", SCORES)
    @pytest.mark.parametrize("value", [0.0, -0.0])
    def test_stays_finite_where_nothing_varies(self, name: str, value: float) -> None:
        flat = make_evidence(logits=[[value] * 3], noisy_logits=[[[value] * 3] * 4])
        assert bool(torch.isfinite(SCORES[name].function(flat)).all())

    @pytest.mark.parametrize("name", SCORES)
    def test_half_precision_logits(self, name: str) -> None:
        half = explain(small_net(dtype=torch.bfloat16), images(3), n=4)
        assert half.logits.dtype == torch.bfloat16
        assert SCORES[name].function(half).dtype == torch.float64


@pytest.mark.parametrize("factor", [1e-4, 1e4])
@pytest.mark.parametrize(
    "function", [relative_variance, relevance_spread, label_disagreement, relevance_roughness]
)
def test_scale_of_the_logits_cancels(function: object, factor: float) -> None:
    net = small_net(dtype=torch.float64)
    scaled = small_net(dtype=torch.float64)
    last = scaled[-1]
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.mul_(factor)
    batch = images(4, dtype=torch.float64)
    assert callable(function)
    torch.testing.assert_close(
        function(explain(scaled, batch, n=4)),
        function(explain(net, batch, n=4)),
        rtol=1e-5,
        atol=1e-5,
    )


class TestRegistry:
    def test_holds_the_promised_scores_by_their_names(self) -> None:
        assert list(SCORES) == [
            "relevance_variance",
            "relative_variance",
            "relevance_spread",
            "label_disagreement",
            "max_logit",
            "log_odds_shift",
            "margin",
            "chroma_noise",
            "line_noise",
            "place_roughness",
            "relevance_roughness",
        ]
        assert all(name == score.name == score.function.__name__ for name, score in SCORES.items())

    def test_cannot_be_changed(self) -> None:
        with pytest.raises(TypeError):
            SCORES["mine"] = SCORES["max_logit"]  # type: ignore[index]

    def test_matrix_has_the_named_columns_in_order(self) -> None:
        matrix = score_matrix(BY_HAND, ("max_logit", "label_disagreement", "max_logit"))
        assert matrix.tolist() == [[2.0, 0.5, 2.0], [4.0, 0.0, 4.0]]
        assert matrix.dtype == torch.float64
        assert matrix.device.type == "cpu"

    def test_unknown_name_is_refused_with_the_known_ones(self) -> None:
        with pytest.raises(ConfigurationError, match=r"\['entropy'\].*label_disagreement"):
            score_matrix(BY_HAND, ("max_logit", "entropy"))
