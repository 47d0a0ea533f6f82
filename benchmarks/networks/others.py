"""Networks of libraries that the package's tests do not use, chosen before its code was read, with random weights.

Each library is imported where its network is made; none is a dependency of this project:
effdet 0.4.1, python-doctr 1.1.0, pytorchcv 0.0.74, speechbrain 1.1.2, asteroid 0.7.0, chemprop 2.1.0, pykeen 1.11.1,
torchgan 0.1.0, pythae 0.1.2, pytorch-tabnet 4.1.0, rtdl-revisiting-models 0.0.2, deepctr-torch 0.3.0,
braindecode 1.8.1, spikingjelly 2.0.0, facenet-pytorch 2.6.0.
"""

from __future__ import annotations

import importlib
import random
from typing import Any

import torch
from torch import Tensor, nn

Network = tuple[nn.Module, list[Any]]


def library(name: str) -> Any:
    """Not with an import statement: no checker needs to find it."""
    return importlib.import_module(name)


def normal(*shape: int, count: int = 4) -> list[Any]:
    """Batches of noise that differ in scale and offset."""
    return [(torch.randn(shape) * (1 + 0.1 * number) + 0.1 * number,) for number in range(count)]


def efficientdet() -> Network:
    """Detection."""
    effdet = library("effdet")
    config = effdet.get_efficientdet_config("tf_efficientdet_d0")
    config.image_size, config.num_classes = (128, 128), 10
    return effdet.EfficientDet(config, pretrained_backbone=False), normal(2, 3, 128, 128, count=3)


def dbnet() -> Network:
    """Detection of text."""
    model = library("doctr.models.detection").db_resnet50(pretrained=False, pretrained_backbone=False)
    return model, [{"x": batch[0], "return_model_output": True} for batch in normal(2, 3, 64, 64)]


def bisenet() -> Network:
    """Segmentation."""
    get = library("pytorchcv.model_provider").get_model
    model = get("bisenet_resnet18_celebamaskhq", pretrained=False, in_size=(128, 128))
    return model, normal(2, 3, 128, 128, count=3)


def icnet() -> Network:
    """Segmentation."""
    get = library("pytorchcv.model_provider").get_model
    model = get("icnet_resnetd50b_cityscapes", pretrained=False, in_size=(128, 128))
    return model, normal(2, 3, 128, 128, count=3)


def ecapa() -> Network:
    """Speakers from speech, with lengths."""
    kind = library("speechbrain.lobes.models.ECAPA_TDNN").ECAPA_TDNN
    lengths = torch.tensor([1.0, 0.8, 0.6, 0.9])
    return kind(40, channels=[64, 64, 64, 64, 192], lin_neurons=32), [(b[0], lengths) for b in normal(4, 80, 40)]


def dcunet() -> Network:
    """Speech enhancement on complex spectra."""
    return library("asteroid.models").DCUNet("DCUNet-10", fix_length_mode="pad"), normal(2, 6000, count=3)


def mpnn() -> Network:
    """Molecules as graphs."""
    data, layers = library("chemprop.data"), library("chemprop.nn")
    readout = layers.RegressionFFN(input_dim=32)
    passing = layers.BondMessagePassing(d_h=32)
    model = library("chemprop.models").MPNN(passing, layers.MeanAggregation(), readout, batch_norm=True)
    names = "CCO c1ccccc1 CC(=O)O CCN(CC)CC C1CCCCC1O O=C(C)Oc1ccccc1C(=O)O CC(C)CC CCCl CCBr c1ccncc1 CCOCC CC#N"
    molecules = data.MoleculeDataset([data.MoleculeDatapoint.from_smi(name, [0.0]) for name in names.split()])
    draw = random.Random(0)
    return model, [(data.collate_batch([molecules[i] for i in draw.sample(range(12), 8)]).bmg,) for _ in range(6)]


def conve() -> Network:
    """Links of a knowledge graph."""
    triples = library("pykeen.datasets").Nations().training
    model = library("pykeen.models").ConvE(triples_factory=triples, embedding_dim=32, output_channels=8, random_seed=0)
    names = ("h_indices", "r_indices", "t_indices")
    parts = triples.mapped_triples[:384].split(64)
    return model, [{**{n: part[:, k] for k, n in enumerate(names)}, "mode": None} for part in parts]


