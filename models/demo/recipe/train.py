"""Train the demo model from nothing to an exported checkpoint; resumes where it was stopped.

python models/demo/recipe/train.py [--work FOLDER] [--export FOLDER] [--processes N]
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import torch.distributed as dist
import torch.nn.functional as F
from export import export
from model import Llama, Shape
from optimizer import make_optimizers
from tasks import Batch, make_batch

from kvchat.eval import world

SEED = 20


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum: it ends at `goal` accuracy or after `steps` batches."""

    name: str
    length: int
    mix: dict[str, float]
    steps: int
    goal: float = 2.0  # accuracy on the watched task; 2 is never reached
    watch: str = "chat"
    rate: float = 1.0
    embedding: float = 1.0  # rate of embedding and norms, relative
    end_rate: float | None = None  # the rate falls linearly to this
    tokens: int = 8192
    unknown: float = 0.25
    jump: float = 0.0
    far: float = 0.0  # share of batches whose rows stand for longer ones
    kin: float = 0.3  # share of rows in which people share names or have many facts
    share: tuple[float, float] = (0.4, 0.8)  # least and most of a row that is document
    sharpen: float = 1.0  # the queries of all layers are multiplied by this at the start
    fresh: bool = False  # whether the optimizers forget what came before
    odd: float = 0.0  # share of rows whose values do not tell the relation by their kind


WARM = {"offset": 0.5, "repeat": 0.5}
RESTATE = {"random": 0.13, "tangle": 0.2, "single": 0.5, "chat": 0.17}
PERSON = {"random": 0.05, "tangle": 0.15, "single": 0.35, "person": 0.3, "chat": 0.15}
BRIDGE = {"tangle": 0.1, "bridge": 0.35, "single": 0.2, "person": 0.3, "chat": 0.05}
MIXED = {"tangle": 0.05, "single": 0.2, "person": 0.2, "facts": 0.25, "recite": 0.2, "chat": 0.1}
CHAT = {"single": 0.03, "facts": 0.22, "recite": 0.5, "chat": 0.25}
CALM = {"facts": 0.1, "recite": 0.5, "chat": 0.4}
FIRST = {"chat": 1.0}
STAGES = [
    Stage("offset-32", 32, WARM, 1200, 0.9, "repeat", tokens=4096),
    Stage("offset-64", 64, WARM, 600, 0.93, "repeat", tokens=4096),
    Stage("restate-64", 64, RESTATE, 800, 0.95, "single", tokens=4096, kin=0.0, fresh=True),
    Stage("person-128", 128, PERSON, 400, 0.95, "person", tokens=4096, kin=0.1),
    Stage("bridge-64", 64, BRIDGE, 1200, 0.95, "person", tokens=4096, kin=0.1),
    Stage("mixed-128", 128, MIXED, 500, 0.93, "facts", tokens=4096, odd=0.5),
    Stage("chat-256", 256, CHAT, 600, 0.96, "recite", 0.8, far=0.2, kin=0.2, tokens=4096),
    Stage("chat-512", 512, CHAT, 400, 0.97, "recite", 0.7, far=0.4, kin=0.2, tokens=4096),
    Stage(
        "chat-1024",
        1024,
        CHAT,
        300,
        0.98,
        "recite",
        0.6,
        end_rate=8 / 15,
        jump=0.3,
        far=0.5,
        kin=0.2,
    ),
    Stage("calm-2048", 2048, CALM, 240, rate=0.5, end_rate=0.2, jump=0.3, far=0.5, kin=0.2),
    Stage(
        "calm-4096",
        4096,
        CALM,
        100,
        rate=0.2,
        end_rate=0.105,
        unknown=0.2,
        jump=0.3,
        far=0.4,
        kin=0.2,
        sharpen=1.25,
    ),
    Stage(
        "settle-4096",
        4096,
        CALM,
        120,
        rate=0.105,
        end_rate=0.03,
        unknown=0.2,
        jump=0.3,
        far=0.4,
        kin=0.2,
    ),
    # A question right after the document is rare in the rows above, and is what the user asks.
    Stage(
        "first-1024",
        1024,
        FIRST,
        50,
        rate=0.1,
        end_rate=0.08125,
        unknown=0.35,
        jump=0.3,
        far=0.5,
        kin=0.2,
        share=(0.8, 0.97),
    ),
    Stage(
        "last-1024",
        1024,
        FIRST,
        100,
        rate=0.08,
        end_rate=0.005,
        unknown=0.35,
        jump=0.3,
        far=0.7,
        kin=0.2,
        share=(0.8, 0.97),
    ),
]


def loss_of(model: Llama, batch: Batch) -> tuple[torch.Tensor, dict[str, tuple[int, int]]]:
    """Weighted cross-entropy, and right and all predictions of weight 1 by task."""
    hidden = model(batch.ids, batch.position, batch.log_weight)
    weight, target = batch.weight.flatten(), batch.target.flatten()
    used = weight.nonzero().squeeze(1)
    # Equal sizes again and again: every new one costs the matrix library a compilation.
    used = torch.cat([used, used.new_zeros(-len(used) % 256)])  # token 0 weighs nothing
    weight = weight[used]
    logits = model.logits(hidden.flatten(0, 1)[used])
    loss = (F.cross_entropy(logits, target[used], reduction="none") * weight).sum() / weight.sum()
    right = torch.zeros_like(target, dtype=torch.bool)
    right[used] = logits.detach().argmax(-1) == target[used]
    right = right.view_as(batch.target)
    counts: dict[str, tuple[int, int]] = {}
    full = batch.weight == 1
    unknown = full & (batch.target == world.UNKNOWN_WORD)
    for i, name in enumerate(batch.names):
        parts = {name: full[i] & ~unknown[i], "unknown": unknown[i]}
        for part, where in parts.items():
            a, b = counts.get(part, (0, 0))
            counts[part] = (a + int((right[i] & where).sum()), b + int(where.sum()))
    return loss, counts


