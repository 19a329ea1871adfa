"""Many trials of the search trained at once: models of one shape as one stacked model.

    stack = StackedModels([trial.settings for trial in trials], steps_per_epoch, device)
    for batch in iterate_batches(stack.model, training, batch_size):
        stack.step(batch)
    stack.nats_per_zero(iterate_batches(stack.model, validation, 512), len(validation))         # of each trial

Models this small are bound by the launching of operations, not by arithmetic. So the weights of all trials are one
tensor (trials, parameters), torch.func.vmap turns each operation of the model into one over all trials, and no trial
affects another: each gets, to rounding, what it would have got alone. A stack of one is how one trial is trained.
"""

import dataclasses
import math

import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from common.devices import end_step, seed_device, to_cpu
from model.network import build_model, cross_entropy
from training.optimizer import ADAMW, learning_rate_at, make_optimizer
from transformer import evaluating

ROW_MULTIPLE = 64  # weights
LOSS_WINDOW = 20  # losses whose mean says what a trial has learned


class StackedDropout(nn.Module):
    """Dropout whose rate is a tensor, so that every model of a stack has its own.

    All draw the same uniform numbers, which are those of a model alone: a function of the seed, the step and the shape.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("rate", torch.zeros(()), persistent=False)

    def forward(self, x):
        if not self.training:
            return x
        return x * (torch.rand(x.shape, device=x.device) >= self.rate) / (1 - self.rate)


def with_stacked_dropout(model):
    """Replace every nn.Dropout in `model` by a StackedDropout; return the names of their rates."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Dropout)]
    for name in names:
        model.set_submodule(name, StackedDropout())
    return [f"{name}.rate" for name in names]


