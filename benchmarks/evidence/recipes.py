"""What is trained with what: tasks, methods, seeds and budgets, as command lines of launch/train.py.

How the recipes were chosen, before any compressed run was looked at: the batch of a rank is small and the steps are
many for the processor time of one run, about a minute, because at a density of 0.1 % an entry waits for about 1,000
steps; the warm-up is a sixth of the run, as in the first recipe (fashion-resnet8); and the learning rate is the best of
a few with the dense baseline alone, on a seed that no table uses (results/accuracy_tuning.json). One exception: for
speech 0.4 was best there, but at the edge (0.8 falls off) and below 0.1 on seed 0, so 0.2 was taken.

The longer tasks and the local Adam directions were added afterwards, in search of what makes DGC trail.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

__all__ = [
    "BUDGETS",
    "HEADLINES",
    "LENGTHS",
    "METHODS",
    "SMALL_TASKS",
    "TASKS",
    "TUNING",
    "Budget",
    "Method",
    "Run",
    "Task",
    "plan",
]


@dataclass(frozen=True)
class Task:
    """Options of launch/train.py that every method of a task shares, and what the task is for."""

    title: str
    options: tuple[str, ...]
    warmup_epochs: float
    methods: tuple[str, ...]
    ranks: int = 4
    is_perplexity: bool = False
    note: str = ""
    """what a reader of the task's figures should know"""


@dataclass(frozen=True)
class Method:
    """Options of launch/train.py that make a method, and how tables call it."""

    title: str
    options: tuple[str, ...]

    def options_for(self, task: Task) -> tuple[str, ...]:
        """The method's options, with the task's warm-up where it has none of its own."""
        if "dgc" not in self.options or "--warmup-epochs" in self.options:
            return self.options
        return (*self.options, "--warmup-epochs", f"{task.warmup_epochs:g}")


@dataclass(frozen=True)
class Run:
    """One training run of the plan."""

    task: str
    method: str
    seed: int
    extra: tuple[str, ...] = ()
    """options of launch/train.py on top of the recipe's; the later of two equal ones counts"""

    @property
    def name(self) -> str:
        """Key of the run in results/accuracy.json."""
        return "/".join([self.task, self.method, str(self.seed), *([" ".join(self.extra)] if self.extra else [])])

    @property
    def ranks(self) -> int:
        return TASKS[self.task].ranks

    @property
    def options(self) -> tuple[str, ...]:
        """Command line of launch/train.py."""
        task = TASKS[self.task]
        return (*task.options, *METHODS[self.method].options_for(task), "--seed", str(self.seed), *self.extra)

    @property
    def command(self) -> str:
        """What repeats the run."""
        return f"torchrun --nproc-per-node {self.ranks} launch/train.py {' '.join(self.options)}"


@dataclass(frozen=True)
class Budget:
    """Which runs are made, in rounds of a group of runs and a seed, and for how long at most."""

    seconds: float
    rounds: tuple[tuple[str, int], ...]
    is_smoke: bool = False


_DGC = ("--compress", "dgc", "--density", "0.001", "--flush")
_EQUAL_BYTES = ("--compress", "dgc", "--density", "0.003", "--flush", "--codec", "int4", "--leftover-codec", "int4")
"""0.3 % at 4 bits and 10 for the position: the bytes of the paper's 0.1 % at 32 and 16"""
_LOCAL_ADAM = ("--local-adam", "--optimizer", "sgd")
_PAPER = ("--codec", "paper", "--leftover-codec", "fp32")
_INT4 = ("--codec", "int4", "--leftover-codec", "int4")