class Curve:
    """Running accuracy by task, and the JSONL log of it."""

    def __init__(self, path: Path, silent: bool = False) -> None:
        self.path, self.silent = path, silent
        self.loss = 0.0
        self.steps = 0
        self.counts: dict[str, list[int]] = {}

    def add(self, loss: float, counts: dict[str, tuple[int, int]]) -> None:
        """Take in one batch."""
        self.loss += loss
        self.steps += 1
        for name, (right, total) in counts.items():
            seen = self.counts.setdefault(name, [0, 0])
            seen[0] += right
            seen[1] += total

    def flush(self, **where: object) -> dict[str, float]:
        """Write one line, forget, and return the accuracies."""
        accuracy = {name: round(a / b, 4) for name, (a, b) in self.counts.items() if b}
        line = where | {"loss": round(self.loss / self.steps, 4), "accuracy": accuracy}
        if not self.silent:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
        self.__init__(self.path, self.silent)
        return accuracy


def mean_gradients(model: Llama, processes: int) -> None:
    """Average the gradients of all processes in place."""
    grads = [p.grad for p in model.parameters()]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= processes
    for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        g.copy_(part.view_as(g))


def agreed(good: int) -> int:
    """The count of process 0, so that all end a stage together."""
    said = torch.tensor(good)
    dist.broadcast(said, 0)
    return int(said)


def run(rank: int, args: argparse.Namespace) -> None:
    """Run the stages that are left, saving the state every 25 batches.

    Every process computes a part of each batch on one thread, which is faster on few cores than
    one process with several threads.
    """
    torch.set_num_threads(1)
    store = dist.FileStore(str(args.work / f"store-{args.started}"), args.processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=args.processes)
    torch.manual_seed(SEED)
    model = Llama(Shape(world.VOCAB))
    optimizers = make_optimizers(model)
    state_path = args.work / "state.pt"
    # good: how many looks in a row reached the goal of the stage.
    at = {"stage": 0, "step": 0, "good": 0, "batches": 0, "tokens": 0, "seconds": 0.0}
    if state_path.exists():
        state = torch.load(state_path)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        at = state["at"]
    dist.barrier()
    curve = Curve(args.work / "curve.jsonl", silent=rank > 0)

    def save() -> None:
        if rank == 0:
            fresh = state_path.with_suffix(".new")
            saved = [optimizer.state_dict() for optimizer in optimizers]
            torch.save({"model": model.state_dict(), "optimizers": saved, "at": at}, fresh)
            fresh.replace(state_path)

    clock = time.time()
    while at["stage"] < len(STAGES):
        stage = STAGES[at["stage"]]
        rows = max(args.processes, stage.tokens // stage.length)
        if stage.fresh and at["step"] == 0:
            optimizers = make_optimizers(model)
        if at["step"] == 0:
            for layer in model.layers:
                layer.self_attn.q_proj.weight.data *= stage.sharpen
        while at["step"] < stage.steps and at["good"] < 2:
            seed = SEED * 10**9 + at["batches"]
            far = Random(seed).random() < stage.far  # the same in all processes
            batch = make_batch(
                seed,
                rows,
                stage.length,
                stage.mix,
                stage.unknown,
                stage.jump,
                far,
                stage.kin,
                stage.odd,
                stage.share,
                rank,
                args.processes,
            )
            loss, counts = loss_of(model, batch)
            loss.backward()
            mean_gradients(model, args.processes)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            end = stage.rate if stage.end_rate is None else stage.end_rate
            rate = stage.rate + (end - stage.rate) * at["step"] / stage.steps
            rate *= min(1.0, (at["batches"] + 1) / 100)
            for optimizer, part in zip(optimizers, (1.0, stage.embedding), strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = group["base"] * rate * part
                optimizer.step()
            model.zero_grad(set_to_none=True)
            curve.add(loss.item(), counts)
            now = time.time()
            at["seconds"] = round(at["seconds"] + now - clock, 2)
            clock = now
            at["step"] += 1
            at["batches"] += 1
            at["tokens"] += batch.ids.numel() * args.processes
            if at["step"] % 25 == 0:
                accuracy = curve.flush(stage_name=stage.name, **at)
                reached = accuracy.get(stage.watch, 0) >= stage.goal
                at["good"] = agreed(at["good"] + 1 if reached else 0)
                save()
        at["stage"] += 1
        at["step"] = at["good"] = 0
        save()
        if rank == 0:
            torch.save(model.state_dict(), args.work / f"{stage.name}.pt")
    if rank == 0:
        export(model, args.export)
    dist.destroy_process_group()


def main() -> None:
    """Start the processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    here = Path(__file__).resolve().parent
    parser.add_argument("--work", type=Path, default=here / "work")
    parser.add_argument("--export", type=Path, default=here.parent)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    args.started = time.time_ns()
    torch.multiprocessing.spawn(run, (args,), args.processes)


if __name__ == "__main__":
    main()
