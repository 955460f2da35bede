"""Memory-based learners: adaptation is one reading of the support; no gradient, no optimiser at test time.

Any number of ways: classes enter as codes, fixed random vectors, and an output is compared with the codes of the task's classes. While
training each batch draws which codes stand for its classes, so that no code comes to mean a class.

What attends begins as a matching network: keys and queries read the item, values the target, and all else starts at zero. Begun at random
instead, reading by attention was still at chance after 400 steps of 20-way tasks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.draws import seed_of
from components.inputs import require
from components.learners.learner import Adapted, Encoding, class_means
from components.learners.options import CnpOptions, MannOptions, SetTransformerOptions, SnailOptions
from components.tasks import Examples

CODES = 1_000


class Reader(Encoding):
    """A learner that reads (item, target) pairs, each a vector of `width` numbers, and answers with a vector in the place of the target."""

    theta_meta = ("",)  # everything: what is learned is how to learn
    codes: Tensor

    def __init__(self, backbone: nn.Module, dim: int, width: int, norm: str) -> None:
        super().__init__(backbone, norm)
        self.width = width
        self.item = nn.Linear(dim, width)
        nn.init.orthogonal_(self.item.weight)  # distances stay
        self.value = nn.Linear(1, width)
        self.answer = nn.Linear(width, 1)
        self.log_scale = nn.Parameter(torch.zeros(()))
        codes = torch.randn(CODES, width, generator=torch.Generator().manual_seed(seed_of("label codes")))
        self.register_buffer("codes", F.normalize(codes, dim=-1) * width**0.5)

    def started(self) -> None:
        """Leave out what this objective never uses: parallel training waits for a gradient of every parameter."""
        for name in self.unused():
            if hasattr(self, name):
                delattr(self, name)

    def unused(self) -> list[str]:
        return ["value", "answer"] if self.objective.name == "cross_entropy" else ["log_scale"]

    def class_codes(self, way: int) -> Tensor:
        """Return the codes [way, width] of a task's classes: at test always the same, while training a choice of this step's own."""
        require(way <= CODES, f"{type(self).__name__} tells at most {CODES} classes apart, got {way}. Use a metric learner.")
        if not self.training:
            return self.codes[:way]
        generator = torch.Generator().manual_seed(seed_of("codes of a step", self.seed, self.progress))
        return self.codes[torch.randperm(CODES, generator=generator)[:way].to(self.codes.device)]

    def items(self, x: Tensor) -> Tensor:
        """Return items [T, N, width] from features [T, N, dim]; of classes only the direction counts, as in the base."""
        if self.objective.name == "cross_entropy":
            x = F.normalize(x, dim=-1) * x.shape[-1] ** 0.5
        found: Tensor = self.item(x)
        return found

    def pairs(self, x: Tensor, target: Tensor | None) -> Tensor:
        """Return (item, target) side by side [T, N, 2 width]; a query's target is zero."""
        item = self.items(x)
        return torch.cat([item, torch.zeros_like(item) if target is None else target], -1)

    def targets(self, support: Examples) -> tuple[Tensor, Tensor]:
        """Return the targets as vectors [T, S, width], and the codes [T, way, width] that outputs are compared with."""
        if self.objective.name == "cross_entropy":
            codes = self.class_codes(support.way)
            return codes[support.y], codes.expand(support.x.shape[0], -1, -1)
        values: Tensor = self.value(support.y.unsqueeze(-1).to(support.x.dtype))
        return values, values.new_zeros(support.x.shape[0], 0, self.width)

    def finish(self, found: Tensor, codes: Tensor) -> Tensor:
        """Turn answers, the last `width` numbers of [T, Q, ...], into outputs [T, Q, out]."""
        found = found[..., -self.width :]
        if codes.shape[1]:
            logits: Tensor = found @ codes.transpose(1, 2) / self.width**0.5 * self.log_scale.exp()
            return logits
        values: Tensor = self.answer(found)
        return values


