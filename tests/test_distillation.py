"""Distillation: each loss against a closed form, what a teacher has besides, and who is taught."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from tasks_for_tests import PICTURES, VECTORS, predict, spec, tasks
from torch.nn.functional import cross_entropy, softmax

from components.batches import ItemBatches, LessonBatches, TaskBatches
from components.contracts import AugmentSection
from components.distillation import Distillation, class_features, feature_loss, rank_loss, relation_loss, soft_loss, value_loss
from components.domains import images
from components.domains.pool import Pool
from components.goals import teacher_of
from components.inputs import InputError
from components.learners import store
from components.learners.fused import FusedLearner
from components.learners.learner import Learner
from components.learning import RecipeSection
from components.tasks import Examples, Lesson
from components.tasksets import read_table

NONE, BENT = AugmentSection(0, 0, 0, 0, 0), AugmentSection(9, 0.15, 0.15, 0.05, 0.03)
PLAIN = RecipeSection(
    temperature=4.0, soft_weight=0.0, class_weight=0.0, feature_weight=0.0, relation_weight=0.0, teacher_shots=0, noise=0.0, unlabelled=0, cutmix=0.0
)


def lesson(unlabelled: int = 0, **more) -> Lesson:
    batch = tasks(**more)
    loose = torch.rand(len(batch.query.y), unlabelled, *batch.query.x.shape[2:], generator=torch.Generator().manual_seed(5))
    return Lesson(batch.support, batch.query, batch.support, loose)


def loss_of(student: Learner, teacher: Learner, recipe: RecipeSection, given: Lesson, classes=None, shape=PICTURES):
    with store.initial_weights(7):
        return Distillation(student, teacher.eval(), recipe, shape, classes)(given)


def test_the_soft_loss_is_the_divergence_at_temperature() -> None:
    random = np.random.default_rng(1)
    student, teacher, tau = random.normal(size=(2, 5, 4)), random.normal(size=(2, 5, 4)), 3.0
    p, q = (np.exp(z / tau) / np.exp(z / tau).sum(-1, keepdims=True) for z in (teacher, student))
    wanted = tau**2 * (p * np.log(p / q)).sum(-1).mean()
    assert soft_loss(torch.tensor(student), torch.tensor(teacher), tau).item() == pytest.approx(wanted, rel=1e-9)
    assert soft_loss(torch.tensor(teacher), torch.tensor(teacher), tau).item() == pytest.approx(0, abs=1e-12)


def test_at_high_temperature_the_gradient_matches_logits() -> None:
    # Hinton et al. 2015, sec. 2.1, eq. 4: for zero-mean logits the gradient tends to (z - v) / N (times tau^2 / tau^2).
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1, 6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    student, teacher = student - student.mean(-1, keepdim=True), teacher - teacher.mean(-1, keepdim=True)
    student.requires_grad_()
    soft_loss(student, teacher, 1e4).backward()
    assert torch.allclose(student.grad * 6, (student - teacher).detach() / 4, atol=1e-3)


def test_the_relational_loss_is_hubers_of_distances_over_their_mean() -> None:
    random = np.random.default_rng(2)
    a, b = random.normal(size=(2, 6, 3)), random.normal(size=(2, 6, 7))

    def distances(x: np.ndarray) -> np.ndarray:
        pairs = np.array([[np.linalg.norm(t[i] - t[j]) for i in range(6) for j in range(6) if i != j] for t in x])
        return pairs / pairs.mean(1, keepdims=True)

    gap = np.abs(distances(a) - distances(b))
    wanted = np.where(gap < 1, gap**2 / 2, gap - 0.5).mean()
    assert relation_loss(torch.tensor(a), torch.tensor(b)).item() == pytest.approx(wanted, rel=1e-6)
    turned, _ = np.linalg.qr(random.normal(size=(3, 3)))
    assert relation_loss(torch.tensor(a), torch.tensor(5 * a @ turned + 1)).item() == pytest.approx(0, abs=1e-9)  # shape alone counts


def test_a_ranking_is_taught_by_what_the_teacher_thinks_of_each_pair() -> None:
    random = np.random.default_rng(3)
    student, teacher = random.normal(size=(2, 5)), 3 * random.normal(size=(2, 5))
    wanted = []
    for own, theirs in zip(student, teacher, strict=True):
        for i, j in itertools.combinations(range(5), 2):
            better, said = (1 / (1 + np.exp(scores[j] - scores[i])) for scores in (theirs, own))
            wanted.append(-better * np.log(said) - (1 - better) * np.log(1 - said))
    args = [torch.tensor(scores)[..., None] for scores in (student, teacher)]
    assert rank_loss(*args).item() == pytest.approx(np.mean(wanted), rel=1e-9)
    assert rank_loss(args[0] + 7, args[1] - 5).item() == pytest.approx(np.mean(wanted), rel=1e-6), "an offset says nothing"
    own = args[1].clone().requires_grad_()
    rank_loss(own, args[1]).backward()
    assert own.grad.abs().max() < 1e-12, "who thinks the same has nothing to learn"


def test_of_values_labelled_and_unlabelled_queries_weigh_alike() -> None:
    student, teacher = (store.build(spec("cnp", "squared_error", "mlp"), seed).eval() for seed in (0, 1))
    given = lesson(unlabelled=9, way=1, shape=VECTORS)
    with torch.no_grad():
        asked = torch.cat([given.query.x, given.unlabelled], 1)
        own, theirs = (learner.predict(learner.adapt(given.support), asked) for learner in (student, teacher))
    right = replace(given, query=replace(given.query, y=theirs[:, : given.query.y.shape[1], 0]))  # a teacher that is nowhere off is followed everywhere
    _, metrics = loss_of(student, teacher, replace(PLAIN, soft_weight=1.0), right, shape=VECTORS)
    assert metrics["soft_loss"].item() == pytest.approx(((own - theirs) ** 2).mean().item(), rel=1e-5)


def test_the_feature_loss_is_the_distance_of_directions() -> None:
    random = np.random.default_rng(3)
    a, b = random.normal(size=(2, 5, 4)), random.normal(size=(2, 5, 4))
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b)]
    wanted = ((unit[0] - unit[1]) ** 2).sum(-1).mean()
    assert feature_loss(torch.tensor(a), torch.tensor(b)).item() == pytest.approx(wanted, rel=1e-9)


def test_soft_outputs_over_the_training_classes_are_cosines_to_the_teachers_means(small_pool: Pool) -> None:
    given, student, teacher = lesson(), store.build(spec("protonet"), 0), store.build(spec("protonet"), 1).eval()
    classes = class_features(teacher, small_pool, 7)[:4]
    with torch.no_grad():
        items = [small_pool.items(np.array([c])) for c in small_pool.split("train")[:4]]
        wanted = torch.stack([teacher.encode(images.prepare(torch.from_numpy(small_pool.inputs[own]))).flatten(1).mean(0) for own in items])
    assert torch.allclose(classes, wanted, atol=1e-6)
    _, metrics = loss_of(student, teacher, replace(PLAIN, class_weight=1.0), given, classes)
    with store.initial_weights(7):
        vectors = torch.nn.Linear(classes.shape[1], 4, bias=False).weight
    x = torch.cat([given.support.x, given.query.x], 1)
    own, theirs = (learner.encode_tasks(x).detach().flatten(2).numpy() for learner in (student, teacher))

    def logits(features: np.ndarray, to: np.ndarray) -> np.ndarray:
        return 16 * (features / np.linalg.norm(features, axis=-1, keepdims=True)) @ (to / np.linalg.norm(to, axis=-1, keepdims=True)).T

    p, q = softmax(torch.tensor(logits(theirs, classes.numpy())), -1), softmax(torch.tensor(logits(own, vectors.detach().numpy())), -1)
    assert metrics["class_loss"].item() == pytest.approx((p * (p / q).log()).sum(-1).mean().item(), rel=1e-3)


def test_who_knows_the_training_classes_begins_with_its_own_vectors_of_them(small_pool: Pool) -> None:
    given, teacher = lesson(), store.build(spec("protonet"), 1).eval()
    classes = class_features(teacher, small_pool)
    found = [Distillation(teacher, teacher, replace(PLAIN, class_weight=1.0), PICTURES, classes, known)(given)[1]["class_loss"] for known in (None, classes)]
    assert found[1].item() == pytest.approx(0, abs=1e-6) and found[0].item() > 0.01, "of a student that is its own teacher nothing is left to learn"


def test_with_every_part_off_the_loss_is_the_tasks_own_and_the_teacher_gets_no_gradient() -> None:
    given, student, teacher = lesson(), store.build(spec("protonet"), 0), store.build(spec("maml"), 1)
    loss, _ = loss_of(student, teacher, PLAIN, given)
    assert loss.item() == pytest.approx(cross_entropy(student(given).flatten(0, 1), given.query.y.flatten()).item(), rel=1e-5)
    loss_of(student, teacher, replace(PLAIN, soft_weight=0.7), given)[0].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())


@pytest.mark.parametrize("pupil", ["protonet", "maml", "ridge", "set_transformer"])
@pytest.mark.parametrize("master", ["protonet", "maml", "local", "logistic", "cnp", "theta*"])
def test_any_family_teaches_any_family(pupil: str, master: str) -> None:
    student, teacher = store.build(spec(pupil), 0).train(), store.build(spec(master), 1)
    loss, metrics = loss_of(student, teacher, replace(PLAIN, soft_weight=1.0), lesson(unlabelled=3))
    loss.backward()
    assert torch.isfinite(loss) and 0 <= metrics["agreement"] <= 1
    assert sum(float(p.grad.abs().sum()) for p in student.parameters() if p.grad is not None) > 0


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    given = lesson(unlabelled=4)
    student, teacher = (store.build(spec("protonet"), 0).eval() for _ in range(2))
    recipe = replace(PLAIN, soft_weight=1.0, relation_weight=1.0)
    loss, metrics = loss_of(student, teacher, recipe, given)
    assert loss.item() == pytest.approx(0, abs=1e-6) and metrics["agreement"] == 1


def test_the_loss_is_the_sum_of_its_parts_each_of_those_who_see_it(small_pool: Pool) -> None:
    """The student adapts to few and blurred examples, the teacher to more and clear ones; what is compared is what both have seen, blurred for the one."""
    student, teacher = (store.build(spec("protonet", norm="running"), seed).eval() for seed in (0, 1))
    teacher.temperature.fill_(2.0)
    batch, generator = tasks(shot=3), torch.Generator().manual_seed(6)
    order = [0, 3, 6, 1, 2, 4, 5, 7, 8]  # one of each class, then two further ones of each
    taught = Examples(batch.support.x[:, order], batch.support.y[:, order], 3)
    few = Examples(taught.x[:, :3] + 0.2 * torch.randn(3, 3, *PICTURES, generator=generator), taught.y[:, :3], 3)
    given = Lesson(few, batch.query, taught, torch.rand(3, 5, *PICTURES, generator=generator))
    recipe = replace(PLAIN, soft_weight=0.6, class_weight=0.5, feature_weight=0.25, relation_weight=2.0)
    classes = class_features(teacher, small_pool)[:4]
    loss, _ = loss_of(student, teacher, recipe, given, classes)
    with store.initial_weights(7):
        projection, vectors = torch.nn.Linear(classes.shape[1], classes.shape[1]), torch.nn.Linear(classes.shape[1], 4, bias=False).weight
    asked = torch.cat([batch.query.x, given.unlabelled], 1)
    with torch.no_grad():
        outputs, target = student.predict(student.adapt(few), asked), teacher.predict(teacher.adapt(taught), asked)  # calibrated
        own = student.encode_tasks(torch.cat([few.x, asked], 1)).flatten(2)
        theirs = teacher.encode_tasks(torch.cat([taught.x[:, :3], asked], 1)).flatten(2)
        cosines = [16 * torch.nn.functional.normalize(x, dim=-1) @ torch.nn.functional.normalize(y, dim=-1).T for x, y in ((own, vectors), (theirs, classes))]
        hard = cross_entropy(outputs[:, : batch.query.y.shape[1]].flatten(0, 1), batch.query.y.flatten())
        wanted = 0.4 * hard + 0.6 * soft_loss(outputs, target, 4.0) + 0.5 * soft_loss(*cosines, 1.0)
        wanted += 0.25 * feature_loss(projection(own), theirs) + 2 * relation_loss(own, theirs)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)


def test_several_teachers_teach_the_mean_of_their_distributions(tmp_path) -> None:
    batch, paths = tasks(), []
    for seed, name in enumerate(("protonet", "maml", "ridge")):
        store.save(store.build(spec(name), seed), spec(name), tmp_path / name, {})
        paths.append(str(tmp_path / name))
    found = softmax(predict(teacher_of(tuple(paths), PICTURES), batch), -1)
    wanted = torch.stack([softmax(predict(store.load(path)[0], batch), -1) for path in paths]).mean(0)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_members_taught_as_one_learn_by_the_loss_of_their_mean() -> None:
    members = [store.build(spec("protonet"), seed).eval() for seed in (1, 2)]  # statistics of support and query together would differ
    master, given = store.build(spec("ridge"), 3).eval(), lesson(shot=2)
    recipe = replace(PLAIN, soft_weight=1.0, temperature=2.0)
    loss, _ = loss_of(FusedLearner(members, "mixture", [0.5, 0.5], False, PICTURES).eval(), master, recipe, given)
    with torch.no_grad():
        target = softmax(predict(master, given) / recipe.temperature, -1).numpy()
        mean = np.mean([softmax(predict(member, given), -1).numpy() for member in members], 0) ** (1 / recipe.temperature)
    mean /= mean.sum(-1, keepdims=True)
    wanted = (target * (np.log(target) - np.log(mean))).sum(-1).mean() * recipe.temperature**2
    assert loss.item() == pytest.approx(wanted, rel=1e-4)
    loss.backward()
    for member in members:
        assert all(p.grad is not None for p in member.backbone.parameters()), "each learns from what all say together"


def test_features_of_what_shares_no_encoder_are_refused() -> None:
    with pytest.raises(InputError, match="its teacher lacks"):
        loss_of(store.build(spec("protonet")), store.build(spec("maml")), replace(PLAIN, feature_weight=1.0), lesson())


def test_a_teacher_that_is_far_off_or_not_finite_teaches_no_value() -> None:
    truth, own = torch.tensor([[1.0, 2.0]]), torch.tensor([[[0.5], [2.5]]], requires_grad=True)
    for value in (float("inf"), float("nan"), 1e6):
        loss = value_loss(own, torch.full_like(own, value), truth)
        (slope,) = torch.autograd.grad(loss, own)
        assert loss == 0 and not slope.any()
    assert value_loss(own, truth.unsqueeze(-1), truth).item() == pytest.approx(0.25)
    assert value_loss(own, torch.full_like(own, float("nan")), None) == 0


def lessons(pool: Pool, tasksets, turns: int = 1, augment: AugmentSection = NONE, **changes) -> LessonBatches:
    return LessonBatches(pool, read_table(tasksets, "train"), 4, 3, augment, replace(PLAIN, **changes), turns)


def test_further_inputs_are_turned_and_bent_like_those_of_tasks(small_pool: Pool, small_tasksets) -> None:
    plain, turned, crooked = (
        lessons(small_pool, small_tasksets, turns, augment, unlabelled=3)(1, 0, 1).unlabelled for turns, augment in ((1, NONE), (8, NONE), (1, BENT))
    )
    ways = [images.turn(plain.flatten(0, 1), torch.full((12,), way)).view_as(plain) for way in range(8)]
    chosen = [[next(w for w in range(8) if torch.equal(turned[t, i], ways[w][t, i])) for i in range(3)] for t in range(4)]
    assert len({w for own in chosen for w in own}) > 2, "each by a draw of its own"
    apart = (crooked - plain).abs().mean((2, 3, 4))
    assert crooked.shape == plain.shape and apart.min() > 0.01


def test_a_teacher_has_more_and_clearer_examples_that_are_nobodys_query(small_pool: Pool, small_tasksets) -> None:
    given = lessons(small_pool, small_tasksets, teacher_shots=2, noise=0.3, unlabelled=5)(1, 0, 1)
    plain = TaskBatches(small_pool, read_table(small_tasksets, "train"), 4, 3, NONE)(1, 0, 1)
    assert torch.equal(given.query.x, plain.query.x)
    clean, shots = given.taught.x[:, : plain.support.x.shape[1]], plain.support.x.shape[1]
    assert torch.equal(clean, plain.support.x), "the teacher sees the student's examples without the noise"
    blurred = given.support.x - clean
    assert blurred.std().item() == pytest.approx(0.3, rel=0.05) and abs(blurred.mean().item()) < 0.02
    assert given.taught.y[0].tolist() == [0, 1, 2, 3, 0, 0, 1, 1, 2, 2, 3, 3]
    assert given.unlabelled.shape[:2] == (4, 5)
    for t in range(4):
        pictures = [*given.taught.x[t], *given.query.x[t]]
        assert len({p.numpy().tobytes() for p in pictures}) == len(pictures), "no picture is there twice"
        for i in range(shots, given.taught.x.shape[1]):  # a further example is one of its class
            first = clean[t][given.taught.y[t, i]]
            own = next(c for c in small_pool.split("train") if any(same(first, small_pool, j) for j in small_pool.items(np.array([c]))))
            assert any(same(given.taught.x[t, i], small_pool, j) for j in small_pool.items(np.array([own])))


def test_classes_are_joined_of_halves_of_two_alike_in_all_their_pictures(small_pool: Pool, small_tasksets) -> None:
    whole, always, some = (lessons(small_pool, small_tasksets, turns=8, teacher_shots=2, cutmix=share) for share in (0.0, 1.0, 0.5))
    ways, kept = [], []
    for step in range(25):
        plain, cut, half = (drawn(step, 0, 1) for drawn in (whole, always, some))
        for t in range(4):
            kept.append(torch.equal(half.query.x[t], plain.query.x[t]))
            assert kept[-1] or torch.equal(half.taught.x[t], cut.taught.x[t])
            parts = [(plain.query.x[t], cut.query.x[t]), (plain.support.x[t], cut.support.x[t])]
            shots = len(plain.support.x[t])
            parts += [(plain.taught.x[t, :shots], cut.taught.x[t, :shots]), (plain.taught.x[t, shots:], cut.taught.x[t, shots:])]
            fits = []
            for before, after in parts:
                own = before.unflatten(0, (4, -1))
                following = own[[1, 2, 3, 0]]
                beside = torch.cat([own[..., :14], following[..., 14:]], -1).flatten(0, 1)
                below = torch.cat([own[..., :14, :], following[..., 14:, :]], -2).flatten(0, 1)
                fits.append((torch.equal(after, beside), torch.equal(after, below)))
            assert fits in ([(True, False)] * 4, [(False, True)] * 4)
            ways.append(fits[0][0])
    assert 0.3 < np.mean(ways) < 0.7 and 0.3 < np.mean(kept) < 0.7


def same(x: torch.Tensor, pool: Pool, item: int) -> bool:
    return torch.equal(x, images.prepare(torch.from_numpy(np.array(pool.inputs[item]))))


def test_too_few_examples_for_the_teacher_are_told(small_pool: Pool, small_tasksets) -> None:
    with pytest.raises(InputError, match="teacher_shots=9 needs 12 examples"):
        lessons(small_pool, small_tasksets, teacher_shots=9)


def test_two_processes_share_the_lessons_of_one(small_pool: Pool, small_tasksets) -> None:
    drawn = lessons(small_pool, small_tasksets, turns=8, teacher_shots=2, noise=0.1, unlabelled=2, cutmix=0.5)
    whole, ranks = drawn(5, 0, 1), [drawn(5, rank, 2) for rank in (0, 1)]
    for name in ("support", "query", "taught"):
        for i in range(4):
            assert torch.equal(getattr(whole, name).x[i], getattr(ranks[i % 2], name).x[i // 2])
    assert torch.equal(whole.unlabelled[1], ranks[1].unlabelled[0])
    part = whole.take(slice(1, 3))
    assert torch.equal(part.taught.x, whole.taught.x[1:3]) and torch.equal(part.unlabelled, whole.unlabelled[1:3])


def test_a_turned_class_is_turned_alike_in_support_and_query(small_pool: Pool, small_tasksets) -> None:
    table = read_table(small_tasksets, "train")
    plain, turned = (TaskBatches(small_pool, table, 4, 3, NONE, turns)(2, 0, 1) for turns in (1, 8))
    seen = set()
    for t in range(4):
        for c in range(plain.support.way):
            pairs = [(getattr(b, part).x[t][getattr(b, part).y[t] == c]) for part in ("support", "query") for b in (plain, turned)]
            before, after = torch.cat(pairs[::2]), torch.cat(pairs[1::2])
            fits = [k for k in range(8) if torch.equal(images.turn(before, torch.full((len(before),), k)), after)]
            assert len(fits) == 1, "one turn for all pictures of a class"
            seen.add(fits[0])
    assert len(seen) > 3


def test_no_class_of_a_held_out_split_is_anywhere_in_training_at_any_turn(small_pool: Pool, small_tasksets) -> None:
    held = small_pool.items(np.concatenate([small_pool.split(s) for s in ("val", "gate", "test")]))
    pictures = images.prepare(torch.from_numpy(np.ascontiguousarray(small_pool.inputs[held])))
    forbidden = {images.turn(pictures, torch.full((len(held),), k))[i].numpy().tobytes() for k in range(8) for i in range(len(held))}
    items = ItemBatches(small_pool, 8, 64, 0, NONE)
    teaching = lessons(small_pool, small_tasksets, turns=8, teacher_shots=2, unlabelled=6)
    for step in range(12):
        batch = teaching(step, 0, 1)
        trained = [items(step, 0, 1)[0], *(x.flatten(0, 1) for x in (batch.taught.x, batch.support.x, batch.query.x, batch.unlabelled))]
        assert not forbidden & {x.contiguous().numpy().tobytes() for x in torch.cat(trained)}


def test_a_lesson_is_a_task_for_whoever_is_not_taught() -> None:
    given, learner = lesson(unlabelled=2), store.build(spec("protonet"), 0)
    assert isinstance(given.support, Examples)
    assert torch.isfinite(learner.meta_loss(given)[0])
