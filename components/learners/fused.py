"""A fused learner: several members as one learner, adapted one by one or as one model."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.inputs import require
from components.learners.fused_policy import FusedPolicy
from components.learners.gradient import Maml
from components.learners.learner import Adapted, Learner, class_means
from components.learners.policy import Policy
from components.objectives import one_hot
from components.tasks import Examples

SIDE_BY_SIDE = ("concat", "whitened")


def join(
    members: list[Learner], combine: str, weights: list[float], joint: bool, input_shape: tuple[int, ...], directions: int | None = None
) -> "FusedLearner | FusedPolicy":
    """Return the members as one learner; policies become a policy. `directions`: how many a whitened one's map changes, else all."""
    policies = [m for m in members if isinstance(m, Policy)]
    if not policies:
        return FusedLearner(members, combine, weights, joint, input_shape, directions)
    require(
        len(policies) == len(members) and combine == "mixture" and not joint,
        f"Policies are fused by the product of what they would do, got {combine}. Use average or weights.",
    )
    return FusedPolicy(policies, weights)


class FusedLearner(Learner):
    """Members joined by a convex mixture of their predictive distributions, or by concatenated features with one adaptation.

    `combine="mixture"`: p = sum_i w_i p_i (weights uniform for averaging). `"conditioned"`: the weights of a task are w_i times the likelihood
    that member i gives to each support example when adapted to the others (leave-one-out), to the power of `sharpness`. `"concat"`:
    features sqrt(w_i) phi_i side by side, one centroid a class, one cosine. `"whitened"`: the same after a linear map of the features.
    `joint=True` adapts gradient-based members as one model on the mixture's loss; for members whose adaptation is a mean a class the two
    ways coincide. theta_meta are the members' own, and the weights (set on validation tasks).
    """

    weights: Tensor
    sharpness: Tensor
    centre: nn.Parameter
    axes: nn.Parameter

    def __init__(
        self, members: list[Learner], combine: str, weights: list[float], joint: bool, input_shape: tuple[int, ...], directions: int | None = None
    ) -> None:
        super().__init__()
        gradient = [isinstance(m, Maml) for m in members]
        require(
            combine not in SIDE_BY_SIDE or all(m.centroids for m in members),
            f"fusion.mode={combine} needs members with a shared encoder and one mean a class, got another kind. Use fusion.mode=weights.",
        )
        one_family = not (joint and any(gradient)) or all(gradient)
        require(one_family, "fusion.adapt=joint needs members of one family, got gradient-based and metric ones. Use fusion.adapt=members.")
        self.members = nn.ModuleList(members)
        self.objective = members[0].objective
        weighs = combine != "conditioned" or self.objective.name == "cross_entropy"
        require(weighs, "fusion.mode=conditioned weighs members by how likely classes are, and values have none. Use fusion.mode=weights.")
        self.combine, self.joint = combine, joint and all(gradient)
        self.encodes = all(m.encodes for m in members)
        self.tasks_at_once = min(m.tasks_at_once for m in members)
        self.theta_fixed = all(m.theta_fixed for m in members)
        self.theta_meta = tuple(f"members.{i}.{name}" for i, m in enumerate(members) for name in m.theta_meta)
        self.register_buffer("weights", torch.tensor(weights))
        with torch.no_grad():
            blank = torch.zeros(1, *input_shape)
            was = self.training
            self.eval()
            self.shapes = [m.encode(blank).shape[1:] for m in self._members()]
            self.train(was)
        if combine == "conditioned":
            self.register_buffer("sharpness", torch.ones(()))
        if combine == "whitened":
            size = sum(s.numel() for s in self.shapes)
            self.map_by(torch.zeros(size), torch.zeros(size, directions or size))

    def map_by(self, centre: Tensor, axes: Tensor) -> None:
        """Map joined features x [D] to y - (y @ axes) @ axes.T with y = x - centre; `centre` [D], `axes` [D, directions] of float32."""
        self.centre = nn.Parameter(centre, requires_grad=False)  # fitted in closed form; they count as what a learner consists of
        self.axes = nn.Parameter(axes, requires_grad=False)

    def _members(self) -> list[Learner]:
        return list(self.members)  # type: ignore[arg-type]

    def encode(self, x: Tensor) -> Tensor:
        return torch.cat([m.encode(x).flatten(1) for m in self._members()], 1)

    def split(self, features: Tensor) -> list[Tensor]:
        """Cut features [T, N, sum of sizes] into each member's own [T, N, ...]."""
        parts = torch.split(features, [s.numel() for s in self.shapes], dim=-1)
        return [part.reshape(*part.shape[:-1], *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def side_by_side(self, features: Tensor) -> Tensor:
        """Return features [T, N, sum of sizes] of length one, each member's share of it by its weight; mapped where they are whitened."""
        joined = self.joined(features)
        if self.combine != "whitened":
            return joined
        centred = joined - self.centre
        return F.normalize(centred - centred @ self.axes @ self.axes.T, dim=-1)

    def joined(self, features: Tensor) -> Tensor:
        """Return features [T, N, sum of sizes], each member's part of the length that its weight gives it, before any map."""
        return torch.cat([F.normalize(part, dim=-1) * w.sqrt() for part, w in zip(self.split(features), self.weights, strict=True)], -1)

    def adapt_features(self, support: Examples) -> Adapted:
        if self.combine in SIDE_BY_SIDE:
            means = class_means(self.side_by_side(support.x), support.y, support.way)
            return {"prototypes": F.normalize(means, dim=-1)}
        if self.joint:
            return self._adapt_as_one(support)
        adapted = self._adapt_members(support)
        if self.combine == "conditioned":
            adapted["log_weights"] = self.log_weights(self.evidence(support))
        return adapted

    def _adapt_members(self, support: Examples) -> Adapted:
        adapted = {}
        for i, (member, x) in enumerate(zip(self._members(), self.split(support.x), strict=True)):
            state = member.adapt_features(Examples(x, support.y, support.way))
            adapted.update({f"{i}/{name}": value for name, value in state.items()})
        return adapted

    def evidence(self, support: Examples) -> Tensor:
        """Return each member's log-likelihood [T, M] of the support, every example predicted from the others.

        An example that is its class's only one cannot be left out: at one shot there is no evidence, and the weights are those of all tasks.
        """
        shots = one_hot(support.y, support.way, support.x.dtype).sum(1)
        found = torch.zeros(len(support.y), len(self.members), device=support.x.device)
        for held in range(support.y.shape[1]):
            label = support.y[:, held : held + 1]
            known = shots.gather(1, label) > 1
            if not known.any():
                continue
            kept = [i for i in range(support.y.shape[1]) if i != held]
            adapted = self._adapt_members(Examples(support.x[:, kept], support.y[:, kept], support.way))
            outputs = torch.stack(self.member_outputs(adapted, support.x[:, held : held + 1]), 1)[:, :, 0]  # [T, M, way]
            likely = outputs.log_softmax(-1).gather(-1, label.unsqueeze(1).expand(-1, len(self.members), -1)).squeeze(-1)
            found = found + torch.where(known, likely, 0.0)
        return found

    def log_weights(self, evidence: Tensor) -> Tensor:
        """Return log w_i + sharpness times the evidence for i, normalised over members: [T, M]."""
        return (self.weights.clamp_min(1e-12).log() + self.sharpness * evidence).log_softmax(-1)

    @torch.no_grad()
    def support_losses(self, support: Examples) -> list[float]:
        """Return the mixture's loss before and after every step of its members, who take them by themselves or as one; none where one takes none."""
        members = [m for m in self._members() if isinstance(m, Maml)]
        if len(members) < len(self.members) or self.combine != "mixture":
            return []
        losses: list[float] = []
        if self.joint:
            self._adapt_as_one(support, losses)
            return losses
        paths = [list(m.path(Examples(x, support.y, support.way))) for m, x in zip(members, self.split(support.x), strict=True)]
        for index in range(max(map(len, paths))):
            weights = {f"{i}/{k}": v for i, path in enumerate(paths) for k, v in path[min(index, len(path) - 1)].items()}
            losses.append(self.objective.loss(self._under_way(weights, support.x, index), support.y).mean().item())
        return losses

    def _under_way(self, weights: Adapted, x: Tensor, index: int) -> Tensor:
        """Return the mixture's outputs after `index` steps; a member that takes fewer has arrived."""
        parts = []
        for i, (member, part) in enumerate(zip(self._members(), self.split(x), strict=True)):
            parts.append(member.outputs(_own(weights, i), part, min(index, member.steps())) / member.temperature)  # type: ignore[operator]
        return self._mixed(parts, {})

    def predict_features(self, adapted: Adapted, x: Tensor) -> Tensor:
        if self.combine in SIDE_BY_SIDE:
            scale = torch.stack([m.log_scale.exp() for m in self._members()]).mean()  # type: ignore[operator]
            return self.side_by_side(x) @ adapted["prototypes"].transpose(1, 2) * scale
        return self._mixed(self.member_outputs(adapted, x), adapted)

    def _mixed(self, outputs: list[Tensor], adapted: Adapted) -> Tensor:
        """Return the mixture [T, Q, out] of the members' calibrated outputs [T, Q, out]."""
        if self.objective.name != "cross_entropy":
            return torch.einsum("m,mtqo->tqo", self.weights, torch.stack(outputs))
        logs = F.log_softmax(torch.stack(outputs), -1)
        weights = adapted["log_weights"].T if "log_weights" in adapted else self.weights.clamp_min(1e-12).log().unsqueeze(1)
        return torch.logsumexp(logs + weights[:, :, None, None], 0)

    def member_outputs(self, adapted: Adapted, x: Tensor) -> list[Tensor]:
        """Return each member's calibrated outputs [T, Q, out] for query features [T, Q, ...]."""
        found = []
        for i, (member, part) in enumerate(zip(self._members(), self.split(x), strict=True)):
            found.append(member.predict_features(_own(adapted, i), part) / member.temperature)
        return found

    def _adapt_as_one(self, support: Examples, losses: list[float] | None = None) -> Adapted:
        """Take gradient steps on the mixture's support loss, every member by its own rule; append the loss before and after each to `losses`."""
        members: list[Maml] = self._members()  # type: ignore[assignment]
        every = list(zip(members, self.split(support.x), self.weights, strict=True))
        outer = torch.is_grad_enabled()
        second_order = outer and not all(m.first_order() for m in members)
        weights = {f"{i}/{k}": v for i, (m, x, _) in enumerate(every) for k, v in m.start(Examples(x, support.y, support.way)).items()}
        memories = [m.memory(_own(weights, i)) for i, m in enumerate(members)]
        for index in range(max(m.steps() for m in members)):
            with torch.enable_grad():
                if not outer:
                    weights = {k: v.detach().requires_grad_() for k, v in weights.items()}
                loss = self.objective.loss(self._under_way(weights, support.x, index), support.y)
                if losses is not None:
                    losses.append(loss.mean().item())
                pulls = [w * m.pull(_own(weights, i), Examples(x, support.y, support.way)) for i, (m, x, w) in enumerate(every)]
                loss = loss + torch.stack(pulls).sum(0)
                found = dict(zip(weights, torch.autograd.grad(loss.sum(), list(weights.values()), create_graph=second_order), strict=True))
            moved: Adapted = {}
            for i, member in enumerate(members):
                if index >= member.steps():
                    moved |= {f"{i}/{k}": v for k, v in _own(weights, i).items()}
                    continue
                scaled = {name: member.scale() * g for name, g in _own(found, i).items()}
                own, memories[i] = member.step(_own(weights, i), scaled, loss, memories[i], index)
                moved |= {f"{i}/{k}": v for k, v in own.items()}
            weights = moved
        if losses is not None:
            losses.append(self.objective.loss(self.predict_features(weights, support.x), support.y).mean().item())
        return weights if outer else {k: v.detach() for k, v in weights.items()}


def _own(tensors: Adapted, member: int) -> Adapted:
    """Return a member's own of the tensors, by their names in it."""
    return {name.removeprefix(f"{member}/"): t for name, t in tensors.items() if name.startswith(f"{member}/")}
