"""(c) Forced acceptance against the theory: at rate α and depth γ the engine should reach Leviathan's expectation."""

from __future__ import annotations

from dataclasses import dataclass

import common
import torch

from specbench import registry
from specbench.api import load
from specbench.engine.decode import Engine
from specbench.engine.stop import Stop
from specbench.lm.stops import stop_ids_of
from specbench.method import Drafter, Request
from specbench.sampling import Sampling, sequence_key


@dataclass
class Tally:
    """Counts and seconds over generations; ratios as properties."""

    accepted: int = 0
    tested: int = 0
    verify_s: float = 0.0
    num_steps: int = 0
    num_tokens: int = 0

    @property
    def verify_step_s(self) -> float:
        return self.verify_s / self.num_steps

    @property
    def acceptance_length(self) -> float:
        return self.num_tokens / self.num_steps


def decode(engine: Engine, drafter: Drafter, chosen: list[Request], tally: Tally) -> float:
    """Decode all requests -> tokens per second of decode time; counts go into the tally."""
    decode_s, num_tokens = 0.0, 0
    for request in chosen:
        result = engine.generate(drafter, [request])
        [generation] = result.generations
        decode_s += result.decode_s
        num_tokens += len(generation.tokens) - 1
        tally.verify_s += result.verify_s
        tally.num_steps += len(generation.steps)
        for step in generation.steps:
            if not step.num_truncated:
                tally.accepted += step.num_accepted
                tally.tested += min(step.num_accepted + 1, step.depth)
    tally.num_tokens += num_tokens
    return num_tokens / decode_s


def main() -> None:
    args = common.parser(__doc__ or "").parse_args()
    torch.set_num_threads(args.threads)
    lm = load(args.target)
    texts = common.prompts(lm, args)
    longest = max(len(prompt) for prompt in texts) + args.max_new_tokens
    engine = Engine(lm, sampling=Sampling(), max_len=longest, stop=Stop(ids=stop_ids_of(lm)))
    plain = registry.load("autoregressive")({}, engine.view())
    keys = [sequence_key(seed=0, question_id=str(index), turn=0) for index in range(len(texts))]

    def requests(with_reference: bool) -> list[Request]:
        return [
            Request(
                key=key, prompt=prompt, max_new_tokens=args.max_new_tokens, reference=answer if with_reference else None
            )
            for key, prompt, answer in zip(keys, texts, answers, strict=True)
        ]

    answers: list[tuple[int, ...] | None] = [None] * len(texts)
    answers = [engine.generate(plain, [request]).generations[0].tokens for request in requests(False)]
    rows = []
    for depth in (2, 4, 8):
        for rate in (0.5, 0.8, 0.95, 1.0):
            drafter = registry.load("oracle")(
                registry.check_options(registry.card("oracle"), {"rate": rate, "depth": depth}), engine.view()
            )
            engine.reserve(drafter.max_nodes)
            tally = Tally()
            rates = common.interleave(
                {
                    "plain": lambda: decode(engine, plain, requests(False), Tally()),
                    "oracle": lambda drafter=drafter, tally=tally: decode(engine, drafter, requests(True), tally),
                },
                rounds=args.rounds,
            )
            base = Tally()
            decode(engine, plain, requests(False), base)
            realised = tally.accepted / tally.tested
            verify_ratio = tally.verify_step_s / base.verify_step_s
            ideal = depth + 1 if realised == 1 else (1 - realised ** (depth + 1)) / (1 - realised)
            rows.append(
                [
                    depth,
                    rate,
                    f"{realised:.3f}",
                    f"{ideal:.2f}",
                    f"{tally.acceptance_length:.2f}",
                    f"{verify_ratio:.2f}",
                    f"{tally.acceptance_length / verify_ratio:.2f}",
                    common.ratio(rates["oracle"], rates["plain"]),
                ]
            )
    common.write(
        "oracle",
        args,
        [
            "γ",
            "α asked",
            "α realised",
            "τ by theory (c = 0)",
            "τ",
            "verify ÷ 1 token",
            "bound τ / verify",
            "speed-up measured",
        ],
        rows,
        target=args.target.rstrip("/").rsplit("/", 1)[-1],
        prompts=f"{len(texts)} of {args.suite}",
        rounds=args.rounds,
    )


if __name__ == "__main__":
    main()
