"""The small networks: what each gives, learns and costs."""

import pytest
import torch
from torch import nn

from known_core.networks import IMAGE_ARCHITECTURES, build_network, build_text_network, classifier

WITHOUT_NORM = ("cnn-plain", "resnet-plain")


def seeded(architecture: str, channels: int = 1, size: int = 28, width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return build_network(architecture, 5, channels, size, width)


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (1, 16), (1, 8)])
@pytest.mark.parametrize("architecture", IMAGE_ARCHITECTURES)
def test_logits_and_a_loss_whose_gradient_reaches_every_parameter(architecture: str, channels: int, size: int) -> None:
    model = seeded(architecture, channels, size)
    labels = torch.tensor([0, 4, 2])
    output = model(torch.randn(3, channels, size, size), labels)
    assert output["logits"].shape == (3, 5)
    assert torch.allclose(output["loss"], nn.functional.cross_entropy(output["logits"], labels))
    output["loss"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    if size == 28:  # smaller images leave batch norm too few values
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("architecture", IMAGE_ARCHITECTURES)
def test_an_image_alone_gives_what_it_gives_in_a_batch(architecture: str) -> None:
    model = seeded(architecture).eval()
    images = torch.randn(3, 1, 28, 28)
    alone = model(images[:1])
    assert "loss" not in alone
    assert torch.allclose(alone["logits"], model(images)["logits"][:1], atol=1e-5)


@pytest.mark.parametrize("architecture", IMAGE_ARCHITECTURES)
def test_the_seed_gives_the_weights(architecture: str) -> None:
    first, second = seeded(architecture).state_dict(), seeded(architecture).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("architecture", IMAGE_ARCHITECTURES)
def test_size_and_classifier(architecture: str) -> None:
    model = build_network(architecture, 7, 3, 32, 16)
    assert sum(p.numel() for p in model.parameters()) < 300_000
    head = classifier(model)
    assert head.out_features == 7
    assert [module for _, module in model.named_modules() if isinstance(module, nn.Linear)][-1] is head
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm)]
    assert bool(norms) == (architecture not in WITHOUT_NORM)


@pytest.mark.parametrize("architecture", IMAGE_ARCHITECTURES)
def test_a_few_images_are_learnt(architecture: str) -> None:
    model = seeded(architecture, size=16).train()
    images, labels = torch.randn(10, 1, 16, 16), torch.arange(10) % 5
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.0)
    losses = []
    for _ in range(40):
        loss = model(images, labels)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_an_architecture_that_is_not_in_the_list() -> None:
    with pytest.raises(ValueError, match="'alexnet'; it must be one of cnn-batch"):
        build_network("alexnet", 2, 1, 28, 8)


def test_a_model_without_a_linear_layer() -> None:
    with pytest.raises(ValueError, match="ReLU has no linear layer"):
        classifier(nn.ReLU())


def test_the_text_network() -> None:
    torch.manual_seed(0)
    model = build_text_network(50, 12, 4, 4)
    tokens = torch.randint(1, 50, (3, 12))
    tokens[:, 8:] = 0
    labels = torch.tensor([0, 3, 1])
    output = model(input_ids=tokens, attention_mask=(tokens > 0).long(), labels=labels)
    assert output["logits"].shape == (3, 4)
    output["loss"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert classifier(model).out_features == 4
    model.eval()
    alone = model(input_ids=tokens[:1, :8], attention_mask=torch.ones(1, 8, dtype=torch.long))["logits"]
    padded = model(input_ids=tokens, attention_mask=(tokens > 0).long())["logits"][:1]
    assert torch.allclose(alone, padded, atol=1e-5)  # padding changes nothing
    torch.manual_seed(0)
    again = build_text_network(50, 12, 4, 4).state_dict()
    torch.manual_seed(0)
    assert all(torch.equal(t, again[name]) for name, t in build_text_network(50, 12, 4, 4).state_dict().items())


def test_resnet18_keeps_the_resolution_of_small_images() -> None:
    model = build_network("resnet18", 5, 1, 32, 16)
    with torch.inference_mode():
        assert model(torch.zeros(2, 1, 32, 32))["logits"].shape == (2, 5)
    assert 11_000_000 < sum(parameter.numel() for parameter in model.parameters()) < 11_300_000
