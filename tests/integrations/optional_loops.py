"""The jobs of the conformance suite on trainers that are packages of their own; imported where one is tested."""

import os
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tests.integrations.jobs import Job, Outcome, batches, make_model, make_sgd, outcome


def train_accelerate(job: Job) -> Outcome:
    """Accelerate on several CPU processes."""
    from accelerate import Accelerator

    from dgcomp.integrations.accelerate import attach

    accelerator = Accelerator(cpu=True)
    module = make_model(job)
    model, optimizer = accelerator.prepare(module, make_sgd(job, module.parameters()))
    state = None if job.config is None else attach(accelerator, model, optimizer, job.config)
    if job.load:
        accelerator.load_state(str(job.load))
    for x, y in batches(job):
        optimizer.zero_grad()
        accelerator.backward(model(x, y))
        optimizer.step()
    if job.flush:
        state.flush()
    if job.save:
        accelerator.save_state(str(job.save))
    return outcome(model, state)


class _Listed(Dataset):
    """Batches as they are."""

    def __init__(self, made: list[Any]):
        self.made = made

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, index: int) -> Any:
        return self.made[index]


def _first(items: list[Any]) -> Any:
    return items[0]


def train_transformers(job: Job) -> Outcome:
    """The Hugging Face Trainer; a resumed run skips the batches that it has seen."""
    from transformers import Trainer, TrainingArguments

    from dgcomp.integrations import transformers

    model, done = _Dictionary(make_model(job)), job.steps[0] if job.load else 0
    folder = job.load or job.save or Path(os.environ["DGCOMP_SCRATCH"])
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=done + len(job.steps),
        per_device_train_batch_size=1,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        save_strategy="steps" if job.save else "no",
        save_steps=len(job.steps),
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    made = [{"x": x, "y": y} for x, y in batches(job)]
    rows = [row for row in [*[made[0]] * done, *made] for _ in range(dist.get_world_size())]
    trainer = _make_trainer(Trainer, model, arguments, rows, make_sgd(job, model.parameters()))
    callback = None if job.config is None else transformers.attach(trainer, job.config)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{done}") if job.load else None)
    if job.flush:
        callback.state.flush()
    return outcome(model, callback and callback.state)


def _make_trainer(kind: Any, model: nn.Module, arguments: Any, rows: list[Any], optimizer: Any) -> Any:
    class InOrder(kind):
        """Rows are each rank's own already, and come as they are."""

        def get_train_dataloader(self) -> DataLoader:
            return DataLoader(_Listed(rows[:: dist.get_world_size()]), batch_size=1, collate_fn=_first)

    return InOrder(model=model, args=arguments, train_dataset=_Listed(rows), optimizers=(optimizer, None))


class _Dictionary(nn.Module):
    """A model that answers as Hugging Face's do."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.inner(x, y)}


def train_lightning(job: Job) -> Outcome:
    """Lightning's Trainer in processes that are there already."""
    import lightning.pytorch as pl
    from lightning.pytorch.plugins.environments import LightningEnvironment
    from lightning.pytorch.strategies import DDPStrategy

    from dgcomp.integrations.lightning import DGCStrategy

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make_model(job)

        def training_step(self, pair: Any, _index: int) -> torch.Tensor:
            return self.inner(*pair)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return make_sgd(job, self.parameters())

    environment = LightningEnvironment()
    environment.set_global_rank(dist.get_rank())
    options = {"process_group_backend": "gloo", "cluster_environment": environment}
    strategy = DDPStrategy(**options) if job.config is None else DGCStrategy(job.config, **options)
    done = job.steps[0] if job.load else 0
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=dist.get_world_size(),
        strategy=strategy,
        max_steps=done + len(job.steps),
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    module = Module()
    made = batches(job)
    # Lightning counts the batches of a resumed epoch from where it stopped, and reads them from the start.
    loader = DataLoader(_Listed([*made, *[made[0]] * done]), batch_size=1, collate_fn=_first)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few workers, no sampler state and the like
        trainer.fit(module, loader, ckpt_path=str(job.load / "last.ckpt") if job.load else None)
        if job.save:
            trainer.save_checkpoint(job.save / "last.ckpt")
    state = getattr(strategy, "state", None)
    if job.flush:
        state.flush()
    return outcome(module, state)


def train_deepspeed(job: Job) -> Outcome:
    """DeepSpeed at the ZeRO stage of `job.options`, on the CPU."""
    import deepspeed

    from dgcomp.integrations.deepspeed import attach

    # An optional kernel that DeepSpeed would compile for a minute, and that the engine's all-reduce alone would use.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

    module = make_model(job)
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 0, "overlap_comm": False, "reduce_bucket_size": 4096},
        "gradient_clipping": 0.0,
        "steps_per_print": 10**9,
    }
    for key, value in job.options.items():
        settings[key] = {**settings.get(key, {}), **value} if isinstance(value, dict) else value
    optimizer = make_sgd(job, module.parameters())
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
    state = None if job.config is None else attach(engine, job.config)
    if job.load:
        engine.load_checkpoint(str(job.load))
    dtype = next(module.parameters()).dtype
    parts = engine.gradient_accumulation_steps()
    for x, y in batches(job):
        for part in range(parts):
            own = (x[part::parts], y[part::parts]) if parts > 1 else (x, y)
            engine.backward(engine(own[0].to(dtype), own[1]))
            engine.step()
    if job.flush:
        state.flush()
    if job.save:
        engine.save_checkpoint(str(job.save))
    return outcome(module, state)
