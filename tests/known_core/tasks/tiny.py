"""Tiny real checkpoints, as each library writes them itself, and tiny real data."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import peft
import timm
import torch
import torchvision
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from known_core.sample_data import ImageArrays

SUBJECTS = ("The old farmer", "My sister", "Our neighbour", "A young doctor", "The tall pilot", "Her teacher")
GLAD = ("loves the warm soup", "praised the lovely garden", "enjoyed a wonderful concert", "likes this nice hotel")
SORRY = (
    "hates the cold rain",
    "blamed the broken engine",
    "suffered a terrible journey",
    "leaves this dirty room",
)
ENDS = ("today.", "every week.", "with all the family.", "in the small town by the sea.")
CLASSES = ("glad", "sorry")
TAGS = ("O", "WHO", "WHAT")
BERT: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
                        "max_position_embeddings": 40}  # fmt: skip
GPT2: dict[str, Any] = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 40}


def sentences() -> list[tuple[str, str]]:
    """192 sentences with their class, in an order that mixes the classes."""
    return [(f"{subject} {deed} {end}", name)
            for subject, end in itertools.product(SUBJECTS, ENDS)
            for deeds in itertools.zip_longest(GLAD, SORRY)
            for deed, name in zip(deeds, CLASSES, strict=True)]  # fmt: skip


def texts_with_label(path: Path, count: int = 120) -> Path:
    texts, labels = zip(*sentences()[:count], strict=True)
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(CLASSES))})
    datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features).to_parquet(path)
    return path


def texts_alone(path: Path) -> Path:
    path.write_text("\n".join(json.dumps({"text": text}) for text, _ in sentences()), encoding="utf-8")
    return path


def words_with_tags(path: Path, count: int = 80) -> Path:
    """json lines; who acts is WHO, the last word but the end is WHAT."""
    with path.open("w", encoding="utf-8") as stream:
        for text, _ in sentences()[:count]:
            words = text.split()
            tags = ["WHO" if index < 2 else "WHAT" if word.endswith(".") else "O" for index, word in enumerate(words)]
            stream.write(json.dumps({"tokens": words, "ner_tags": tags}) + "\n")
    return path


def save_wordpiece(folder: Path) -> Any:
    """A tokenizer as BERT's, trained on the sentences."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=160, special_tokens=special)
    tokenizer.train_from_iterator([text for text, _ in sentences()], trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast: Any = transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=40,
    )  # fmt: skip
    fast.save_pretrained(folder)
    return fast


def save_bpe(folder: Path) -> Any:
    """A tokenizer as GPT-2's: bytes, an end of text, no padding token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<|endoftext|>"])
    tokenizer.train_from_iterator([text for text, _ in sentences()], trainer)
    fast: Any = transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>", model_max_length=40
    )
    fast.save_pretrained(folder)
    return fast


def save_bert(folder: Path, kind: str, **changes: Any) -> Path:
    """A BERT of one layer with the head that ``kind`` names, and its tokenizer."""
    torch.manual_seed(0)
    vocabulary = len(save_wordpiece(folder))
    config = transformers.BertConfig(vocab_size=vocabulary, **{**BERT, **changes})
    model: Any = getattr(transformers, kind)(config)
    model.save_pretrained(folder)
    return folder


def save_gpt2(folder: Path, kind: str = "GPT2LMHeadModel", **changes: Any) -> Path:
    torch.manual_seed(0)
    vocabulary = len(save_bpe(folder))
    config = transformers.GPT2Config(vocab_size=vocabulary, eos_token_id=0, bos_token_id=0, **{**GPT2, **changes})
    model: Any = getattr(transformers, kind)(config)
    model.save_pretrained(folder)
    return folder


def save_vit(folder: Path, kind: str = "ViTForImageClassification", **changes: Any) -> Path:
    """A ViT of one layer on images of 8 x 8 pixels, and its processor."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        **labels(("0", "1", "2", "3", "4")), **changes,
    )  # fmt: skip
    model: Any = getattr(transformers, kind)(config)
    model.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder


