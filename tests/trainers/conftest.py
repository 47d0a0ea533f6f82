"""What the libraries need before they are imported here."""

import importlib.util
import os
import tempfile

import torch

# PyPI's torchvision is built for CUDA; beside a CPU torch its compiled part does not load, and the
# import stops at operators it declares there. Declared here, everything of it that is Python works.
try:
    torchvision_operators = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        torchvision_operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
except RuntimeError:
    pass  # a torchvision that works has declared them

if importlib.util.find_spec("ultralytics"):
    # Its settings file, and no questions to the network.
    os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp())
    os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
