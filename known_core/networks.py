"""The small networks that meta-training and the benchmark train, with random weights from torch's global generator.

At width 16 each has under 300,000 parameters and takes about a millisecond of one core for an image of 28 x 28 pixels
(forward, backward and AdamW's step). Their classifier is their last ``nn.Linear``: see :func:`classifier`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.models import DenseNet, ShuffleNetV2, resnet18
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.ops import Conv2dNormActivation

from known_core.models.registered import SmallCNN

IMAGE_ARCHITECTURES = (
    "cnn-batch", "cnn-plain", "resnet", "resnet-plain", "densenet", "mobilenetv2", "shufflenetv2", "vit", "mixer",
)  # fmt: skip


def build_network(architecture: str, classes: int, channels: int, size: int, width: int) -> nn.Module:
    """A small image classifier.

    Args:
        architecture: one of :data:`IMAGE_ARCHITECTURES`, or "resnet18" at full size (11 million parameters whatever the
            width), for a GPU.
        classes: outputs.
        channels: 1 (grey) or 3 (RGB).
        size: side of the square input, pixels; at least 8. A patch of "vit" and "mixer" is a seventh of it, rounded
            down.
        width: channels of the first layer; those of the later ones are multiples of it.

    Returns:
        A module whose forward takes pixel_values, (N, channels, size, size) float32, and optionally labels, (N,) int64,
        and returns a mapping with ``logits``, (N, classes) float32, and with labels their mean ``loss``.

    Raises:
        ValueError: an architecture that is not in the list.
    """
    match architecture:
        case "cnn-batch" | "cnn-plain":
            return SmallCNN(classes, channels, size, width, "batch" if architecture == "cnn-batch" else "none")
        case "resnet" | "resnet-plain":
            return _Classifier(_resnet(classes, channels, width, architecture == "resnet"))
        case "densenet":
            return _Classifier(_densenet(classes, channels, width))
        case "mobilenetv2":
            return _Classifier(_mobilenet(classes, channels, width))
        case "shufflenetv2":
            return _Classifier(_shufflenet(classes, channels, width))
        case "resnet18":
            return _Classifier(_resnet18(classes, channels))
        case "vit":
            return _vit(classes, channels, size, width)
        case "mixer":
            return _Classifier(_mixer(classes, channels, size, width))
    raise ValueError(f"architecture is {architecture!r}; it must be one of {', '.join(IMAGE_ARCHITECTURES)}")


def build_text_network(vocabulary: int, length: int, classes: int, width: int) -> nn.Module:
    """A small BERT (Devlin et al. 2019) that classifies: two layers of four heads, 4 * width wide, dropout 0.1.

    Args:
        vocabulary: token ids; 0 is padding.
        length: the longest text, tokens.
        classes: outputs.
        width: a quarter of the hidden size.

    Returns:
        A module whose forward takes input_ids and attention_mask, (N, length) int64, and optionally labels, (N,) int64,
        and returns a mapping with ``logits``, (N, classes) float32, and with labels their mean ``loss``.
    """
    import transformers

    config: Any = transformers.AutoConfig.for_model(
        "bert",
        vocab_size=vocabulary, max_position_embeddings=length, hidden_size=4 * width, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=8 * width, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
        type_vocab_size=1, pad_token_id=0, num_labels=classes,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def classifier(model: nn.Module) -> nn.Linear:
    """The last ``nn.Linear`` in the order of ``named_modules``: the classifier of every network built here.

    Raises:
        ValueError: the model has no linear layer.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"{type(model).__name__} has no linear layer")
    return linear[-1]