METHODS = {
    "dense": Method("dense DDP", ("--compress", "none")),
    "dgc": Method("DGC, paper wire", (*_DGC, *_PAPER)),
    "drop": Method(
        "gradient dropping",
        (*_DGC, *_PAPER, "--mode", "error_feedback", "--clipping", "after", "--warmup-epochs", "0"),
    ),
    "dgc-int4": Method("DGC, 4-bit values", (*_DGC, *_INT4)),
    "dgc-no-correction": Method("DGC without momentum correction", (*_DGC, *_PAPER, "--mode", "error_feedback")),
    "dgc-no-clipping": Method("DGC with clipping after the exchange", (*_DGC, *_PAPER, "--clipping", "after")),
    "dgc-no-masking": Method("DGC without momentum masking", (*_DGC, *_PAPER, "--masking", "off")),
    "dgc-no-warmup": Method("DGC without warm-up", (*_DGC, *_PAPER, "--warmup-epochs", "0")),
    "dgc-current-rate": Method("DGC, late updates at the current rate", (*_DGC, *_PAPER, "--late-rate", "current")),
    "dgc-1-percent": Method("DGC at 1 %", ("--compress", "dgc", "--density", "0.01", "--flush", *_PAPER)),
    "dgc-equal-bytes": Method("DGC at 0.3 %, 4-bit values: the paper's bytes", _EQUAL_BYTES),
    "powersgd-1": Method("PowerSGD, rank 1", ("--compress", "powersgd", "--powersgd-rank", "1")),
    "powersgd": Method("PowerSGD, rank 4", ("--compress", "powersgd", "--powersgd-rank", "4")),
    "demo-like": Method("DeMo-like (ours), 0.8 %", ("--compress", "demo-like", "--optimizer", "sgd")),
    "dgc-local-adam": Method("DGC of local Adam directions (ours)", (*_DGC, *_PAPER, *_LOCAL_ADAM)),
    "dgc-local-adam-equal-bytes": Method(
        "DGC of local Adam directions (ours) at 0.3 %, 4-bit values", (*_EQUAL_BYTES, *_LOCAL_ADAM)
    ),
    "dgc-local-adam-1-percent": Method(
        "DGC of local Adam directions (ours) at 1 %, 4-bit values",
        ("--compress", "dgc", "--density", "0.01", "--flush", *_INT4, *_LOCAL_ADAM),
    ),
    "fp16": Method("fp16 hook", ("--compress", "fp16")),
    "octav4": Method("dense DDP, OCTAV 4-bit training", ("--compress", "none", "--quant", "4/4")),
    "dgc-octav4": Method("DGC, 4-bit values, OCTAV 4-bit training", (*_DGC, *_INT4, "--quant", "4/4")),
    # the name that the first results were stored under
    "dgc-paper": Method("DGC, paper wire", (*_DGC, *_PAPER)),
}

_MAIN = ("dense", "dgc", "drop", "dgc-int4")
_MOMENTUM_PARTS = ("dgc-no-correction", "dgc-no-masking", "dgc-no-warmup", "dgc-current-rate")
_PEERS = ("powersgd-1", "powersgd", "fp16")
_PARTS = (*_MOMENTUM_PARTS[:-1], "dgc-no-clipping")
_LONGER = (
    *(*_MAIN, *_PARTS, "dgc-equal-bytes", "dgc-local-adam", "dgc-local-adam-equal-bytes", "dgc-local-adam-1-percent"),
    *("powersgd-1", "powersgd", "demo-like"),
)


def _image_options(epochs: int) -> tuple[str, ...]:
    data = ("--task", "image", "--model", "vgg", "--data", "fashion-mnist", "--size", "16000")
    return (*data, "--epochs", str(epochs), "--batch-size", "32", "--learning-rate", "0.02")


def _word_options(*size: str) -> tuple[str, ...]:
    data = ("--task", "word-lm", "--model", "lstm", "--data", "king-james", *size)
    model = ("--vocabulary", "2000", "--width", "64", "--layers", "1", "--context", "20")
    return (*data, *model, "--epochs", "3", "--batch-size", "16", "--learning-rate", "20")


