"""Train a classifier of sequences in the Trainer of Hugging Face."""

import tempfile

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments

import hankelred_torch as ht
from hankelred_torch.integrations.transformers import CompressionCallback  # new


class Waves(Dataset):
    """Noisy waves and whether each is a fast one."""

    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        self.fast = torch.randint(2, (count,), generator=generator)
        phase = 6.28 * torch.rand(count, 1, generator=generator)
        waves = torch.sin((0.2 + 0.3 * self.fast[:, None]) * torch.arange(48) + phase)
        self.waves = (waves + 0.5 * torch.randn(waves.shape, generator=generator))[..., None]

    def __len__(self):
        return len(self.fast)

    def __getitem__(self, index):
        return {"u": self.waves[index], "labels": self.fast[index]}


class WavesConfig(PreTrainedConfig):
    model_type = "waves"

    def __init__(self, channels=8, states=32, **options):
        self.channels, self.states = channels, states
        super().__init__(**options)


class Classifier(PreTrainedModel):
    config_class = WavesConfig

    def __init__(self, config):
        super().__init__(config)
        self.into = nn.Linear(1, config.channels)
        self.layer = ht.layers.LRU(config.channels, config.states, r_max=0.98)
        self.out = nn.Linear(config.channels, 2)
        self.post_init()

    def forward(self, u, labels=None):
        x = self.into(u)
        logits = self.out(torch.relu(self.layer(x)).mean(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def accuracy(prediction):
    return {"accuracy": (prediction.predictions.argmax(-1) == prediction.label_ids).mean()}


def main():
    settings = {"learning_rate": 1e-2, "num_train_epochs": 25, "per_device_train_batch_size": 32, "seed": 0}
    settings |= {"save_strategy": "no", "report_to": [], "disable_tqdm": True}
    torch.manual_seed(0)
    trainer = Trainer(
        Classifier(WavesConfig()),
        TrainingArguments(output_dir=tempfile.mkdtemp(), **settings),
        train_dataset=Waves(256, seed=1),
        eval_dataset=Waves(128, seed=2),
        compute_metrics=accuracy,
        callbacks=[CompressionCallback(ht.CompressionConfig(tau=0.1))],  # new
    )
    trainer.train()
    return trainer.model, trainer.evaluate()["eval_accuracy"]


if __name__ == "__main__":
    main()