class _Classifier(nn.Module):
    """Gives a module from images to logits the forward of :func:`build_network`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits: Tensor = self.network(pixel_values)
        return {"logits": logits} if labels is None else {"loss": cross_entropy(logits, labels), "logits": logits}


def _resnet(classes: int, channels: int, width: int, norm: bool) -> nn.Module:
    """The ResNet for CIFAR of He et al. 2016, section 4.2, at its shallowest: one basic block a stage."""
    return nn.Sequential(
        *_convolution(channels, width, 3, 1, norm), nn.ReLU(),
        _Block(width, width, 1, norm), _Block(width, 2 * width, 2, norm), _Block(2 * width, 4 * width, 2, norm),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes),
    )  # fmt: skip


def _resnet18(classes: int, channels: int) -> nn.Module:
    """ResNet-18 with the stem that small images ask for: 3 x 3, no pooling."""
    network: nn.Module = resnet18(num_classes=classes)
    network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


class _Block(nn.Module):
    """A basic block: two 3x3 convolutions and a shortcut, projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: bool) -> None:
        super().__init__()
        gain = 1.0 if norm else 0.1  # nearly the shortcut alone at first, for want of a norm (as Fixup and SkipInit)
        self.residual = nn.Sequential(
            *_convolution(inputs, outputs, 3, stride, norm), nn.ReLU(),
            *_convolution(outputs, outputs, 3, 1, norm, gain),
        )  # fmt: skip
        self.shortcut = nn.Sequential(*(_convolution(inputs, outputs, 1, stride, norm) if stride > 1 else ()))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(self.shortcut(inputs) + self.residual(inputs))


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int, norm: bool, gain: float = 1.0
) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    convolution.weight.data.mul_(gain)
    return (convolution, nn.BatchNorm2d(outputs)) if norm else (convolution,)


def _densenet(classes: int, channels: int, width: int) -> nn.Module:
    """torchvision's DenseNet-BC (Huang et al. 2017) with the stem that paper has for CIFAR: 3x3, no pooling."""
    network: nn.Module = DenseNet(
        growth_rate=width // 2, block_config=(1, 3, 4), num_init_features=width, bn_size=2, num_classes=classes
    )
    network.set_submodule("features.conv0", nn.Conv2d(channels, width, 3, padding=1, bias=False))
    network.set_submodule("features.pool0", nn.Identity())
    return network


def _mobilenet(classes: int, channels: int, width: int) -> nn.Module:
    """torchvision's blocks of MobileNetV2 (Sandler et al. 2018), fewer, with a stem that keeps the resolution."""
    return nn.Sequential(
        Conv2dNormActivation(channels, width, activation_layer=nn.ReLU6),
        InvertedResidual(width, 2 * width, 2, 1),
        InvertedResidual(2 * width, 2 * width, 1, 3),
        InvertedResidual(2 * width, 4 * width, 2, 3),
        InvertedResidual(4 * width, 4 * width, 1, 3),
        Conv2dNormActivation(4 * width, 8 * width, 1, activation_layer=nn.ReLU6),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, classes),
    )  # fmt: skip


def _shufflenet(classes: int, channels: int, width: int) -> nn.Module:
    """torchvision's ShuffleNetV2 (Ma et al. 2018) with a stem that keeps the resolution."""
    network: nn.Module = ShuffleNetV2([2, 2, 2], [width, 2 * width, 4 * width, 8 * width, 8 * width], classes)
    network.set_submodule("conv1.0", nn.Conv2d(channels, width, 3, padding=1, bias=False))
    network.set_submodule("maxpool", nn.Identity())
    return network


def _vit(classes: int, channels: int, size: int, width: int) -> nn.Module:
    import transformers

    config: Any = transformers.AutoConfig.for_model(
        "vit",
        num_channels=channels, image_size=size, patch_size=size // 7, hidden_size=4 * width, num_hidden_layers=3,
        num_attention_heads=4, intermediate_size=8 * width, num_labels=classes,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def _mixer(classes: int, channels: int, size: int, width: int) -> nn.Module:
    """MLP-Mixer (Tolstikhin et al. 2021): three blocks on the patches of an image."""
    patch, hidden = size // 7, 4 * width
    return nn.Sequential(
        nn.Conv2d(channels, hidden, patch, patch), nn.Flatten(2),
        *(_MixerBlock((size // patch) ** 2, hidden) for _ in range(3)),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.LayerNorm(hidden), nn.Linear(hidden, classes),
    )  # fmt: skip


class _MixerBlock(nn.Module):
    """Mixes the patches, then the channels, of (N, hidden, patches)."""

    def __init__(self, patches: int, hidden: int) -> None:
        super().__init__()
        self.patch_norm, self.channel_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.patch_mlp = nn.Sequential(nn.Linear(patches, hidden // 2), nn.GELU(), nn.Linear(hidden // 2, patches))
        self.channel_mlp = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.GELU(), nn.Linear(2 * hidden, hidden))

    def forward(self, inputs: Tensor) -> Tensor:
        mixed: Tensor = inputs + self.patch_mlp(self.patch_norm(inputs.mT).mT)
        channels: Tensor = self.channel_mlp(self.channel_norm(mixed.mT)).mT
        return mixed + channels
