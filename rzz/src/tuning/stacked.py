"""Many points of the search trained at once: models of one shape as one stacked model.

    stack = Stack([point.settings for point in points], steps_per_epoch, device)
    for batch in batches(stack.model, training, batch_size):
        stack.step(batch)
    stack.nats_per_zero(batches(stack.model, validation, 512), len(validation))         # of each point

Models this small are bound by the launching of operations, not by arithmetic. So the weights of all points lie in one
tensor (points, parameters), torch.func.vmap turns each operation of the model into one over all points, and no point
touches another: each gets, to rounding, what it would have got alone. A stack of one is how one point is trained.
"""

import dataclasses
import math

import torch
from torch import nn
from torch.func import functional_call, vmap

from common.devices import end_step, seed_device, to_cpu
from model.network import build_model, cross_entropy
from training.optimizer import learning_rate_at, make_optimizer
from transformer import evaluating

AVERAGED_EPOCHS = 0.25  # over which the weights are averaged
LOSS_WINDOW = 20  # losses whose mean says what a point has learned


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
    places = [(name, parent, child) for name, parent in model.named_modules() for child, module in parent.named_children()
              if isinstance(module, nn.Dropout)]  # fmt: skip
    for _, parent, child in places:
        setattr(parent, child, StackedDropout())
    return [f"{name}.{child}.rate".lstrip(".") for name, _, child in places]


