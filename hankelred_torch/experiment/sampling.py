"""What a language model writes, so that one can read what a cut did to it."""

from __future__ import annotations

import torch
from torch import nn

from .tasks import Task

PROMPT = "def "
LENGTH = 120  # characters to write; with the prompt no more than a sequence of training has
TEMPERATURE = 1.0  # the chances as the model has them: colder, it writes little but indentation
SEED = 0  # the same chances for every model


@torch.no_grad()
def write(model: nn.Module, task: Task) -> str:
    """Return a prompt and what the model writes after it, one character drawn at a time.

    Parameters
    ----------
    model : nn.Module
        From tokens (1, length) to scores (1, length, classes); in the same mode afterwards.
    task : Task
        With a vocabulary.
    """
    generator = torch.Generator().manual_seed(SEED)
    tokens = [task.vocabulary.index(character) for character in PROMPT]
    training = model.training
    model.eval()
    for _ in range(LENGTH):
        scores = model(torch.tensor([tokens]))[0, -1] / TEMPERATURE
        tokens.append(int(torch.multinomial(scores.softmax(dim=0), 1, generator=generator)))
    model.train(training)
    return "".join(task.vocabulary[token] for token in tokens)
