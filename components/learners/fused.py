"""A fused learner: several members as one learner, adapted one by one or as one model."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.contracts import InputError
from components.learners.gradient import Maml
from components.learners.learner import Adapted, Learner
from components.tasks import Examples


class FusedLearner(Learner):
    """Members joined by a convex mixture of their predictive distributions, or by concatenated features with one adaptation.

    `combine="mixture"`: p = sum_i w_i p_i (weights uniform for averaging). `combine="concat"`: features sqrt(w_i) phi_i side by side,
    one centroid a class, one cosine. `joint=True` adapts gradient-based members as one model on the mixture's loss; for members whose
    adaptation is a mean a class the two ways coincide. theta_meta are the members' own, and the weights (set on validation tasks).
    """

    weights: Tensor

    def __init__(self, members: list[Learner], combine: str, weights: list[float], joint: bool, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        gradient = [isinstance(m, Maml) for m in members]
        if combine == "concat" and not all(m.centroids for m in members):
            raise InputError("fusion.mode=concat needs members with a shared encoder and one mean a class, got another kind. Use fusion.mode=weights.")
        if joint and any(gradient) and not all(gradient):
            raise InputError("fusion.adapt=joint needs members of one family, got gradient-based and metric ones. Use fusion.adapt=members.")
        self.members = nn.ModuleList(members)
        self.objective = members[0].objective
        self.combine, self.joint = combine, joint and all(gradient)
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

    def _members(self) -> list[Learner]:
        return list(self.members)  # type: ignore[arg-type]

    def encode(self, x: Tensor) -> Tensor:
        return torch.cat([m.encode(x).flatten(1) for m in self._members()], 1)

    def split(self, features: Tensor) -> list[Tensor]:
        """Cut features [T, N, sum of sizes] into each member's own [T, N, ...]."""
        parts = torch.split(features, [s.numel() for s in self.shapes], dim=-1)
        return [part.reshape(*part.shape[:-1], *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def _side_by_side(self, features: Tensor) -> Tensor:
        parts = [F.normalize(part, dim=-1) * w.sqrt() for part, w in zip(self.split(features), self.weights, strict=True)]
        return torch.cat(parts, -1)

    def adapt_features(self, support: Examples) -> Adapted:
        if self.combine == "concat":
            joined = self._side_by_side(support.x)
            belongs = F.one_hot(support.y, support.way).to(joined.dtype).transpose(1, 2)
            return {"prototypes": F.normalize(belongs @ joined, dim=-1)}
        if self.joint:
            return self._adapt_as_one(support)
        adapted = {}
        for i, (member, x) in enumerate(zip(self._members(), self.split(support.x), strict=True)):
            state = member.adapt_features(Examples(x, support.y, support.way))
            adapted.update({f"{i}/{name}": value for name, value in state.items()})
        return adapted

    def predict_features(self, adapted: Adapted, x: Tensor) -> Tensor:
        if self.combine == "concat":
            scale = torch.stack([m.log_scale.exp() for m in self._members()]).mean()  # type: ignore[operator]
            return self._side_by_side(x) @ adapted["prototypes"].transpose(1, 2) * scale
        if self.objective.name != "cross_entropy":
            return torch.einsum("m,mtqo->tqo", self.weights, torch.stack(self.member_outputs(adapted, x)))
        logs = F.log_softmax(torch.stack(self.member_outputs(adapted, x)), -1)
        return torch.logsumexp(logs + self.weights.clamp_min(1e-12).log()[:, None, None, None], 0)

    def member_outputs(self, adapted: Adapted, x: Tensor) -> list[Tensor]:
        """Return each member's calibrated outputs [T, Q, out] for query features [T, Q, ...]."""
        found = []
        for i, (member, part) in enumerate(zip(self._members(), self.split(x), strict=True)):
            found.append(member.predict_features(_own(adapted, i), part) / member.temperature)
        return found

    def _adapt_as_one(self, support: Examples) -> Adapted:
        """Take gradient steps on the mixture's support loss, every member by its own rule."""
        members: list[Maml] = self._members()  # type: ignore[assignment]
        outer = torch.is_grad_enabled()
        second_order = outer and not all(m.first_order() for m in members)
        weights = {
            f"{i}/{k}": v
            for i, (m, x) in enumerate(zip(members, self.split(support.x), strict=True))
            for k, v in m.start(Examples(x, support.y, support.way)).items()
        }
        memories = [m.memory(_own(weights, i)) for i, m in enumerate(members)]
        for index in range(max(m.steps() for m in members)):
            with torch.enable_grad():
                if not outer:
                    weights = {k: v.detach().requires_grad_() for k, v in weights.items()}
                loss = self.objective.loss(self.predict_features(weights, support.x), support.y)
                found = dict(zip(weights, torch.autograd.grad(loss.sum(), list(weights.values()), create_graph=second_order), strict=True))
            moved: Adapted = {}
            for i, member in enumerate(members):
                scaled = {name: member.scale() * g for name, g in _own(found, i).items()}
                own, memories[i] = member.step(_own(weights, i), scaled, loss, memories[i], index)
                moved |= {f"{i}/{k}": v for k, v in own.items()}
            weights = moved
        return weights if outer else {k: v.detach() for k, v in weights.items()}


def _own(tensors: Adapted, member: int) -> Adapted:
    """Return a member's own of the tensors, by their names in it."""
    return {name.removeprefix(f"{member}/"): t for name, t in tensors.items() if name.startswith(f"{member}/")}