class StackedModels:
    """Models that differ in learning rate and dropout alone, each with weights, optimizer and averaged weights of its own.

    What is scored is a running average of the weights, which stands for the decay of the learning rate at the end of a
    real training (Hägele et al., "Scaling laws and compute-optimal training beyond fixed training durations", 2024).

    members: a Config for each point. steps_per_epoch: what the average and the warm-up are measured in.
    """

    def __init__(self, members, steps_per_epoch, device):
        self.members, self.device = members, device
        self.model = build_model(members[0].model, members[0].training.seed).to(device)
        template, training = make_optimizer(self.model, members[0].training), members[0].training
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        self.shapes = {names[id(parameter)]: parameter.shape for group in template.param_groups for parameter in group["params"]}
        self.sizes = [shape.numel() for shape in self.shapes.values()]
        first = torch.cat([parameter.detach().flatten() for group in template.param_groups for parameter in group["params"]])
        self.weights = first.repeat(len(members), 1)  # (points, parameters): those that decay, then the others
        self.leaves = {name: part.requires_grad_() for name, part in self.named(self.weights).items()}
        self.averaged = self.weights.clone()
        self.decays = [(sum(parameter.numel() for parameter in group["params"]), group["weight_decay"])
                       for group in template.param_groups]  # (parameters, weight decay)
        # AdamW has one learning rate. So it moves a tensor of zeros at the rate 1, and each point takes its share of that.
        self.movement = torch.zeros_like(self.weights)
        self.movement.grad = torch.zeros_like(self.weights)
        options = {name: template.defaults[name] for name in ("betas", "eps", "fused")}
        self.optimizer = torch.optim.AdamW([self.movement], lr=1.0, weight_decay=0.0, **options)

        rates = [member.model.dropout for member in members]
        dropouts = with_stacked_dropout(self.model) if any(rates) else []
        self.rates = dict.fromkeys(dropouts, torch.tensor(rates, device=device))
        self.average_share = 1 / max(1, steps_per_epoch * AVERAGED_EPOCHS)
        warmup_steps = min(training.warmup_steps, steps_per_epoch // 4)
        self.schedule = dataclasses.replace(training, learning_rate=1.0, warmup_steps=warmup_steps)
        self.learning_rates = torch.tensor([[member.training.learning_rate] for member in members], device=device)
        self.steps = 0
        self.first_losses, self.last_losses, self.finite = None, [], torch.ones(len(members), dtype=torch.bool, device=device)

    def named(self, rows):
        """Return rows (points, parameters) as the model's named parameters, each (points, *its shape), without a copy."""
        parts = rows.split(self.sizes, dim=1)
        return {name: part.view(len(rows), *shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def losses_of(self, parameters, batch, reduction):
        """Return the cross entropy of every point on one batch, in one pass. parameters: what `named` gives."""

        def loss(parameters, rates):
            inputs = batch.tokens, batch.features
            logits = functional_call(self.model, parameters | rates, inputs, {"first": batch.first})
            return cross_entropy(logits, batch.targets, reduction)

        if len(self.members) == 1:  # the same, without what vmap costs
            alone = ({name: value.squeeze(0) for name, value in stacked.items()} for stacked in (parameters, self.rates))
            return loss(*alone)[None]
        return vmap(loss, randomness="same")(parameters, self.rates)

    def step(self, batch):
        """Make one update of every point from one batch, as training_step does for one model.

        But nothing is skipped: a point whose loss or gradient is once not finite is marked, and lost.
        """
        training = self.members[0].training
        seed_device(self.device, training.seed, self.steps)
        losses = self.losses_of(self.leaves, batch, "mean")
        gradients = self.movement.grad
        parts = torch.autograd.grad(losses.sum(), list(self.leaves.values()))
        for place, part in zip(self.named(gradients).values(), parts, strict=True):
            place.copy_(part)
        norms = gradients.norm(dim=1)
        finite = torch.isfinite(losses) & torch.isfinite(norms)
        gradients *= (training.gradient_clip / (norms + 1e-6)).clamp(max=1)[:, None]
        self.update()
        self.averaged.lerp_(self.weights, 1.0 if self.steps == 0 else self.average_share)
        self.steps += 1
        self.note(losses.detach(), finite)
        end_step(self.device)

    def update(self):
        """Step AdamW, each point at its own learning rate."""
        self.movement.zero_()
        self.optimizer.step()
        rates = self.learning_rates * learning_rate_at(self.steps, math.inf, self.schedule)
        for part, (_, decay) in zip(self.weights.split([size for size, _ in self.decays], dim=1), self.decays, strict=True):
            part.mul_(1 - rates * decay)
        self.weights.addcmul_(self.movement, rates)

    def note(self, losses, finite):
        """Remember what the labels of the points need of the losses of a step, on the device."""
        self.finite &= finite
        self.first_losses = losses if self.first_losses is None else self.first_losses
        self.last_losses = [*self.last_losses[1 - LOSS_WINDOW :], losses]

    def nats_per_zero(self, batches, zeros):
        """Return the cross entropy of every point's averaged weights over `batches`, which hold `zeros` zeros, as floats."""
        nats = torch.zeros(len(self.members), dtype=torch.float64)
        with evaluating(self.model):
            for batch in batches:
                losses = self.losses_of(self.named(self.averaged), batch, "none")
                end_step(self.device)
                nats += losses.cpu().double().sum(1)
        return (nats / zeros).tolist()

    def averaged_model(self, point):
        """Return the Transformer that holds the averaged weights of one point."""
        self.model.load_state_dict({name: rows[point] for name, rows in self.named(self.averaged).items()})
        return self.model

    def state(self, point):
        """Return all that `point` needs to go on later, as CPU tensors and plain types."""
        averages = {name: average[point] for name, average in self.averages().items()}
        return to_cpu({"weights": self.weights[point], "averaged": self.averaged[point], **averages, "steps": self.steps,
                       "finite": self.finite[point], "first_loss": self.first_losses[point],
                       "last_losses": torch.stack(self.last_losses)[:, point]})  # fmt: skip

    def averages(self):
        """Return AdamW's averages of the gradients and of their squares, both (points, parameters), under torch's names."""
        return {name: self.optimizer.state[self.movement][name] for name in ("exp_avg", "exp_avg_sq")}

    def load_states(self, states):
        """Go on from what `state` returned for each point; all have made the same number of steps."""
        self.steps = states[0]["steps"]
        names = ("weights", "averaged", "exp_avg", "exp_avg_sq", "finite", "first_loss", "last_losses")
        together = {name: torch.stack([state[name] for state in states]).to(self.device) for name in names}
        self.weights.copy_(together["weights"])
        self.averaged.copy_(together["averaged"])
        averages = {"step": torch.tensor(float(self.steps)), **{name: together[name] for name in ("exp_avg", "exp_avg_sq")}}
        self.optimizer.load_state_dict({"state": {0: averages}, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.finite, self.first_losses = together["finite"], together["first_loss"]
        self.last_losses = list(together["last_losses"].unbind(1))
