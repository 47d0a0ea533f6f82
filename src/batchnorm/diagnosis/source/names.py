"""What names from outside the linted files stand for: layers, models known to have batch norm or not, wrappers."""

from __future__ import annotations

import ast
import re

TORCH_LAYERS = {f"{lazy}BatchNorm{n}d" for lazy in ("", "Lazy") for n in (1, 2, 3)} | {
    "SyncBatchNorm",
    "_BatchNorm",
    "_NormBase",
}
OTHER_LAYERS = {f"SynchronizedBatchNorm{n}d" for n in (1, 2, 3)} | {
    "InPlaceABN",
    "InPlaceABNSync",
    "InplaceSyncBatchNorm",
    "ABN",
}
GEOMETRIC = re.compile(r"^torch_geometric\.nn\.(?:norm\.)?BatchNorm$")
KERAS = re.compile(r"^(tf|tensorflow|keras|tf_keras)\.(.*\.)?(Sync)?BatchNormalization(V[12])?$")
FLAX = re.compile(r"^(flax\.(linen|nnx|nn)\.(normalization\.|nn\.normalization\.)?BatchNorm)$")
# Which of torchvision's (and timm's and others') architectures have batch norm.
WITH = re.compile(
    r"^(seresnet|se_resnet|se_resnext|resnet|resnext|resnest|wide_resnet|densenet|mobilenet|mobilenetv|inception|"
    r"googlenet|shufflenet|efficientnet|tf_efficientnet|mnasnet|regnet|vgg\d+_bn|deeplabv3|fcn_resnet|lraspp|xception|"
    r"dpn|nasnet|pnasnet|hrnet|res2net|r3d|mc3|r2plus1d|dla|ghostnet|mixnet|fbnet|ecaresnet|skresnet|cspdarknet|darknet)"
)
WITHOUT = re.compile(r"^(vgg\d+$|alexnet|squeezenet|vit|swin|convnext|maxvit|deit|beit|mixer|clip|bert|gpt|t5|roberta)")
FACTORIES = re.compile(
    r"^(torchvision\.models|timm\.models|pretrainedmodels|timm|resnest\.torch|efficientnet_pytorch|"
    r"segmentation_models_pytorch|torch\.hub|geffnet|cnn_finetune|senet)\b"
)
DROPOUT = re.compile(r"^torch\.nn\.(Alpha|Feature)?Dropout[123]?d?$|DropPath$")
WRAPPERS = re.compile(r"(?P<ddp>DDP|(MM)?DistributedDataParallel)|(Balanced|MM)?DataParallel(WithCallback)?")
RECALIBRATES = ("update_bn", "bn_update", "recalibrate", "update_bn_stats")  # functions that measure anew
CHECKPOINT = {"torch.utils.checkpoint.checkpoint", "torch.utils.checkpoint.checkpoint_sequential"}
WITHOUT_GRADIENTS = re.compile(r"torch\.(inference_mode|(autograd\.(grad_mode\.)?)?no_grad)")
# Functions from outside whose call leaves a model's mode as it is.
HARMLESS = re.compile(
    r"^(torch|torchvision|numpy|np|print|len|isinstance|type|id|repr|str|list|tuple|dict|set|zip|enumerate|map|filter|sum|sorted|any|all|"
    r"hasattr|getattr|setattr|super|open|range|iter|next|min|max|abs|round|float|int|bool|vars|callable|issubclass|copy|os|sys|logging|"
    r"logger|wandb|tqdm|json|yaml|pickle|warnings|time|math|random|re|collections|functools|itertools|timm|tensorboardX|thop|ptflops|"
    r"torchinfo|apex|argparse|accelerate|pprint|transformers|torch_ema|ml_collections|jax|flax|optax)(\.|$)"
)


def last(name: str) -> str:
    """The last part of a dotted name."""
    return name.rsplit(".", 1)[-1]


def is_torch_layer(name: str) -> bool:
    """Whether a name is one of torch's batch norm classes, or of the well-known ones with its arguments."""
    return name.startswith(("torch.", "batchnorm.", "apex.")) and last(name) in TORCH_LAYERS


def is_layer(name: str) -> bool:
    """Whether a name is a batch norm class of any framework."""
    return (
        is_torch_layer(name)
        or last(name) in OTHER_LAYERS | (TORCH_LAYERS - {"_NormBase"})
        or bool(KERAS.match(name) or FLAX.match(name) or GEOMETRIC.match(name))
    )


def architecture(name: str) -> bool | None:
    """Whether an architecture of that name has batch norm; None if the name says nothing."""
    low = name.lower().replace("-", "_")
    low = low.rsplit(".", 1)[0] if low.endswith((".a1_in1k", ".in1k")) else low
    if WITHOUT.match(low):
        return False
    return True if WITH.match(low) else None


def made_by(name: str, first: str | None) -> bool | None:
    """Whether what a function from outside returns has batch norm; `first`: its first argument, if a literal string."""
    if is_layer(name):
        return True
    if "_Weights" in name:
        return False
    if name.startswith("segmentation_models_pytorch."):
        return (last(name)[:1].isupper() and last(name) not in ("Segformer", "DPT")) or None
    if FACTORIES.match(name) and not name.endswith("__dict__"):
        by_name = last(name) in ("create_model", "load", "get_model", "from_pretrained", "from_name")
        found = architecture(first if by_name and first else last(name))
        if found is None and "efficientnet_pytorch" in name:
            return True
        return found
    return False if name.startswith("torch.nn.") else None


def loads_weights(call: ast.Call, name: str) -> bool:
    """Whether a constructor is given trained weights."""
    return last(name) == "from_pretrained" or any(
        k.arg in ("pretrained", "weights") and not (isinstance(k.value, ast.Constant) and not k.value.value)
        for k in call.keywords
    )