TASKS = {
    "image": Task(
        "Fashion-MNIST, small VGG, SGD with momentum",
        _image_options(3),
        warmup_epochs=0.5,
        methods=(*_MAIN, *_MOMENTUM_PARTS, "dgc-1-percent", "dgc-equal-bytes", *_PEERS, "octav4", "dgc-octav4"),
    ),
    "speech": Task(
        "Speech Commands, GRU, Nesterov momentum and clipping",
        ("--task", "speech", "--model", "gru", "--epochs", "12", "--batch-size", "32", "--learning-rate", "0.2"),
        warmup_epochs=2,
        methods=(*_MAIN, *_MOMENTUM_PARTS, "dgc-no-clipping", "dgc-1-percent", "dgc-equal-bytes", *_PEERS),
    ),
    "word-lm": Task(
        "King James Bible, word LSTM, SGD with clipping",
        _word_options("--size", "200000"),
        warmup_epochs=0.5,
        methods=(
            *_MAIN,
            "dgc-no-clipping",
            "dgc-no-warmup",
            "dgc-current-rate",
            "dgc-1-percent",
            "dgc-equal-bytes",
            *_PEERS,
        ),
        is_perplexity=True,
    ),
    "word-lm-whole": Task(
        "King James Bible, the whole of it, word LSTM, SGD with clipping",
        _word_options(),
        warmup_epochs=0.5,
        methods=(*_MAIN, "dgc-equal-bytes"),
        is_perplexity=True,
        note="200,000 words are learned by heart in more epochs; this is the longer run with words not seen before.",
    ),
    "char-gpt": Task(
        "King James Bible, character GPT, AdamW",
        (
            *("--task", "char-lm", "--model", "gpt", "--data", "king-james", "--size", "450000"),
            *("--width", "64", "--layers", "2", "--context", "64"),
            *("--epochs", "2", "--batch-size", "8", "--learning-rate", "0.012"),
        ),
        warmup_epochs=0.33,
        methods=(
            *_MAIN,
            "dgc-local-adam",
            "dgc-local-adam-equal-bytes",
            "dgc-local-adam-1-percent",
            "dgc-no-clipping",
            "dgc-no-warmup",
            "dgc-1-percent",
            "dgc-equal-bytes",
            *_PEERS,
            "demo-like",
            "octav4",
            "dgc-octav4",
        ),
        is_perplexity=True,
        note=(
            "With AdamW DGC is error feedback alone. What an entry has gathered arrives as one spike every few hundred "
            "steps, and Adam divides it by a second moment that the same spike has just raised: with betas 0.9 and b "
            "it moves the weight (1 - 0.9) / sqrt(1 - b) / (1 - 0.9 / sqrt(b)) learning rates, 5.8 at b = 0.95, "
            "whatever its size, where dense steps move it up to one learning rate each. At 0.1 % that is a far lower "
            "learning rate, and no fault of the selection."
        ),
    ),
    "image-8-ranks": Task(
        "Fashion-MNIST, small VGG, on 8 ranks",
        _image_options(3),
        warmup_epochs=0.5,
        methods=("dense", "dgc", "drop"),
        ranks=8,
    ),
    "fashion-resnet8": Task(
        "Fashion-MNIST, ResNet-8, SGD with momentum",
        (
            *("--task", "image", "--model", "resnet8", "--data", "fashion-mnist"),
            *("--epochs", "6", "--batch-size", "64", "--learning-rate", "0.1", "--amp", "bf16"),
        ),
        warmup_epochs=1,
        methods=("dense", "dgc-paper", "dgc-int4"),
    ),
    "cifar10-resnet20": Task(
        "CIFAR-10 (JPEG), ResNet-20, SGD with momentum",
        (
            *("--task", "image", "--model", "resnet20", "--data", "cifar10"),
            *("--epochs", "30", "--batch-size", "128", "--learning-rate", "0.1"),  # He et al. 2016, not tuned here
        ),
        warmup_epochs=1,
        methods=("dense", "dgc", "drop", "dgc-int4"),
    ),
}

SMALL_TASKS = ("image", "speech", "word-lm", "char-gpt")


def _longer(task: Task, factor: int) -> Task:
    """The task with more epochs and a warm-up as much longer: what the number of steps does."""
    at = task.options.index("--epochs") + 1
    options = (*task.options[:at], str(factor * int(task.options[at])), *task.options[at + 1 :])
    return replace(
        task,
        title=f"{task.title}, {factor} times the steps",
        options=options,
        warmup_epochs=factor * task.warmup_epochs,
        methods=tuple(method for method in _LONGER if method in task.methods),
    )


_FACTORS = {
    "image": (2, 4),
    "speech": (2, 4),
    "word-lm": (2, 4, 16),
    "word-lm-whole": (4,),
    "char-gpt": (2, 4, 16),
    "image-8-ranks": (4,),
}
LENGTHS = {task: (task, *(f"{task}-{factor}x" for factor in factors)) for task, factors in _FACTORS.items()}
"""names of each task with ever more steps"""
TASKS |= {f"{task}-{factor}x": _longer(TASKS[task], factor) for task, factors in _FACTORS.items() for factor in factors}

_FOUR_TIMES = tuple(f"{task}-4x" for task in (*SMALL_TASKS[:3], "word-lm-whole", "char-gpt"))
_SIXTEEN_TIMES = tuple(name for names in LENGTHS.values() for name in names if name.endswith("-16x"))