def dcgan() -> Network:
    """A generator."""
    return library("torchgan.models").DCGANGenerator(encoding_dims=32, out_size=32, step_channels=8), normal(16, 32)


def vae() -> Network:
    """An autoencoder that draws random numbers in eval mode too."""
    parts, models = library("pythae.models.nn.benchmarks.mnist"), library("pythae.models")
    config = models.VAEConfig(input_dim=(1, 28, 28), latent_dim=16)
    encoder, decoder = parts.Encoder_Conv_VAE_MNIST(config), parts.Decoder_Conv_AE_MNIST(config)
    pictures = library("pythae.data.datasets").DatasetOutput
    return models.VAE(config, encoder, decoder), [(pictures(data=torch.rand(4, 1, 28, 28)),) for _ in range(3)]


def tabnet() -> Network:
    """Tables, with ghost batch norm."""
    kind = library("pytorch_tabnet.tab_network").TabNet
    sizes = {"n_d": 8, "n_a": 8, "n_steps": 3, "virtual_batch_size": 32}
    return kind(16, 3, group_attention_matrix=torch.eye(16), **sizes), normal(128, 16, count=8)


def tabular_resnet() -> Network:
    """Tables."""
    sizes = {"n_blocks": 3, "d_block": 32, "d_hidden": None, "d_hidden_multiplier": 2.0}
    model = library("rtdl_revisiting_models").ResNet(d_in=16, d_out=3, dropout1=0.2, dropout2=0.1, **sizes)
    return model, normal(128, 16, count=8)


def xdeepfm() -> Network:
    """Clicks, from classes and numbers."""
    inputs = library("deepctr_torch.inputs")
    features = [inputs.SparseFeat(f"class{i}", 10, embedding_dim=8) for i in range(3)]
    features += [inputs.DenseFeat(f"number{i}", 1) for i in range(3)]
    model = library("deepctr_torch.models").xDeepFM(features, features, dnn_use_bn=True, device="cpu")
    return model, [(torch.cat([torch.randint(10, (64, 3)).float(), torch.randn(64, 3)], 1),) for _ in range(6)]


def eegnet() -> Network:
    """Electroencephalograms; its weights have a bound on their norm."""
    return library("braindecode.models").EEGNet(n_chans=8, n_outputs=4, n_times=256), normal(16, 8, 256)


class Reset(nn.Module):
    """A spiking network, its neurons at rest before each forward, shown the same picture in four steps."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        library("spikingjelly.activation_based.functional").reset_net(self.network)
        return self.network(x.expand(4, *x.shape)).mean(0)


def sew_resnet() -> Network:
    """A spiking network."""
    spiking = library("spikingjelly.activation_based")
    neuron, surrogate = library(f"{spiking.__name__}.neuron"), library(f"{spiking.__name__}.surrogate")
    make = library(f"{spiking.__name__}.model.sew_resnet").sew_resnet18
    network = make(cnf="ADD", spiking_neuron=neuron.IFNode, surrogate_function=surrogate.ATan(), detach_reset=True)
    library(f"{spiking.__name__}.functional").set_step_mode(network, "m")
    return Reset(network), normal(2, 3, 64, 64, count=3)


def facenet() -> Network:
    """Faces."""
    return library("facenet_pytorch").InceptionResnetV1(pretrained=None), normal(2, 3, 80, 80, count=3)


NETWORKS = {
    "EfficientDet-D0 (effdet)": efficientdet, "DBNet (doctr)": dbnet, "BiSeNet (pytorchcv)": bisenet,
    "ICNet (pytorchcv)": icnet, "ECAPA-TDNN (speechbrain)": ecapa, "DCUNet (asteroid)": dcunet, "MPNN (chemprop)": mpnn,
    "ConvE (pykeen)": conve, "DCGAN (torchgan)": dcgan, "VAE (pythae)": vae, "TabNet (pytorch-tabnet)": tabnet,
    "ResNet (rtdl)": tabular_resnet, "xDeepFM (deepctr)": xdeepfm, "EEGNet (braindecode)": eegnet,
    "SEW-ResNet (spikingjelly)": sew_resnet, "InceptionResnet (facenet)": facenet,
}  # fmt: skip
