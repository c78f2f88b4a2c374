"""
A language model in the Trainer of Hugging Face
===============================================

One callback, and a model of transformers shrinks while its Trainer trains it. :doc:`/guides/integrations` has the
same for models of your own, resuming and distributed runs.
"""

import tempfile

import matplotlib.pyplot as plt
import torch
from transformers import MambaConfig, MambaForCausalLM, PrinterCallback, Trainer, TrainingArguments
from transformers.utils.logging import disable_progress_bar

import hankelred_torch as ht
from hankelred_torch.integrations.transformers import CompressionCallback

disable_progress_bar()
torch.manual_seed(0)
torch.set_num_threads(1)

# %%
# A language in which each token has three that may follow it, and a small Mamba with more states than it needs.

successors = torch.randint(32, (32, 3))
text = torch.zeros(512, 24, dtype=torch.long)
text[:, 0] = torch.randint(32, (512,))
for k in range(1, 24):
    text[:, k] = successors[text[:, k - 1], torch.randint(3, (512,))]
data = [{"input_ids": tokens, "labels": tokens} for tokens in text]

model = MambaForCausalLM(MambaConfig(vocab_size=32, hidden_size=32, state_size=32, num_hidden_layers=1))
settings = {"learning_rate": 1e-2, "num_train_epochs": 4, "per_device_train_batch_size": 32, "seed": 0}
settings |= {"save_strategy": "no", "report_to": [], "disable_tqdm": True, "logging_steps": 2, "use_cpu": True}
schedule = ht.Schedule(start_step=10, end_step=40, attempts=3)
callback = CompressionCallback(ht.CompressionConfig(tau=0.1), schedule)
folder = tempfile.mkdtemp()
trainer = Trainer(model, TrainingArguments(output_dir=folder, **settings), train_dataset=data, callbacks=[callback])
trainer.remove_callback(PrinterCallback)
_ = trainer.train()

# %%
# The history says what was cut and how much the output of the layer changed. The folder that is saved loads with
# the sizes it has, and generates.

print(callback.history.table())
ht.save_pretrained(model, folder)
loaded = ht.from_pretrained(folder)
print(ht.state_sizes(loaded))
prompt = text[:1, :4]
print(loaded.generate(prompt, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)[0].tolist())

losses = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
assert ht.state_sizes(loaded) == ht.state_sizes(model)
assert next(iter(ht.state_sizes(loaded).values())) < 32
assert losses[-1][1] < 0.6 * losses[0][1]

# %%

figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
axes[0].plot(*zip(*losses, strict=True), color="0.3")
axes[0].set(xlabel="optimizer step", ylabel="loss (nats a token)")
_ = callback.history.plot(ax=axes[1])