class StackedModels:
    """Models that differ in learning rate and dropout alone, each with weights, optimizer and averaged weights of its own.

    What is scored is an exponential moving average of the weights, which stands for the decay of the learning rate at the
    end of a real training (Hägele et al., "Scaling laws and compute-optimal training beyond fixed training durations", 2024).

    members: a Config for each trial. steps_per_epoch: what the average and the warm-up are measured in.
    """

    def __init__(self, members, steps_per_epoch, device):
        self.members, self.device, training = members, device, members[0].training
        self.model = build_model(members[0].model, training.seed).to(device)
        single = make_optimizer(self.model, training)
        ordered = [parameter for group in single.param_groups for parameter in group["params"]]
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        self.shapes = {names[id(parameter)]: parameter.shape for parameter in ordered}
        sizes = [sum(parameter.numel() for parameter in group["params"]) for group in single.param_groups]
        self.size = sum(sizes)  # of a row without its padding, which has vector instructions treat the rows of all trials alike
        weights = F.pad(torch.cat([parameter.detach().flatten() for parameter in ordered]), (0, -self.size % ROW_MULTIPLE))
        self.weights = weights.repeat(len(members), 1)
        rows = self.weights[:, : self.size].split(sizes, dim=1)
        self.groups = list(zip(rows, single.param_groups, strict=True))  # with weight decay and without
        self.leaves = {name: stacked.requires_grad_() for name, stacked in self.named(self.weights).items()}
        self.ema_weights = self.weights.clone()
        # AdamW has one learning rate. So it updates a tensor of zeros at the rate 1, and each trial adds that times its own rate.
        self.adamw_update = torch.zeros_like(self.weights)
        self.adamw_update.grad = torch.zeros_like(self.weights)
        self.optimizer = torch.optim.AdamW([self.adamw_update], lr=1.0, weight_decay=0.0, fused=single.defaults["fused"], **ADAMW)

        rates = [member.model.dropout for member in members]
        dropouts = with_stacked_dropout(self.model) if any(rates) else []
        self.rates = dict.fromkeys(dropouts, torch.tensor(rates, device=device))
        self.ema_share = 1 / max(1, steps_per_epoch / 4)  # of the newest weights: an average over a quarter of an epoch
        warmup_steps = min(training.warmup_steps, steps_per_epoch // 4)
        self.schedule = dataclasses.replace(training, learning_rate=1.0, warmup_steps=warmup_steps)
        self.learning_rates = torch.tensor([[member.training.learning_rate] for member in members], device=device)
        self.steps = 0
        self.first_losses, self.last_losses = None, torch.empty(len(members), 0, device=device)  # (trials, up to LOSS_WINDOW)
        self.finite = torch.ones(len(members), dtype=torch.bool, device=device)

    def named(self, rows):
        """Return rows (trials, parameters) as the model's named parameters, each (trials, *its shape), without a copy."""
        parameters = rows[:, : self.size].split([shape.numel() for shape in self.shapes.values()], dim=1)
        return {name: columns.view(len(rows), *shape)
                for (name, shape), columns in zip(self.shapes.items(), parameters, strict=True)}  # fmt: skip

    def losses_of(self, parameters, batch, reduction):
        """Return the cross entropy of every trial on one batch, in one pass. parameters: what `named` gives."""

        def loss(parameters, rates):
            inputs = batch.tokens, batch.features
            logits = functional_call(self.model, parameters | rates, inputs, {"first": batch.first})
            return cross_entropy(logits, batch.targets, reduction)

        if len(self.members) == 1:  # the same, without what vmap costs
            alone = ({name: value.squeeze(0) for name, value in stacked.items()} for stacked in (parameters, self.rates))
            return loss(*alone)[None]
        return vmap(loss, randomness="same")(parameters, self.rates)

    def step(self, batch):
        """Make one update of every trial from one batch, as training_step does for one model.

        But no update is skipped: a trial whose loss or gradient is not finite once is marked as diverged.
        """
        training = self.members[0].training
        seed_device(self.device, training.seed, self.steps)
        losses = self.losses_of(self.leaves, batch, "mean")
        gradients = torch.autograd.grad(losses.sum(), list(self.leaves.values()))
        torch.cat([gradient.flatten(1) for gradient in gradients], dim=1, out=self.adamw_update.grad[:, : self.size])
        gradients = self.adamw_update.grad
        norms = gradients.norm(dim=1)
        self.finite &= torch.isfinite(losses) & torch.isfinite(norms)
        gradients *= (training.gradient_clip / (norms + 1e-6)).clamp(max=1)[:, None]

        self.adamw_update.zero_()
        self.optimizer.step()
        rates = self.learning_rates * learning_rate_at(self.steps, math.inf, self.schedule)
        for weights, group in self.groups:
            weights.mul_(1 - rates * group["weight_decay"])
        self.weights.addcmul_(self.adamw_update, rates)
        self.ema_weights.lerp_(self.weights, 1.0 if self.steps == 0 else self.ema_share)

        losses = losses.detach()  # which stay on the device
        self.first_losses = losses if self.steps == 0 else self.first_losses
        self.last_losses = torch.cat([self.last_losses[:, 1 - LOSS_WINDOW :], losses[:, None]], dim=1)
        self.steps += 1
        end_step(self.device)

    def nats_per_zero(self, batches, zeros):
        """Return the cross entropy of every trial's averaged weights over `batches`, which hold `zeros` zeros, as floats."""
        nats = torch.zeros(len(self.members), dtype=torch.float64)
        with evaluating(self.model):
            for batch in batches:
                losses = self.losses_of(self.named(self.ema_weights), batch, "none")
                end_step(self.device)
                nats += losses.cpu().double().sum(1)
        return (nats / zeros).tolist()

    def averaged_model(self, member):
        """Return the Transformer with the averaged weights of one trial."""
        self.model.load_state_dict({name: rows[member] for name, rows in self.named(self.ema_weights).items()})
        return self.model

    def state(self, member):
        """Return all that one trial needs to go on later, as CPU tensors and plain types."""
        averages = {name: self.optimizer.state[self.adamw_update][name] for name in ("exp_avg", "exp_avg_sq")}
        rows = {"weights": self.weights, "averaged": self.ema_weights, **averages}
        return to_cpu({**{name: row[member, : self.size] for name, row in rows.items()}, "steps": self.steps,
                       "finite": self.finite[member], "first_loss": self.first_losses[member],
                       "last_losses": self.last_losses[member]})  # fmt: skip

    def load_states(self, states):
        """Go on from what `state` returned for each trial; all have made the same number of steps."""
        self.steps = states[0]["steps"]
        stacked = {name: torch.stack([state[name] for state in states]).to(self.device) for name in states[0] if name != "steps"}
        self.weights[:, : self.size] = stacked["weights"]
        self.ema_weights[:, : self.size] = stacked["averaged"]
        padding = (0, self.weights.shape[1] - self.size)
        averages = {"step": torch.tensor(float(self.steps)),
                    **{name: F.pad(stacked[name], padding) for name in ("exp_avg", "exp_avg_sq")}}  # fmt: skip
        self.optimizer.load_state_dict({"state": {0: averages}, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.finite, self.first_losses, self.last_losses = (stacked[name] for name in ("finite", "first_loss", "last_losses"))
