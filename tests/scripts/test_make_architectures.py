"""The page of architectures: rows of its table, and the page around them."""

from __future__ import annotations

import pytest

made = pytest.importorskip("scripts.make_architectures", reason="needs lrpguard[dev,timm]")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    made.main(["--only", "squeezenet1_1"])
    name, size, *residuals, gradient, zennit = cells(capsys.readouterr().out.strip())
    assert (name, size) == ("squeezenet1_1", "64")
    assert len(residuals) == len(made.SHOWN)
    assert all(float(cell) <= 1e-12 for cell in (*residuals, gradient, *zennit.split("/")))


def test_the_page_around_rows() -> None:
    reason = "torch.cosh in module 'a': no rule."
    good = made.Row("good", 64, ("1e-16",) * len(made.SHOWN), ("",) * len(made.SHOWN), "2e-16", "-")
    partly = made.Row("partly", 32, ("1e-16", *("",) * 6), ("", *(reason,) * 6), "-", "-")
    text = made.page([good], [partly])
    lines = text.splitlines()
    headers = [line for line in lines if line.startswith("| Network")]
    assert len(headers) == 2
    assert f"1. {reason}" in lines
    assert "2. " not in text
    assert "Of 2 networks pass: `epsilon` 2, `epsilon-plus` 1" in text
    for line in lines:
        assert not line.startswith("|") or line.count("|") == headers[0].count("|")
    assert lines.count(partly.line([reason])) == 1


def test_an_operator_without_a_rule_gives_its_reason() -> None:
    gated = next(member for member in made.TIMM if member.name == "gmixer_12_224")
    found = made.row(gated)
    assert not any(found.cells)
    assert "torch.Tensor.mul" in found.refusals[0]
    assert "\n" not in found.refusals[0]


def test_the_table_holds_every_family_of_torchvision() -> None:
    families = (
        "alexnet convnext densenet efficientnet efficientnet_v2 googlenet inception maxvit mnasnet "
        "mobilenet_v2 mobilenet_v3 regnet_x regnet_y resnet resnext shufflenet squeezenet swin_t "
        "swin_v2 vgg vit wide_resnet"
    ).split()
    names = [member.name for member in made.TORCHVISION]
    assert not [f for f in families if not any(name.startswith(f) for name in names)]
    assert len(made.TIMM) >= 10