class Cnp(Reader):
    """Conditional neural process (Garnelo et al. 2018, arXiv:1807.01613, eq. 1-4): the support becomes the mean of its encodings.

    With classes, one mean a class beside the mean of all, and the decoder scores each class by itself, so any way can be asked for.
    """

    def __init__(self, backbone: nn.Module, dim: int, options: CnpOptions) -> None:
        super().__init__(backbone, dim, options.width, options.norm)
        width = options.width
        self.reading = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.decoding = nn.Sequential(nn.Linear(3 * width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
        for layer in (*self.reading, *self.decoding):
            if isinstance(layer, nn.Linear):  # torch's own start shrinks a signal at each of the six layers
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def unused(self) -> list[str]:
        return ["answer", "log_scale", *(["value"] if self.objective.name == "cross_entropy" else [])]

    def adapt_features(self, support: Examples) -> Adapted:
        item = self.items(support.x)
        classes = self.objective.name == "cross_entropy"  # an example's class is told by the mean that it is part of
        told = torch.zeros_like(item) if classes else self.value(support.y.unsqueeze(-1).to(item.dtype))
        read = self.reading(torch.cat([item, told], -1))
        whole = read.mean(1, keepdim=True)
        if not classes:
            return {"whole": whole, "classes": whole}
        return {"whole": whole, "classes": class_means(read, support.y, support.way)}

    def predict_features(self, adapted: Adapted, x: Tensor) -> Tensor:
        queries, classes = x.shape[1], adapted["classes"].shape[1]
        parts = [self.items(x).unsqueeze(2).expand(-1, -1, classes, -1), adapted["classes"].unsqueeze(1).expand(-1, queries, -1, -1)]
        parts.append(adapted["whole"].unsqueeze(1).expand(-1, queries, classes, -1))
        scores: Tensor = self.decoding(torch.cat(parts, -1)).squeeze(-1)
        return scores


class Layered(Reader):
    """A reader of several layers: the support's tokens pass through them once, and each layer's input is kept for the queries to read.

    A layer maps (tokens of the support, None) to their next state, and (tokens of the support, tokens of queries) to the queries'.
    """

    layers: nn.ModuleList

    def adapt_features(self, support: Examples) -> Adapted:
        told, codes = self.targets(support)
        tokens, kept = self.pairs(support.x, told), {"codes": codes}
        for i, layer in enumerate(self.layers):
            kept[f"layer-{i}"] = tokens
            tokens = layer(tokens, None)
        return kept

    def predict_features(self, adapted: Adapted, x: Tensor) -> Tensor:
        tokens = self.pairs(x, None)
        for i, layer in enumerate(self.layers):
            tokens = layer(adapted[f"layer-{i}"], tokens)
        return self.finish(tokens, adapted["codes"])


class SetTransformer(Layered):
    """A transformer that reads the support as a set (Lee et al. 2019, arXiv:1810.00825; as a learner: Nguyen and Grover 2022, arXiv:2207.04179).

    Support tokens, each an item and its target, attend to each other; a query token, an item alone, attends to them and to no other
    query. There are no positions, so the order of the support does not matter.
    """

    def __init__(self, backbone: nn.Module, dim: int, options: SetTransformerOptions) -> None:
        super().__init__(backbone, dim, options.width, options.norm)
        self.layers = nn.ModuleList(_Attention(2 * options.width, options.heads) for _ in range(options.layers))


def _begin_as_matching(query: nn.Linear, key: nn.Linear, value: nn.Linear) -> None:
    """Let queries and keys read the first half of a token, the item, twice over, and values keep the second, the target."""
    width = value.in_features // 2
    turned = nn.init.orthogonal_(torch.empty(width, width))
    with torch.no_grad():
        for layer in (query, key, value):
            layer.weight.zero_()
            if layer.bias is not None:
                layer.bias.zero_()
        for layer in (query, key):
            layer.weight[:, :width] = torch.cat([turned, turned])
        value.weight[width:, width:] = torch.eye(width)


class _Attention(nn.Module):
    """A pre-norm transformer layer: the support's tokens [T, S, width] read each other, or queries [T, Q, width] read them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.value, self.join = (nn.Linear(width, width) for _ in range(3))
        self.key = nn.Linear(width, width, bias=False)  # a bias would change no weight of the softmax
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        _begin_as_matching(self.query, self.key, self.value)
        nn.init.eye_(self.join.weight)
        for layer in (self.join, self.feed[2]):
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.feed[2].weight)  # type: ignore[arg-type]

    def forward(self, support: Tensor, queries: Tensor | None) -> Tensor:
        token = support if queries is None else queries
        read, asked = self.before(support), self.before(token)

        def heads(x: Tensor) -> Tensor:
            return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

        found = F.scaled_dot_product_attention(heads(self.query(asked)), heads(self.key(read)), heads(self.value(read)))
        token = token + self.join(found.transpose(1, 2).flatten(2))
        result: Tensor = token + self.feed(self.between(token))
        return result


class Snail(Layered):
    """SNAIL (Mishra et al. 2018, arXiv:1707.03141, sec. 3): dilated causal convolutions and causal attention over the support's sequence.

    A query is the step after the last example, each query by itself. The order of the support matters.
    """

    def __init__(self, backbone: nn.Module, dim: int, options: SnailOptions) -> None:
        super().__init__(backbone, dim, options.width, options.norm)
        width, blocks = 2 * options.width, range(options.blocks)
        pairs = [layer for _ in blocks for layer in (_TemporalConvolutions(width, options.reach), _CausalAttention(width))]
        self.layers = nn.ModuleList([_CausalAttention(width), *pairs])


class _CausalAttention(nn.Module):
    """Attention of each step to itself and the steps before, added to it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query, self.value = (nn.Linear(width, width) for _ in range(2))
        self.key = nn.Linear(width, width, bias=False)  # a bias would change no weight of the softmax
        _begin_as_matching(self.query, self.key, self.value)

    def forward(self, past: Tensor, last: Tensor | None) -> Tensor:
        """Return the steps [T, S, width] after attention, or with `last` [T, Q, width] only those, each as the one step after `past`."""
        read = self.norm(past)
        if last is None:
            found: Tensor = F.scaled_dot_product_attention(self.query(read), self.key(read), self.value(read), is_causal=True)
            return past + found
        own = self.norm(last)
        query, scale = self.query(own), own.shape[-1] ** -0.5
        scores = torch.cat([query @ self.key(read).transpose(1, 2), (query * self.key(own)).sum(-1, keepdim=True)], -1) * scale
        weight = scores.softmax(-1)
        moved: Tensor = last + weight[..., :-1] @ self.value(read) + weight[..., -1:] * self.value(own)
        return moved


class _TemporalConvolutions(nn.Module):
    """Gated convolutions of two taps, dilation 1, 2, 4, ..., added to their input."""

    def __init__(self, width: int, reach: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(reach))
        self.taps = nn.ModuleList(nn.Linear(2 * width, 2 * width) for _ in range(reach))
        for taps in self.taps:
            nn.init.normal_(taps.weight, std=0.02)  # type: ignore[arg-type]
            nn.init.zeros_(taps.bias)  # type: ignore[arg-type]

    def forward(self, past: Tensor, last: Tensor | None) -> Tensor:
        for i, (norm, taps) in enumerate(zip(self.norms, self.taps, strict=True)):
            read, back = norm(past), 2**i
            if last is not None:
                before = read[:, -back:][:, :1] if back <= read.shape[1] else torch.zeros_like(read[:, :1])
                last = last + _gated(taps(torch.cat([before.expand_as(last), norm(last)], -1)))
            shifted = F.pad(read, (0, 0, back, 0))[:, : read.shape[1]]
            past = past + _gated(taps(torch.cat([shifted, read], -1)))
        return past if last is None else last


def _gated(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, -1)
    return torch.tanh(value) * torch.sigmoid(gate)


class Mann(Reader):
    """A memory-augmented network with least-recently-used access (Santoro et al. 2016, ICML, sec. 3): it reads the support item by item.

    A recurrent controller writes (item, target) into memory slots, over the least used one or the one just read, and a query reads by
    cosine similarity (eq. 2-8 there). Memory is not written by queries, so none can change another's answer. The order matters.
    """

    def __init__(self, backbone: nn.Module, dim: int, options: MannOptions) -> None:
        super().__init__(backbone, dim, options.width, options.norm)
        width = options.width
        self.slots, self.decay = options.slots, options.decay
        self.controller = nn.GRUCell(3 * width, width)
        self.key, self.gate = nn.Linear(width, width), nn.Linear(width, 1)
        self.content = nn.Linear(2 * width, width)
        self.strength = nn.Parameter(torch.tensor(2.0))
        self.out = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width))
        nn.init.orthogonal_(self.key.weight)
        with torch.no_grad():
            self.content.weight.copy_(torch.cat([torch.zeros(width, width), torch.eye(width)], 1))  # at first, what is written is the target
            for layer in (self.key, self.content, self.out[2]):
                layer.bias.zero_()  # type: ignore[operator, union-attr]
            self.out[2].weight.zero_()  # type: ignore[operator, union-attr]

    def _read(self, memory: Tensor, keys: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Return what queries [T, N, width] find [T, N, width], and the weights [T, N, slots]."""
        weight = (F.normalize(self.key(query), dim=-1) @ F.normalize(keys + 1e-6, dim=-1).transpose(1, 2) * self.strength.exp()).softmax(-1)
        return weight @ memory, weight

    def adapt_features(self, support: Examples) -> Adapted:
        told, codes = self.targets(support)
        items = self.items(support.x)
        tasks, examples, width = items.shape
        memory = items.new_zeros(tasks, self.slots, width)
        keys = items.new_zeros(tasks, self.slots, width)
        state = items.new_zeros(tasks, width)
        usage, read = items.new_zeros(tasks, self.slots), items.new_zeros(tasks, self.slots)
        for i in range(examples):
            item, target = items[:, i], told[:, i]
            found, weight = self._read(memory, keys, item.unsqueeze(1))
            state = self.controller(torch.cat([item, target, found[:, 0]], -1), state)
            free = F.one_hot(usage.argmin(1), self.slots).to(usage)
            gate = torch.sigmoid(self.gate(state))
            write = gate * read + (1 - gate) * free
            keep = (1 - free).unsqueeze(-1)  # the least used slot is emptied before it is written
            memory = memory * keep + write.unsqueeze(-1) * self.content(torch.cat([state, target], -1)).unsqueeze(1)
            keys = keys * keep + write.unsqueeze(-1) * self.key(item).unsqueeze(1)
            read = weight[:, 0]
            usage = self.decay * usage + read + write
        return {"memory": memory, "keys": keys, "codes": codes}

    def predict_features(self, adapted: Adapted, x: Tensor) -> Tensor:
        query = self.items(x)
        found, _ = self._read(adapted["memory"], adapted["keys"], query)
        return self.finish(found + self.out(torch.cat([query, found], -1)), adapted["codes"])