GROUPS = {
    "main": (SMALL_TASKS, _MAIN),
    "parts": (SMALL_TASKS, ("dgc-local-adam", *_MOMENTUM_PARTS, "dgc-no-clipping", "dgc-1-percent")),
    "equal bytes": (SMALL_TASKS, ("dgc-equal-bytes", "dgc-local-adam-equal-bytes")),
    "peers": (SMALL_TASKS, (*_PEERS, "demo-like", "dgc-local-adam-1-percent", "octav4", "dgc-octav4")),
    "twice": (("image-2x",), ("dense", "dgc")),
    "four times": (_FOUR_TIMES, ("dense", "dgc")),
    "four times, others": (
        _FOUR_TIMES,
        ("dgc-int4", "drop", "dgc-equal-bytes", "dgc-local-adam", "dgc-local-adam-equal-bytes"),
    ),
    "sixteen times": (_SIXTEEN_TIMES, ("dense", "dgc")),
    "sixteen times, others": (_SIXTEEN_TIMES, ("dgc-local-adam-equal-bytes", "drop", "dgc-local-adam")),
    "four times, peers": (_FOUR_TIMES, ("powersgd-1", "powersgd", "demo-like", "dgc-local-adam-1-percent")),
    "four times, parts": (_FOUR_TIMES[:2], _PARTS),
    "whole text": (("word-lm-whole",), ("dense", "dgc", "dgc-equal-bytes", "drop")),
    "eight ranks": (LENGTHS["image-8-ranks"], ("dense", "dgc", "drop")),
    "large": (("fashion-resnet8", "cifar10-resnet20"), ("dense", "dgc-paper", "dgc", "dgc-int4", "drop")),
    "smoke": (("image", "word-lm"), _MAIN),
}
"""tasks and methods that are run together: the comparison itself, what each part and more steps are worth, the peers"""

BUDGETS = {
    "2m": Budget(120, (("smoke", 0),), is_smoke=True),
    "30m": Budget(1800, (("main", 0),)),
    "3h": Budget(
        10_800,
        (
            *(("main", 0), ("twice", 0), ("four times", 0), ("four times, others", 0), ("four times, peers", 0)),
            *(("parts", 0), ("four times", 1), ("peers", 0), ("four times", 2), ("eight ranks", 0)),
            *(("equal bytes", 0), ("sixteen times", 0), ("whole text", 0), ("main", 1), ("main", 2), ("parts", 1)),
        ),
    ),
    "24h": Budget(86_400, tuple((group, seed) for seed in range(5) for group in GROUPS if group != "smoke")),
}

TUNING_SEED = 9
_RATES = {
    "image": (("0.01", "0.02", "0.05", "0.1"), 3),
    "speech": (("0.05", "0.1", "0.2", "0.4", "0.8"), 8),
    "word-lm": (("5", "10", "20", "40", "80"), 2),
    "char-gpt": (("0.0015", "0.003", "0.006", "0.012", "0.024"), 2),
}
TUNING = tuple(
    Run(task, "dense", TUNING_SEED, ("--learning-rate", rate, "--epochs", str(epochs)))
    for task, (rates, epochs) in _RATES.items()
    for rate in rates
)
"""the choice of each task's learning rate: a third to a half of its epochs, the dense baseline, another seed"""


HEADLINES = (
    ("fashion-resnet8", "dgc-int4", "Fashion-MNIST, ResNet-8, 4-bit values"),
    ("image-4x", "dgc", "Fashion-MNIST, small VGG"),
    ("image-8-ranks-4x", "dgc", "Fashion-MNIST, small VGG"),
    ("speech-4x", "dgc", "Speech Commands, GRU"),
    ("word-lm-whole-4x", "dgc", "King James Bible, LSTM of words"),
    ("word-lm-16x", "dgc", "King James Bible, LSTM, 200,000 words learned by heart"),
    ("char-gpt-16x", "dgc-local-adam", "King James Bible, GPT of characters, AdamW and `dgcomp.LocalAdam`"),
)
"""Each task at its greatest length, the method at 0.1 % and a short name: README and page begin with them."""


def plan(budget: Budget) -> Iterator[Run]:
    """Runs of a budget, round by round and in turn over the tasks: a stop at any time leaves a balanced table."""
    for group, seed in budget.rounds:
        tasks, methods = GROUPS[group]
        for method in methods:
            for task in tasks:
                if method in TASKS[task].methods:
                    yield Run(task, method, seed)
