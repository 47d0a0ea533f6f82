"""What the libraries need before they are imported, here and in the processes that tests start."""

import importlib.util
import os
import tempfile

import torch

if importlib.util.find_spec("torchvision"):
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        # PyPI's is built for CUDA; beside a CPU torch its compiled part does not load, and the import
        # stops at operators that it declares. Declared here, everything of it that is Python works.
        torchvision_operators = torch.library.Library("torchvision", "DEF")
        for _name in ("nms", "qnms"):
            torchvision_operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

if importlib.util.find_spec("ultralytics"):
    # Its settings file, and no questions to the network.
    os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp())
    os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
