"""A check that a rollout engine samples with the weights that it was given last.

    update_weights -> check: generate from one prompt, seed fixed -> tokens and log-probabilities
                             the trainer's own log-probabilities of these tokens

An engine that ignores an update answers the probe with exactly the same numbers, while the
trainer's own log-probabilities of these tokens move away from them. Both together are an error. An
update that is truly zero (learning rate 0, no gradient) moves neither and is none. What a sampler
in lower precision cannot show is none either: the tolerance is ten times the difference between the
two that was seen when the engine last changed.

Guarantees: an engine that never takes over an update is found as soon as the difference on the
probe exceeds the tolerance, at the first update in float32 at ordinary learning rates; the probe
draws no global random number (tests/reasoning/test_weight_probe.py).
Out of scope: engines that are always some updates late, which
`sampling/sampling_logp_difference/mean` of the log shows; a probe of which the model is entirely
certain, which no update moves.
"""

from collections.abc import Sequence

import torch

from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.reasoning.log_probs import completion_log_probs
from moxin_lab.reasoning.rollout import RolloutEngine, SamplingSettings

PROBE_TOKENS = 2
PROBE_SEED = 0
LEAST_TOLERANCE = 1e-4  # nats; float32 on both sides differs by less
GREATEST_TOLERANCE = 0.5  # nats; bfloat16 on one side differs by less


class StaleWeightsError(RuntimeError):
    """A rollout engine still samples with weights from before the last update."""


class WeightProbe:
    """The probe of one training: `prompt_ids` with completions of at most `max_completion_length`
    tokens at `temperature`.
    """

    def __init__(
        self, prompt_ids: Sequence[int], max_completion_length: int, temperature: float
    ) -> None:
        tokens = min(PROBE_TOKENS, max_completion_length)
        self._prompt_ids = list(prompt_ids)
        self._sampling = SamplingSettings(1, tokens, temperature)
        self._last: tuple[list[int], list[float]] | None = None
        self._tolerance = 0.0

    def check(self, engine: RolloutEngine, model: MoxinForCausalLM) -> None:
        """Call after each `update_weights` of the engine with the model's weights.

        Raises StaleWeightsError if the engine's answer has not changed and the model's has.
        """
        rollout = engine.generate([self._prompt_ids], self._sampling, PROBE_SEED)
        ids = rollout.tokens(0)
        log_probs = rollout.log_probs[0, : len(ids)]
        difference = float((self._log_probs_of(model, ids) - log_probs).abs().max())
        answer = (ids, log_probs.tolist())
        if answer != self._last:
            self._last = answer
            self._tolerance = min(max(LEAST_TOLERANCE, 10 * difference), GREATEST_TOLERANCE)
        elif difference > self._tolerance:
            raise StaleWeightsError(
                "the rollout engine gives a probe exactly the log-probabilities from before its "
                "last update_weights, and the trainer's weights give others (difference "
                f"{difference:.2g} nats, tolerance {self._tolerance:.2g}): the update did not "
                "reach the weights that sample"
            )

    @torch.no_grad()
    def _log_probs_of(self, model: MoxinForCausalLM, ids: Sequence[int]) -> torch.Tensor:
        """The model's log-probabilities of the completion `ids`, float32 [T], on the CPU."""
        device = model.lm_head.weight.device
        input_ids = torch.tensor([[*self._prompt_ids, *ids]], device=device)  # [1, P + T]
        mask = torch.arange(1, input_ids.shape[1], device=device) >= len(self._prompt_ids)
        log_probs, _ = completion_log_probs(
            model, input_ids, mask[None], self._sampling.temperature
        )
        return log_probs[mask[None]].cpu()  # [1, P + T - 1] -> [T]