def labels(names: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a config that name its labels."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def save_adapter(folder: Path, base: Path, kind: str, task_type: str | None, **options: Any) -> Path:
    """A LoRA adapter on the model in ``base``; its B is not zero, as after training."""
    torch.manual_seed(1)
    model = getattr(transformers, kind).from_pretrained(base)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type=task_type, r=2, lora_alpha=4, **options))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    adapted.save_pretrained(str(folder))
    return folder


def save_timm(folder: Path, architecture: str, classes: int = 5, **arguments: Any) -> Path:
    torch.manual_seed(0)
    size = {"input_size": (3, 32, 32), "crop_pct": 1.0}
    model = timm.create_model(architecture, num_classes=classes, pretrained_cfg_overlay=size, **arguments)
    names = {"label_names": [str(index) for index in range(classes)]}
    timm.models.save_for_hf(
        model, str(folder), model_config=names, model_args=arguments or None, safe_serialization=True
    )
    return folder


def save_torchvision(file: Path, architecture: str, classes: int = 5) -> dict[str, Any]:
    """A bare state dict; returns the config that the request gives."""
    torch.manual_seed(0)
    save_file(torchvision.models.get_model(architecture, num_classes=classes).state_dict(), file)
    names = [str(index) for index in range(classes)]
    return {"library": "torchvision", "architecture": architecture, "num_classes": classes, "img_size": 32,
            "label_names": names}  # fmt: skip


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """The same checkpoint with its tensors changed."""
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def masked_images(digits: ImageArrays, path: Path, *, classes: int = 3, count: int = 40, shift: int = 0) -> Path:
    """Digits of 16 x 16 pixels and how strong the ink is: 0 for paper, 255 along the lower edge."""
    rows = []
    for image in digits.images[:count]:
        large = np.kron(image, np.ones((2, 2), dtype=np.uint8))
        mask = np.minimum(large.astype(int) * classes // 256, classes - 1) + shift
        mask[-1] = 255
        rows.append({"image": Image.fromarray(large).convert("RGB"), "mask": Image.fromarray(mask.astype(np.uint8))})
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    return path


SEGMENTERS: dict[str, tuple[str, Any, str, dict[str, Any]]] = {  # by name: class, config, processor, its fields
    "segformer": (
        "SegformerForSemanticSegmentation",
        lambda: transformers.SegformerConfig(
            num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[4, 8], patch_sizes=[3, 3],
            strides=[2, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=8,
        ),
        "SegformerImageProcessor",
        {},
    ),
    "beit": (
        "BeitForSemanticSegmentation",
        lambda: transformers.BeitConfig(  # type: ignore[call-arg]
            image_size=16, patch_size=4, hidden_size=8, num_hidden_layers=4, num_attention_heads=2,
            intermediate_size=8, out_indices=[1, 2, 3, 4], use_relative_position_bias=True, pool_scales=[1, 2],
        ),
        "BeitImageProcessor",
        {"do_center_crop": False},
    ),
    "mobilenet_v2": (
        "MobileNetV2ForSemanticSegmentation",
        lambda: transformers.MobileNetV2Config(depth_multiplier=0.25, min_depth=4, depth_divisible_by=4),
        "MobileNetV2ImageProcessor",
        {"do_center_crop": False},
    ),
}  # fmt: skip


def save_segmenter(folder: Path, name: str, classes: int = 3, **fields: Any) -> Path:
    torch.manual_seed(0)
    kind, config, processor, own = SEGMENTERS[name]
    settings = config()
    settings.num_labels = classes
    getattr(transformers, kind)(settings).save_pretrained(folder)
    getattr(transformers, processor)(size={"height": 16, "width": 16}, **own, **fields).save_pretrained(folder)
    return folder


def set_config(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def save_legacy_bert(folder: Path) -> Path:
    """As bert-base-uncased is stored: old names of norms, position ids, and heads that a masked model does not use."""
    save_bert(folder, "BertForPreTraining")
    set_config(folder, architectures=["BertForMaskedLM"])

    def old(name: str) -> str:
        return name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta")

    def legacy(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        renamed = {old(name): tensor for name, tensor in tensors.items()}
        return {**renamed, "bert.embeddings.position_ids": torch.arange(40)[None]}

    return rewrite(folder, legacy)
